"""The study of criteria for groups, at a small size."""

import numpy as np
import pytest

from experiments.studies.structural import group_pruning as study

pytestmark = pytest.mark.others_code


class Quiet:
    """No progress bar."""

    def add_task(self, *args, **kwargs):
        return 0

    def advance(self, *args):
        pass


def test_every_criterion_halves_the_multiply_adds_and_is_the_same_when_cut():
    settings = study.Settings(seeds=(3,), steps=6, extra=3, width=4)
    found = study.run(settings, None, Quiet())
    rows = found.figures["methods"]
    assert rows["dense"]["multiply_adds"] == [100.0]
    pruned = {n: r for n, r in rows.items() if "dense" not in n}
    assert len(pruned) == 9
    for row in pruned.values():
        assert 35 < row["multiply_adds"][0] <= 50
        assert np.isfinite(row["test"][0])
    assert found.figures["agreement"] < 1e-5
    assert len(found.tables["main"].rows) == len(rows)


def test_gaps_are_paired_by_seed():
    rows = {
        "dense, trained on": {"test": [99.0, 98.0]},
        "group, L2": {"test": [98.5, 97.0]},
    }
    assert study.lost("group, L2", {"methods": rows}) == (0.75, 0.3536)
