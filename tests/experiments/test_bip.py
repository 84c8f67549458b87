"""The study of BiP against IMP: its rounds, its costs, its networks, its report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.bilevel import _methods as methods
from experiments.studies.bilevel import _report as report
from experiments.studies.bilevel import bip_vs_imp as study
from experiments.tasks import data

pytestmark = pytest.mark.others_code

SMALL = study.Settings(
    dataset="digits",
    seeds=(0, 1),
    steps=12,
    batch_size=16,
    rewind=2,
    hidden=(32, 16),
    sparsities=(0.5, 0.95),
)


def test_rounds_meet_the_targets_and_prune_a_fifth_of_the_survivors():
    targets = (0.8, 0.9, 0.95, 0.98, 0.99)
    found = methods.rounds(targets)
    assert set(targets) <= set(found)
    left = 1 - np.asarray((0.0, *found))
    shares = 1 - left[1:] / left[:-1]
    assert np.all((shares > 0.17) & (shares < 0.23))
    assert len(found) == 20  # 7 + 3 + 3 + 4 + 3


def test_what_is_compared_costs_what_it_says():
    settings = study.Settings(steps=100, short=0.2)
    jobs = study.jobs(settings)
    cost = lambda name, s: jobs[name][s].evaluations  # noqa: E731
    # 13, 17 and 20 rounds, and the dense training before.
    assert [cost("IMP", s) for s in report.HIGH] == [1400, 1800, 2100]
    for s in report.HIGH:
        # Two gradients a step: the same budget, down to one training's rest.
        assert 0 <= cost("BiP", s) - cost("IMP, short", s) < 21
        assert 0 <= cost("IMP", s) - cost("BiP, climbing, full", s) <= 2
    assert cost("BiP", 0.9) == 220  # a fifth of 11 trainings
    assert cost("one-shot", 0.9) == 200
    trials = {len(study.candidates(settings, scored)) for scored in (False, True)}
    assert len(trials) == 1


@pytest.fixture(scope="module")
def digits():
    return jax.tree.map(jnp.asarray, data.load("digits"))


@pytest.mark.parametrize("name", ["one-shot", "Hydra", "BiP", "IMP"])
def test_networks_keep_the_weights_that_are_asked_for(name, digits):
    settings = SMALL
    task = methods.Task(
        digits.train,
        settings.batch_size,
        settings.steps,
        settings.rewind,
        settings.hidden,
        settings.min_kept,
    )
    jobs = study.jobs(settings)[name]
    rates = study.candidates(settings, jobs[0.5].scored)[0]
    start = {0.0: study.Job(methods.dense, settings.steps, from_dense=False)}
    seeds, nothing = settings.seeds, jnp.zeros(2)
    (dense,) = study.solve(task, start, seeds, [rates], nothing)[0.0]
    found = study.solve(task, jobs, seeds, [rates], dense.params)
    size = 64 * 32 + 32 * 16 + 16 * 10
    for s, (one,) in found.items():
        kernels = [layer["kernel"] for layer in one.params.values()]
        kept = sum(np.sum(np.asarray(w) != 0, axis=(1, 2)) for w in kernels)
        # Hydra rounds in each layer; a kept weight of exactly 0 is none.
        np.testing.assert_allclose(kept, size - round(size * s), atol=2)
        assert one.seconds > 0
    first, second = (
        np.asarray(found[0.95][0].params["dense1"]["kernel"][i]) for i in (0, 1)
    )
    assert np.any(first != second), "seeds differ"


def test_the_report_of_known_figures(tmp_path):
    def rows(test, evaluations, seconds, levels=report.HIGH):
        row = {"test": test, "evaluations": evaluations, "seconds": seconds}
        return {str(s): row for s in levels}

    figures = {
        "test_images": 7,
        "search": {
            name: {"trials": [{"validation": 80.0}, {"validation": v}]}
            for name, v in zip(report.FORMS, (90.0, 89.0, 88.0, 70.0), strict=True)
        },
        "clock": {
            "BiP": {str(s): [1.5, 1.6, 1.4] for s in report.HIGH},
            "IMP": {str(s): [10.0, 9.0, 99.0] for s in report.HIGH},
        },
        "methods": {
            "dense": rows([90.0, 90.0], 600, 1.0, (0.0,)),
            "IMP": rows([88.0, 89.0], 6000, 10.0),
            "IMP, short": rows([80.0, 80.0], 1200, 2.0),
            "BiP": rows([88.0, 88.0], 1200, 1.5),
            "BiP, implicit term": rows([88.0, 88.0], 1200, 1.5),
            "BiP as in its code": rows([87.0, 87.0], 1200, 1.5),
            "BiP, climbing": rows([88.5, 88.5], 1200, 1.5),
            "BiP, climbing, full": rows([89.0, 89.0], 6000, 12.0),
        },
    }
    made = {c.claim: c.check(figures) for c in report.claims("X")}
    assert (
        made["X, 95 %: best form of BiP minus IMP at its budget (points)"]["ours"] == 8
    )
    assert made["X, 95 %: best form of BiP minus full IMP (points)"]["ours"] == -0.5
    clock = made["X, 98 %: wall-clock of the best form of BiP over full IMP's"]
    assert clock["ours"] == 0.15
    assert clock["holds"]
    # Differences of 1 and 0: mean 0.5, standard error 0.5.
    full = "X, 99 %: full climbing BiP minus full IMP, in standard errors"
    assert made[full]["ours"] == 1.0
    assert len(report.table(figures, study.Settings()).rows) == len(figures["methods"])
    assert report.budgets(figures).rows[1][1] == "-0.50 ± 0.71"
    report.draw(figures, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
