"""Loss, box decoding and average precision of a detector.

An object is assigned to one cell of one scale: the cell that contains its centre, of
the scale whose anchor is closest to its size. Boxes are x and y of the centre, width
and height, in pixels.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.models.detector import STRIDES
from experiments.tasks.scenes import Objects, overlaps

ANCHORS = (9.0, 15.0)  # side of the anchor box at each scale
OVERLAP = 0.5  # IoU above which boxes match, and are duplicates


class Found(NamedTuple):
    """Boxes with scores; leading axes are those of the pictures.

    Attributes:
      boxes: `(..., cells, 4)`.
      classes: `(..., cells)`, int32.
      scores: `(..., cells)`, in [0, 1]; 0 for boxes that were suppressed.
    """

    boxes: jax.Array
    classes: jax.Array
    scores: jax.Array


def decode(output: jax.Array, stride: int, anchor: float) -> jax.Array:
    """Returns the box of each cell of a scale, `(height, width, 4)`.

        centre = stride (cell + 2 sigmoid(t) - 0.5),    size = anchor (2 sigmoid(s))^2

    Args:
      output: `(height, width, 5 + classes)`.
      stride: side of a cell in pixels.
      anchor: side of the anchor in pixels.

    References:
      The parametrization is that of YOLOv5's code: sizes are at most four anchors.
    """
    height, width = output.shape[:2]
    cells = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1)
    centres = stride * (cells + 2 * jax.nn.sigmoid(output[..., :2]) - 0.5)
    sizes = anchor * jnp.square(2 * jax.nn.sigmoid(output[..., 2:4]))
    return jnp.concatenate([centres, sizes], axis=-1)


def assigned(objects: Objects, scale: int, side: int) -> tuple[jax.Array, ...]:
    """Returns the target of each cell of a scale for one picture.

    Args:
      objects: objects of the picture.
      scale: index of the scale.
      side: number of cells along each side.

    Returns:
      `(held, box, class)`, each with leading axes `(side, side)`; box and class are
      meaningless where `held` is False.
    """
    size = jnp.sqrt(objects.boxes[:, 2:].prod(-1))
    # Nearest in logarithms, so the border is the geometric mean of the anchors.
    ratios = jnp.log(size[:, None] / jnp.array(ANCHORS)[None])
    mine = objects.present & (jnp.abs(ratios).argmin(1) == scale)
    cell = jnp.floor(objects.boxes[:, :2] / STRIDES[scale]).astype(jnp.int32)
    # Other objects are written out of bounds, which drops them.
    at = jnp.where(mine, cell[:, 1], side), jnp.where(mine, cell[:, 0], side)
    held = jnp.zeros((side, side), bool).at[at].set(True, mode="drop")
    boxes = jnp.ones((side, side, 4)).at[at].set(objects.boxes, mode="drop")
    classes = jnp.zeros((side, side), jnp.int32)
    return held, boxes, classes.at[at].set(objects.classes, mode="drop")


def loss(outputs: tuple[jax.Array, ...], objects: Objects) -> jax.Array:
    """Returns the loss of a batch: boxes, objectness and classes.

    The sum over all pictures, divided by the number of objects, of 1 - GIoU and the
    cross-entropy of classes for cells with an object, and of the binary cross-entropy
    of objectness for all cells.

    Args:
      outputs: outputs of `detector.forward` for each scale.
      objects: objects of the batch.

    References:
      Rezatofighi et al., Generalized Intersection over Union: A Metric and A Loss for
      Bounding Box Regression, 2019, arXiv:1902.09630.
    """
    total = jnp.zeros(())
    for scale, output in enumerate(outputs):
        find = functools.partial(assigned, scale=scale, side=output.shape[1])
        held, boxes, classes = jax.vmap(find)(objects)
        read = functools.partial(decode, stride=STRIDES[scale], anchor=ANCHORS[scale])
        apart = 1 - generalized_overlap(jax.vmap(read)(output), boxes)
        wrong = optax.losses.softmax_cross_entropy_with_integer_labels(
            output[..., 5:], classes
        )
        present = optax.losses.sigmoid_binary_cross_entropy(
            output[..., 4], held.astype(output.dtype)
        )
        total += jnp.where(held, 2 * apart + wrong, 0.0).sum() + present.sum()
    return total / jnp.maximum(objects.present.sum(), 1)


def generalized_overlap(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """Returns the GIoU of pairs of boxes: IoU - (hull - union) / hull."""
    ends = [
        (b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
        for b in (boxes, others)
    ]
    (near, far), (other_near, other_far) = ends
    both = jnp.maximum(jnp.minimum(far, other_far) - jnp.maximum(near, other_near), 0)
    both = both.prod(-1)
    union = boxes[..., 2:].prod(-1) + others[..., 2:].prod(-1) - both
    hull = (jnp.maximum(far, other_far) - jnp.minimum(near, other_near)).prod(-1)
    return both / union - (hull - union) / hull


def detect(outputs: tuple[jax.Array, ...]) -> Found:
    """Returns the boxes of one picture, after non-maximum suppression per class.

    Args:
      outputs: for each scale `(height, width, 5 + classes)`.
    """
    boxes, scores, classes = [], [], []
    for output, stride, anchor in zip(outputs, STRIDES, ANCHORS, strict=True):
        likely = jax.nn.softmax(output[..., 5:])
        boxes.append(decode(output, stride, anchor).reshape(-1, 4))
        scores.append((jax.nn.sigmoid(output[..., 4]) * likely.max(-1)).reshape(-1))
        classes.append(likely.argmax(-1).reshape(-1))
    return suppressed(*map(jnp.concatenate, (boxes, classes, scores)))


def suppressed(boxes: jax.Array, classes: jax.Array, scores: jax.Array) -> Found:
    """Sorts boxes by score and sets the score of overlapped ones to 0."""
    order = jnp.argsort(-scores, stable=True)
    boxes, classes, scores = boxes[order], classes[order], scores[order]
    close = overlaps(boxes, boxes) > OVERLAP
    close &= classes[:, None] == classes[None, :]
    better = jnp.arange(len(scores))

    def turn(i: jax.Array, stays: jax.Array) -> jax.Array:
        return stays.at[i].set(~(close[i] & stays & (better < i)).any())

    stays = jax.lax.fori_loop(1, len(scores), turn, jnp.ones(len(scores), bool))
    return Found(boxes, classes, jnp.where(stays, scores, 0.0))


def mean_average_precision(found: Any, objects: Any, classes: int) -> float:
    """Returns the mean over classes of the average precision at an overlap of 1/2.

    A box is a true positive if its IoU with an object of its class in its picture is
    above 1/2, and no box of a higher score has matched that object.

    Args:
      found: `Found` of many pictures.
      objects: `Objects` of the same pictures.
      classes: number of classes; classes without any object do not count.

    Returns:
      In [0, 1].
    """
    boxes, kinds, scores = (np.asarray(x) for x in found)
    each = []
    for kind in range(classes):
        wanted = np.asarray(objects.present & (objects.classes == kind))
        if not wanted.any():
            continue
        ranked, hits = [], []
        for i in np.arange(len(boxes)):
            mine = np.flatnonzero((kinds[i] == kind) & (scores[i] > 0))
            truth = np.asarray(objects.boxes[i])[wanted[i]]
            hits += _hits(boxes[i][mine], truth)  # boxes are sorted by score
            ranked += scores[i][mine].tolist()
        each.append(average_precision(np.array(ranked), np.array(hits), wanted.sum()))
    return float(np.mean(each))


def _hits(boxes: np.ndarray, truth: np.ndarray) -> list[bool]:
    """For each box of a picture, best first, whether it is a true positive."""
    if not len(truth):
        return [False] * len(boxes)
    shared = _overlaps(boxes, truth)
    free, hits = np.ones(len(truth), bool), []
    for row in shared:
        best = np.argmax(np.where(free, row, 0))
        hits.append(bool(free[best] and row[best] > OVERLAP))
        free[best] &= not hits[-1]
    return hits


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    a, b = boxes[:, None], others[None]
    far = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    near = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    both = np.maximum(far - near, 0).prod(-1)
    return both / (a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - both)


def average_precision(scores: np.ndarray, hits: np.ndarray, count: int) -> float:
    """Returns the exact area under the precision-recall curve.

    The precision at a recall is the maximum at that recall or a higher one.

    Args:
      scores: `(n,)` scores; equal scores keep their order.
      hits: `(n,)` booleans, true positives.
      count: number of objects, positive.

    References:
      The metric of the PASCAL VOC challenge from 2010 on.
    """
    # Not scikit-learn's `average_precision_score`: it does not take the maximum, and
    # leaves out objects that no box has found.
    if not len(scores):
        return 0.0
    right = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    gained = np.diff(right, prepend=0) / count
    return float((gained * precision).sum())
