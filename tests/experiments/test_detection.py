"""Detection: boxes, losses and average precision, by hand and by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.loops import detection
from experiments.models import detector
from experiments.tasks import scenes
from jprune import graph as jg

pytestmark = pytest.mark.others_code


def _boxes(rng, n):
    return np.concatenate([rng.uniform(5, 27, (n, 2)), rng.uniform(3, 12, (n, 2))], 1)


def _iou(a, b):
    """Of two boxes, by counting cells of a fine grid."""
    at = (np.arange(1600) + 0.5) / 1600 * 32

    def inside(box):
        along = [np.abs(at - box[i]) < box[2 + i] / 2 for i in (0, 1)]
        return along[1][:, None] & along[0][None]

    x, y = inside(a), inside(b)
    return (x & y).sum() / (x | y).sum()


def test_overlaps_by_counting():
    rng = np.random.default_rng(0)
    boxes, others = _boxes(rng, 5), _boxes(rng, 4)
    wanted = [[_iou(a, b) for b in others] for a in boxes]
    found = scenes.overlaps(jnp.float32(boxes), jnp.float32(others))
    np.testing.assert_allclose(found, wanted, atol=0.01)
    np.testing.assert_allclose(detection._overlaps(boxes, others), found, atol=1e-5)


def test_generalized_overlap_by_hand():
    """Equal, half inside each other, and apart by as much as they are wide."""
    one = jnp.array([[4.0, 4.0, 4.0, 4.0]] * 3)
    other = jnp.array([[4.0, 4, 4, 4], [6.0, 4, 4, 4], [12.0, 4, 4, 4]])
    found = detection.generalized_overlap(one, other)
    np.testing.assert_allclose(found, [1, 1 / 3, 0 - 1 / 3], rtol=1e-6, atol=1e-6)


def test_scenes_are_what_their_boxes_say():
    """Without noise: pixels differ from the ground within boxes, up to their edges."""
    images, objects = jax.jit(lambda k: scenes.scenes(k, 40))(jax.random.key(0))
    assert images.shape == (40, 32, 32, 3)
    assert objects.present[:, 0].all()
    assert 1.5 < objects.present.sum(1).mean() < scenes.MOST
    for boxes, present in zip(objects.boxes, objects.present, strict=True):
        left = np.asarray(boxes)[np.asarray(present)]
        shared = detection._overlaps(left, left)
        assert (shared[~np.eye(len(left), dtype=bool)] <= scenes.OVERLAP).all()
        assert (left[:, :2] - left[:, 2:] / 2 >= -1e-4).all()
        assert (left[:, :2] + left[:, 2:] / 2 <= scenes.SIDE + 1e-4).all()
    for kind, area in ((0, 1.0), (1, np.pi / 4), (2, 0.5)):
        covered = scenes.shape(jnp.int32(kind), jnp.array([16.0, 15.0, 20.0, 12.0]))
        rows, columns = np.nonzero(covered)
        assert (rows.min(), rows.max(), columns.max()) == (9 + (kind == 2), 20, 25)
        np.testing.assert_allclose(covered.sum(), area * 240, rtol=0.06)


def _perfect(objects):
    """Raw outputs that say exactly what is in a picture: the inverse of decoding."""
    outputs = []
    for scale, side in enumerate((8, 4)):
        held, boxes, classes = detection.assigned(objects, scale, side)
        stride, anchor = detector.STRIDES[scale], detection.ANCHORS[scale]
        cells = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)
        at = (np.asarray(boxes[..., :2], np.float64) / stride - cells + 0.5) / 2
        size = np.sqrt(np.asarray(boxes[..., 2:], np.float64) / anchor) / 2
        logit = lambda p: np.log(p / (1 - p))  # noqa: E731
        kinds = 20.0 * np.eye(scenes.CLASSES)[np.asarray(classes)]
        sure = np.where(held, 20.0, -20.0)[..., None]
        with np.errstate(invalid="ignore", divide="ignore"):
            raw = np.concatenate([logit(at), logit(size), sure, kinds], -1)
        outputs.append(jnp.float32(np.where(np.asarray(held)[..., None], raw, -20.0)))
    return tuple(outputs)


def test_perfect_outputs_are_right_and_cost_nothing():
    images, objects = scenes.scenes(jax.random.key(1), 20)
    del images
    each = [_perfect(jax.tree.map(lambda x, i=i: x[i], objects)) for i in range(20)]
    outputs = tuple(map(jnp.stack, zip(*each, strict=True)))
    found = jax.vmap(detection.detect)(outputs)
    held = sum(int((o[..., 4] > 0).sum()) for o in outputs)
    assert held == int((found.scores > 0.5).sum())
    # Two objects of one cell cannot both be found; there are next to none.
    assert held >= int(objects.present.sum()) - 1
    best = detection.mean_average_precision(found, objects, scenes.CLASSES)
    assert best == pytest.approx(1.0, abs=0.03)
    assert detection.loss(outputs, objects) == pytest.approx(0.0, abs=1e-4)
    shifted = tuple(o.at[..., 4].set(-o[..., 4]) for o in outputs)
    assert detection.loss(shifted, objects) > 20
    slopes = jax.grad(detection.loss)(outputs, objects)
    assert all(np.isfinite(s).all() for s in slopes)


def test_suppression_by_a_loop():
    rng = np.random.default_rng(2)
    boxes = _boxes(rng, 60)
    classes, scores = rng.integers(0, 2, 60), rng.uniform(0.1, 1, 60)
    wanted = []
    for i in np.argsort(-scores):
        rivals = [j for j in wanted if classes[j] == classes[i]]
        if all(detection._overlaps(boxes[[i]], boxes[[j]]) <= 0.5 for j in rivals):
            wanted.append(i)
    assert 20 < len(wanted) < 60
    found = detection.suppressed(
        *map(jnp.asarray, (np.float32(boxes), classes, scores))
    )
    stays = np.asarray(found.scores) > 0
    np.testing.assert_allclose(found.scores[stays], scores[wanted], rtol=1e-6)
    np.testing.assert_allclose(found.boxes[stays], boxes[wanted], rtol=1e-6)


@pytest.mark.parametrize(
    ("hits", "count", "wanted"),
    [
        ([1, 1], 2, 1.0),
        ([1, 1], 4, 0.5),
        ([0, 0], 1, 0.0),
        ([0, 1], 1, 0.5),
        # Recall 1/3 at precision 1, 2/3 and 1 at 3/4: the second wins by the third.
        ([1, 0, 1, 1], 3, 1 / 3 + 2 / 3 * 3 / 4),
        ([], 3, 0.0),
    ],
)
def test_average_precision_by_hand(hits, count, wanted):
    scores = np.linspace(0.9, 0.1, len(hits))
    order = np.random.default_rng(0).permutation(len(hits))
    found = detection.average_precision(
        scores[order], np.array(hits, bool)[order], count
    )
    assert found == pytest.approx(wanted, abs=1e-12)


def test_average_precision_by_the_definition():
    """For each recall the best precision at it or beyond."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        hits, extra = rng.random(30) < 0.4, rng.integers(0, 5)
        count = max(int(hits.sum() + extra), 1)
        right = np.cumsum(hits)
        points = [(right[i] / count, right[i] / (i + 1)) for i in range(30)]
        wanted = sum(
            max((p for r, p in points if r >= k / count), default=0.0) / count
            for k in range(1, count + 1)
        )
        found = detection.average_precision(-np.arange(30.0), hits, count)
        assert found == pytest.approx(wanted, abs=1e-12)


