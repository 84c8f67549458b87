"""The study of the pruned detector, at a small size."""

import numpy as np
import pytest

from experiments.studies.structural import detector as study

pytestmark = pytest.mark.others_code


class Quiet:
    """No progress bar."""

    def add_task(self, *args, **kwargs):
        return 0

    def advance(self, *args):
        pass


def test_half_of_the_parameters_go_in_every_way():
    settings = study.Settings(
        seeds=(3,), steps=4, extra=2, batch_size=4, width=4, calibration=8, tested=16
    )
    found = study.run(settings, None, Quiet())
    rows = found.figures["methods"]
    pruned = {n: r for n, r in rows.items() if "dense" not in n}
    assert len(pruned) == len(study.METHODS) == 5
    for row in pruned.values():
        assert 35 < row["parameters"][0] <= 50
        assert row["multiply_adds"][0] < 80
        assert 0 <= row["test"][0] <= 100
    assert rows["dense, trained on"]["parameters"] == [100.0]
    assert found.figures["missing"] == []
    assert found.figures["agreement"] < 1e-5
    assert len(found.tables["main"].rows) == len(rows) == 8


def test_thresholds_of_parts_take_the_same_share_of_each():
    settings = study.Settings(width=8, batch_size=2, calibration=2, tested=2)
    graph, _ = study.graphs(settings)
    rng = np.random.default_rng(0)
    scores = {n: rng.uniform(1, 2, g.size) for n, g in graph.groups.items()}
    for name, each in scores.items():
        each *= {"fine": 1.0, "coarse": 10.0, "neck": 100.0}[name.split("/")[0]]
    shares = {}
    for compete in (study.part, study.jg.all_groups):
        keep = study.jg.choose(
            graph, scores, 0.5, compete=compete, cost=study.jg.parameters
        )
        for part in ("fine", "coarse", "neck"):
            mine = [n for n in graph.groups if n.startswith(part)]
            gone = sum(int((~keep[n]).sum()) for n in mine if n in keep)
            share = gone / sum(graph.groups[n].size for n in mine)
            shares.setdefault(compete, {})[part] = share
    alike = list(shares[study.part].values())
    assert max(alike) - min(alike) < 0.02
    assert shares[study.jg.all_groups]["neck"] == 0
    assert shares[study.jg.all_groups]["fine"] > 0.9


def test_what_is_missing_would_be_named():
    settings = study.Settings(width=4, batch_size=2, calibration=2, tested=2)
    graph, _ = study.graphs(settings)
    assert study.missing(graph) == []
    groups = {n: g for n, g in graph.groups.items() if n != "fine/down/kernel[3]"}
    found = study.missing(graph._replace(groups=groups))
    assert found == [
        "fine/cross/main/kernel[2]",
        "fine/cross/past/kernel[2]",
        "fine/down/kernel[3]",
    ]


def test_gains_are_paired_by_seed():
    rows = {
        name: {"test": [value, value + 1.0]}
        for name, value in {
            "one threshold": 80.0,
            "one for each part": 81.0,
            "one threshold, distilled": 82.0,
            "one for each part, distilled": 86.0,
            "dense, trained on": 84.0,
        }.items()
    }
    figures = {"methods": rows}
    assert study.above("dense, trained on", "one threshold", figures) == (4.0, 0.0)
    assert study.better("parts", figures) == (2.5, 0.0)
    assert study.better("distilled", figures) == (3.5, 0.0)
