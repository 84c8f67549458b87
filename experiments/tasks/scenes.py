"""Synthetic pictures of coloured shapes for object detection.

A picture is a function of its PRNG key: a noisy background with up to four rectangles,
ellipses and triangles of random colours and proportions, which hardly overlap.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SIDE = 32  # pixels
CLASSES = 3  # rectangle, ellipse, triangle
MOST = 4  # objects in a picture
SIZES = (8.0, 18.0)  # range of the sides of an object, in pixels
NOISE = 0.15  # standard deviation; colours are in [-1, 1]
OVERLAP = 0.05  # the largest intersection over union of two objects


class Objects(NamedTuple):
    """Objects of pictures; leading axes are those of the pictures.

    Attributes:
      boxes: `(..., MOST, 4)`: x and y of the centre, width and height, in pixels.
      classes: `(..., MOST)`, int32 in `[0, CLASSES)`.
      present: `(..., MOST)`, booleans: whether the object is in the picture.
    """

    boxes: jax.Array
    classes: jax.Array
    present: jax.Array


def scenes(key: jax.Array, count: int) -> tuple[jax.Array, Objects]:
    """Returns pictures `(count, SIDE, SIDE, 3)` and their objects."""
    return jax.vmap(scene)(jax.random.split(key, count))


def scene(key: jax.Array) -> tuple[jax.Array, Objects]:
    """Returns a picture `(SIDE, SIDE, 3)` and its objects."""
    keys = jax.random.split(key, 6)
    sizes = jax.random.uniform(keys[0], (MOST, 2), minval=SIZES[0], maxval=SIZES[1])
    centres = jax.random.uniform(keys[1], (MOST, 2), minval=0.5, maxval=SIDE - 0.5)
    centres = jnp.clip(centres, sizes / 2, SIDE - sizes / 2)
    boxes = jnp.concatenate([centres, sizes], axis=-1)
    classes = jax.random.randint(keys[2], (MOST,), 0, CLASSES)
    colours = jax.random.uniform(keys[3], (MOST, 3), minval=-1.0, maxval=1.0)
    present = _apart(boxes)
    ground = 0.3 * jax.random.uniform(keys[4], (3,), minval=-1.0, maxval=1.0)
    picture = jnp.broadcast_to(ground, (SIDE, SIDE, 3))
    for i in range(MOST):  # later objects are drawn over earlier ones
        inside = shape(classes[i], boxes[i]) & present[i]
        picture = jnp.where(inside[..., None], colours[i], picture)
    noise = jax.random.normal(keys[5], picture.shape)
    return picture + NOISE * noise, Objects(boxes, classes, present)


def shape(kind: jax.Array, box: jax.Array) -> jax.Array:
    """Returns the mask `(SIDE, SIDE)` of the pixels that a shape covers."""
    at = jnp.arange(SIDE) + 0.5
    across = (at[None, :] - box[0]) / (box[2] / 2)  # in [-1, 1] within the box
    down = (at[:, None] - box[1]) / (box[3] / 2)
    rectangle = (jnp.abs(across) <= 1) & (jnp.abs(down) <= 1)
    ellipse = jnp.square(across) + jnp.square(down) <= 1
    triangle = rectangle & (jnp.abs(across) <= (down + 1) / 2)
    return jnp.stack([rectangle, ellipse, triangle])[kind]


def overlaps(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """Returns the intersection over union of all pairs of boxes, `(n, m)`."""
    centres, sizes = boxes[:, None, :2], boxes[:, None, 2:]
    far = jnp.minimum(
        centres + sizes / 2, others[None, :, :2] + others[None, :, 2:] / 2
    )
    near = jnp.maximum(
        centres - sizes / 2, others[None, :, :2] - others[None, :, 2:] / 2
    )
    both = jnp.maximum(far - near, 0.0).prod(-1)
    return both / (sizes.prod(-1) + others[None, :, 2:].prod(-1) - both)


def _apart(boxes: jax.Array) -> jax.Array:
    """Mask of the boxes to keep so that no two overlap; the first is kept."""
    close = overlaps(boxes, boxes) > OVERLAP
    present = jnp.zeros(MOST, bool).at[0].set(True)
    for i in range(1, MOST):
        present = present.at[i].set(~(close[i, :i] & present[:i]).any())
    return present
