"""The type of an architecture, and random values for its parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NOISE = 0.2  # standard deviation of biases, and of scales about 1


class Architecture(NamedTuple):
    """A network as a pure function, with parameters and inputs to run it on.

    Attributes:
      fn: `fn(params, *inputs) -> outputs`.
      params: pytree of arrays.
      inputs: example arrays.
      stateful: whether `fn` returns `(outputs, new_state)`, where the paths in
        `new_state` are ends of those in params.
      dimensions: the axes of each input as `jax.export` writes them, such as "b, t, _"
        where the batch and the length may vary; () for "b, ..." of every input.
    """

    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    stateful: bool = False
    dimensions: tuple[str, ...] = ()


Builder = Callable[[jax.Array], Architecture]


def normal(key: jax.Array, *shape: int) -> jax.Array:
    """Returns standard normal float32 values of the given shape."""
    return jax.random.normal(key, shape, jnp.float32)


def tokens(key: jax.Array, vocabulary: int, *shape: int) -> jax.Array:
    """Returns random int32 tokens below `vocabulary`."""
    return jax.random.randint(key, shape, 0, vocabulary, jnp.int32)


def draw(key: jax.Array, abstract: Any, outputs: int = -1) -> Any:
    """Returns generic random values for every leaf, whatever its usual initial value.

    Biases, means and vectors have standard deviation `NOISE` about 0, and scales about
    1; variances are log-normal; other leaves have variance 1 / fan-in. So nothing is 0
    or 1 by default: zero-initialized gates and adapters have an effect.

    There is one draw for all leaves, which NumPy splits: compiling a draw for each leaf
    would take XLA longer than compiling most of these networks.

    Args:
      key: PRNG key.
      abstract: tree of `jax.ShapeDtypeStruct`, all floating. The last name of a leaf's
        path says what it is: `bias`, `mean`, `var`, `scale`, or `weight` for a vector.
      outputs: the axis of larger leaves that is not in their fan-in.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    ends = np.cumsum([math.prod(leaf.shape) for _, leaf in leaves])
    noise = np.asarray(jax.random.normal(key, (int(ends[-1]),), jnp.float32))
    values = [
        _value(jax.tree_util.keystr(path[-1:], simple=True), leaf, piece, outputs)
        for piece, (path, leaf) in zip(np.split(noise, ends[:-1]), leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, values)


def _value(
    name: str, leaf: jax.ShapeDtypeStruct, noise: np.ndarray, outputs: int
) -> jax.Array:
    noise = noise.reshape(leaf.shape)
    vector = leaf.ndim <= 1
    if name == "var":
        value = np.exp(NOISE * noise)
    elif vector and name in ("scale", "weight"):
        value = 1 + NOISE * noise
    elif vector or name == "bias":
        value = NOISE * noise
    else:
        value = noise * math.sqrt(leaf.shape[outputs] / leaf.size)
    return jnp.asarray(value, leaf.dtype)