def test_a_second_box_on_an_object_is_wrong():
    box = [10.0, 10, 8, 8]
    found = detection.Found(
        np.array([[box, box, [20.0, 20, 4, 4]]]),
        np.array([[0, 0, 1]]),
        np.array([[0.9, 0.8, 0.7]]),
    )
    objects = scenes.Objects(
        np.array([[box, [20.0, 20, 4, 4]]]),
        np.array([[0, 1]]),
        np.array([[True, True]]),
    )
    assert detection.mean_average_precision(found, objects, 3) == 1.0
    assert detection._hits(found.boxes[0], objects.boxes[0]) == [True, False, True]
    other = objects._replace(present=np.array([[True, False]]))
    assert detection.mean_average_precision(found, other, 3) == 1.0
    missed = found._replace(scores=np.array([[0.0, 0.8, 0.0]]))
    assert detection.mean_average_precision(missed, objects, 3) == 0.5


def test_the_detector_learns_and_all_its_channels_may_go():
    params = detector.init(jax.random.key(0), scenes.CLASSES, width=4)
    images, objects = scenes.scenes(jax.random.key(1), 8)
    tx = optax.adam(1e-2)

    def loss(params):
        return detection.loss(detector.forward(params, images).outputs, objects)

    @jax.jit
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    _, values = jax.lax.scan(step, (params, tx.init(params)), length=60)
    assert values[-1] < 0.5 * values[0]

    def outputs(params, images):
        return detector.forward(params, images).outputs

    graph = jg.trace(outputs, params, images)
    units = [path for path in graph.axes if path.endswith("norm/scale")]
    # One group for each unit, but the shortcut ties two units twice.
    assert len(graph.groups) == len(units) - 2
    assert not any("heads" in name for name in graph.groups)
    halves = {n: np.arange(g.size // 2) for n, g in graph.groups.items()}
    small, left = jg.shrink(graph, params, jg.make_plan(graph, halves))
    keep = {n: np.arange(g.size) < g.size // 2 for n, g in graph.groups.items()}
    ours, full = (
        jax.jit(small)(left, images),
        jg.without_entries(graph, keep)(params, images),
    )
    for a, b in zip(ours, full, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert left["heads"]["fine"]["kernel"].shape == (1, 1, 4, 5 + scenes.CLASSES)
