"""Pictures of coloured shapes to find, drawn as they are needed.

A picture follows from its key: a ground with noise, and up to four rectangles,
ellipses and triangles of any colour and proportions that hardly overlap.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SIDE = 32  # pixels
CLASSES = 3  # rectangle, ellipse, triangle
MOST = 4  # objects in a picture
SIZES = (8.0, 18.0)  # of a side of an object
NOISE = 0.15  # standard deviation; colours are in [-1, 1]
OVERLAP = 0.05  # the largest intersection over union of two objects


class Objects(NamedTuple):
    """What is to be found; of pictures with leading axes.

    Attributes:
      boxes: `(..., MOST, 4)`: x and y of the centre, width and height, in pixels.
      classes: `(..., MOST)`, int32 in `[0, CLASSES)`.
      present: `(..., MOST)`, bools: the others are not in the picture.
    """

    boxes: jax.Array
    classes: jax.Array
    present: jax.Array


def scenes(key: jax.Array, count: int) -> tuple[jax.Array, Objects]:
    """Returns pictures `(count, SIDE, SIDE, 3)` and what is in them."""
    return jax.vmap(scene)(jax.random.split(key, count))


def scene(key: jax.Array) -> tuple[jax.Array, Objects]:
    """Returns a picture `(SIDE, SIDE, 3)` and what is in it."""
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
    for i in range(MOST):  # drawn one over the other
        inside = shape(classes[i], boxes[i]) & present[i]
        picture = jnp.where(inside[..., None], colours[i], picture)
    noise = jax.random.normal(keys[5], picture.shape)
    return picture + NOISE * noise, Objects(boxes, classes, present)


def shape(kind: jax.Array, box: jax.Array) -> jax.Array:
    """Returns which pixels `(SIDE, SIDE)` a shape covers."""
    at = jnp.arange(SIDE) + 0.5
    across = (at[None, :] - box[0]) / (box[2] / 2)  # in [-1, 1] within the box
    down = (at[:, None] - box[1]) / (box[3] / 2)
    rectangle = (jnp.abs(across) <= 1) & (jnp.abs(down) <= 1)
    ellipse = jnp.square(across) + jnp.square(down) <= 1
    triangle = rectangle & (jnp.abs(across) <= (down + 1) / 2)
    return jnp.stack([rectangle, ellipse, triangle])[kind]


def overlaps(boxes: jax.Array, others: jax.Array) -> jax.Array:
    """Returns intersection over union of all pairs of boxes, `(n, m)`."""
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
    """Which boxes stay so that no two overlap; the first does."""
    close = overlaps(boxes, boxes) > OVERLAP
    present = jnp.zeros(MOST, bool).at[0].set(True)
    for i in range(1, MOST):
        present = present.at[i].set(~(close[i, :i] & present[:i]).any())
    return present
