"""From a module of Flax Linen, Flax NNX or Equinox to an `Architecture`.

Modules are initialized abstractly; `base.draw` fills in the values.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from flax import linen as nn
from flax import nnx

from experiments.models.zoo.base import Architecture, draw


def from_linen(
    key: jax.Array, module: nn.Module, *inputs: Any, mutable: Any = False
) -> Architecture:
    """Returns a Linen module; its params are all of its collections.

    Args:
      key: PRNG key.
      module: The module; its `__call__` takes the inputs.
      *inputs: Example arrays.
      mutable: Collections that `fn` returns beside the outputs.
    """
    variables = jax.eval_shape(module.init, key, *inputs)

    def fn(variables: Any, *inputs: Any) -> Any:
        return module.apply(variables, *inputs, mutable=mutable)

    return Architecture(fn, draw(key, variables), inputs)


def from_nnx(
    key: jax.Array, make: Callable[[nnx.Rngs], nnx.Module], *inputs: Any
) -> Architecture:
    """Returns an NNX module; its params are its state as a nested dict.

    Args:
      key: PRNG key.
      make: The module's class, or another function of `nnx.Rngs`.
      *inputs: Example arrays.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(key))))

    def fn(state: Any, *inputs: Any) -> Any:
        module: Any = nnx.merge(graph, state)
        return module(*inputs)

    return Architecture(fn, draw(key, nnx.to_pure_dict(state)), inputs)


def from_equinox(
    key: jax.Array,
    make: Callable[[jax.Array], eqx.Module],
    *inputs: Any,
    batched: bool = True,
) -> Architecture:
    """Returns an Equinox module; its params are its arrays, None for all else.

    Args:
      key: PRNG key.
      make: The module's class, or another function of a key.
      *inputs: Example arrays.
      batched: The module takes one example: `fn` maps it over the leading axes.
    """
    abstract, static = eqx.partition(
        eqx.filter_eval_shape(make, key),
        lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct),
    )

    def fn(arrays: Any, *inputs: Any) -> Any:
        module: Any = eqx.combine(arrays, static)
        return jax.vmap(module)(*inputs) if batched else module(*inputs)

    return Architecture(fn, draw(key, abstract, outputs=0), inputs)
