"""The study of rewinding, at the size of a test."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from experiments import ExperimentError, tables
from experiments.harness import runner
from experiments.models import resnet
from experiments.studies.lottery import _tickets as tickets
from experiments.studies.lottery import rewinding
from experiments.tasks import data

pytestmark = pytest.mark.others_code

SMALL = tickets.Settings(
    dataset="digits",
    pool=2,
    steps=8,
    seeds=(0, 1),
    batch_size=16,
    width=4,
    rewinds=(0.0, 0.25),
    per_round=0.36,
    rounds=(1, 2),
    calibration=64,
    barrier_images=40,
    points=3,
)


@pytest.fixture(scope="module")
def outcome():
    with runner.progress_bar() as progress:
        return rewinding.run(SMALL, None, progress)


def test_every_ticket_and_control_has_its_figures(outcome):
    figures = outcome.figures
    assert figures["rewind_steps"] == [0, 2]
    assert figures["sparsities"] == [0.36, 0.5904]
    rows = figures["rows"]
    names = ["rewind to 0", "rewind to 2", "random reinit", "random mask"]
    assert list(rows) == names
    measured = {"pruning_l2", "pruning_degrees", "order_l2", "order_degrees"}
    measured |= {"order_barrier", "validation_accuracy", "test_accuracy"}
    for name, row in rows.items():
        assert np.shape(row["test_accuracy"]) == (2, 2)
        if name.startswith("rewind"):
            assert set(row) == measured
            assert all(np.shape(value) == (2, 2) for value in row.values())
            assert all(np.ravel(row["order_l2"]) > 0)


def test_the_table_has_a_line_for_each_and_becomes_markdown(outcome):
    table = outcome.tables["main"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [row[0] for row in table.rows] == list(outcome.figures["rows"])
    assert "trains for the remaining 8 to 6 steps" in table.caption
    assert tables.markdown(table.columns, table.rows).count("\n") == 5


@pytest.mark.parametrize(
    "study", [rewinding.FASHION_MNIST, rewinding.CIFAR_10], ids=["fashion", "cifar"]
)
def test_claims_are_differences_of_rows(outcome, study):
    rows = outcome.figures["rows"]
    checked = {claim.claim: claim.check(outcome.figures) for claim in study.claims}
    assert len(checked) == 6
    (shuffled,) = (c for name, c in checked.items() if "shuffled mask" in name)
    ours, theirs = (
        np.mean(rows[name]["test_accuracy"][-1])
        for name in ("rewind to 2", "random mask")
    )
    assert shuffled["ours"] == pytest.approx(ours - theirs, abs=1e-3)
    assert rewinding.rewind_steps(study.settings)[0] == 0


def test_it_draws_a_picture(outcome, tmp_path):
    path: Path = tmp_path / "rewinding.png"
    outcome.draw(path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("rewinds", [(0.1, 0.2), (0.0, 0.01), (0.0, 0.5, 0.2), (0, 1)])
def test_rewinds_that_cannot_be_meant_are_refused(rewinds):
    with pytest.raises(ExperimentError, match="ascend from 0"):
        rewinding.rewind_steps(SMALL._replace(rewinds=rewinds))


def test_pooling_takes_means_of_windows():
    images = np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2)
    found = tickets.pooled(2, images)
    assert found.shape == (1, 2, 2, 2)
    assert float(found[0, 0, 0, 0]) == np.mean([0, 2, 8, 10])
    assert tickets.pooled(2, np.arange(3)).tolist() == [0, 1, 2]


def test_anchors_lie_on_one_run():
    splits = jax.tree.map(jnp.asarray, data.load("digits"))
    draws = tickets.drawn(SMALL, splits.train)
    assert (draws.batches != draws.reordered).any()
    one = tickets.anchors(SMALL, splits.train, draws, [0, 4])
    two = tickets.anchors(SMALL, splits.train, draws, [0, 1, 4])
    same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(same, one[4], two[4])
    assert jax.tree.leaves(one[0][0])[0] is jax.tree.leaves(draws.params)[0]


def test_a_network_has_no_barrier_and_no_angle_to_itself():
    splits = jax.tree.map(jnp.asarray, data.load("digits"))
    params = tickets.drawn(SMALL, splits.train).params
    some = jax.tree.map(lambda x: x[:40], splits.validation)
    barrier = tickets.barriers(3, splits.train.images[:64], some, params, params)
    assert barrier.tolist() == [0, 0]
    masks = jax.tree.map(lambda w: jnp.ones(len(w), bool), params)
    l2, degrees = tickets.distances(masks, params, params)
    assert l2.tolist() == [0, 0]
    np.testing.assert_allclose(degrees, 0, atol=1e-4)


def test_answers_are_those_of_recalibrated_networks():
    splits = jax.tree.map(jnp.asarray, data.load("digits"))
    params = tickets.drawn(SMALL, splits.train).params
    images, labels = splits.test
    calibration = splits.train.images[:64]
    found = tickets.right_answers(calibration, params, images, labels)
    for i in range(2):
        one = jax.tree.map(lambda w, i=i: w[i], params)
        stats = jax.jit(resnet.batch_stats)(one, calibration)
        logits = jax.jit(resnet.apply)(one, images, stats)
        agree = np.mean((logits.argmax(-1) == labels) == found[i])
        assert agree > 0.99  # batched and alone round apart at ties


def test_the_pruner_takes_the_same_share_in_every_round():
    schedule = jp.geometric(1 - 0.64**6, steps=6, rounds=6)
    expected = [1 - 0.64 ** (r + 1) for r in range(6)]
    np.testing.assert_allclose([schedule(r) for r in range(6)], expected, rtol=1e-5)
