"""The picture of a schedule, by the data in it."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jprune import attention as ja


def test_bars_are_the_tokens_and_dots_the_fewer_values(tmp_path):
    tokens, values = (128, 96, 64, 32), (128, 100, 96, 40)
    plan = ja.schedule(128, tokens, (4,) * 4, values)
    axes = ja.draw_tokens(plan, tmp_path / "tokens.png")
    pale, kept = axes.containers
    assert [bar.get_height() for bar in pale] == [128] * 4
    assert [bar.get_height() for bar in kept] == list(tokens)
    assert [t.get_text() for t in axes.texts] == ["128", "96", "64", "32"]
    # Keys are 128, 128, 96, 64: layers 1 and 3 multiply by fewer values.
    (dots,) = axes.get_lines()
    assert dots.get_xydata().tolist() == [[1, 100], [3, 40]]
    with Image.open(tmp_path / "tokens.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_without_value_pruning_there_are_no_dots(monkeypatch):
    given = Figure().subplots()
    plan = ja.schedule(8, (8, 4), (2, 2))
    assert ja.draw_tokens(plan, given) is given
    assert not given.get_lines()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"draw_tokens needs .*jprune\[plot\]"):
        ja.draw_tokens(plan, given)
