"""Each field of each preset has a source or is said to be assumed."""

import inspect

import numpy as np
import pytest

import jprune as jp
from jprune import hardware as hw
from jprune.hardware import _sources, accelerators, machines

PRESETS = {
    name: f
    for name, f in inspect.getmembers(machines, inspect.isfunction)
    if name[0] != "_" and name not in ("accelerator", "sources")
}


def test_all_presets_have_notes_and_notes_are_of_fields():
    assert set(_sources._PRESETS) == set(PRESETS)
    for name, notes in _sources._PRESETS.items():
        named = [notes.published.split(), notes.derived, notes.fitted, notes.assumed]
        each = [field for group in named for field in group]
        assert set(each) <= set(hw.Accelerator._fields), name
        assert len(set(each)) == len(each), f"{name}: a field of two kinds"
        assert notes.like is None or notes.like in PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_is_published_or_said_not_to_be(name):
    found = machines.sources(PRESETS[name])
    assert tuple(found) == hw.Accelerator._fields
    assert {s.kind for s in found.values()} <= set(_sources.KINDS)
    assert all(s.text for s in found.values())
    for source in found.values():
        if source.kind == "published":
            assert any(year in source.text for year in map(str, range(2015, 2025)))
    # What no source of a machine gives: it is never claimed.
    for field in ("vector", "vector_energy", "topk_energy", "overlap"):
        if (name, field) != ("eyeriss", "overlap"):
            assert found[field].kind == "assumed"


def test_little_is_published_of_the_tpu_v5e():
    kinds = {f: s.kind for f, s in machines.sources(machines.tpu_v5e).items()}
    assert [f for f, kind in kinds.items() if kind == "published"] == ["dram_bandwidth"]
    assert [f for f, kind in kinds.items() if kind == "derived"] == ["clock", "rates"]
    assert "fitted" not in kinds.values()


def test_variants_inherit_what_they_share():
    h100, h200 = (machines.sources(f) for f in (machines.h100, machines.h200))
    assert "H200" in h200["dram_bandwidth"].text
    assert {f: s.kind for f, s in h100.items()} == {f: s.kind for f, s in h200.items()}
    assert h200["clock"] == h100["clock"]
    assert h200["launch"].text == f"as h100: {h100['launch'].text}"
    changed = {
        f
        for f, a, b in zip(
            hw.Accelerator._fields, machines.h100(), machines.h200(), strict=True
        )
        if not np.array_equal(a, b)
    }
    assert changed == {"dram_bandwidth"}


@pytest.mark.parametrize(
    ("name", "total"), [("spatten", 18.71), ("a3", 2.08), ("eyeriss", 12.25)]
)
def test_areas_that_were_fitted_have_their_total(name, total):
    found = machines.sources(PRESETS[name])["area_multiplier"]
    assert found == machines.Source("fitted", f"to a total of {total} mm^2")
    area = float(accelerators.area(PRESETS[name]()))
    assert area == pytest.approx(total, rel=0.05)


def test_what_is_no_preset_is_refused():
    with pytest.raises(jp.PruningError, match=r"got Accelerator\. .*eyeriss"):
        machines.sources(machines.a100())
