"""Converts modules of Flax Linen, Flax NNX and Equinox to an `Architecture`.

Modules are initialized abstractly; `base.draw` draws the values.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from flax import linen as nn
from flax import nnx

from experiments.models.zoo.base import Architecture, draw


def from_linen(
    key: jax.Array,
    module: nn.Module,
    *inputs: Any,
    mutable: Any = False,
    dimensions: tuple[str, ...] = (),
) -> Architecture:
    """Converts a Linen module; its params are all of its collections.

    Args:
      key: PRNG key.
      module: the module; its `__call__` takes the inputs.
      *inputs: example arrays.
      mutable: collections that `fn` returns with the outputs.
      dimensions: axes of the inputs, as in `Architecture`.
    """
    variables = jax.eval_shape(module.init, key, *inputs)

    def fn(variables: Any, *inputs: Any) -> Any:
        return module.apply(variables, *inputs, mutable=mutable)

    return Architecture(fn, draw(key, variables), inputs, bool(mutable), dimensions)


def from_nnx(
    key: jax.Array,
    make: Callable[[nnx.Rngs], nnx.Module],
    *inputs: Any,
    stateful: bool = False,
    dimensions: tuple[str, ...] = (),
) -> Architecture:
    """Converts an NNX module; its params are its state as a nested dict.

    Args:
      key: PRNG key.
      make: the module's class, or another function of `nnx.Rngs`.
      *inputs: example arrays.
      stateful: whether `fn` returns the batch statistics after the call, too.
      dimensions: axes of the inputs, as in `Architecture`.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(key))))

    def fn(state: Any, *inputs: Any) -> Any:
        module: Any = nnx.merge(graph, state)
        outputs = module(*inputs)
        if not stateful:
            return outputs
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    params = draw(key, nnx.to_pure_dict(state))
    return Architecture(fn, params, inputs, stateful, dimensions)


def from_equinox(
    key: jax.Array,
    make: Callable[[jax.Array], eqx.Module],
    *inputs: Any,
    batched: bool = True,
    dimensions: tuple[str, ...] = (),
) -> Architecture:
    """Converts an Equinox module; its params are its arrays, and None for all else.

    Args:
      key: PRNG key.
      make: the module's class, or another function of a key.
      *inputs: example arrays.
      batched: whether the module takes one example, so that `fn` maps it over the
        leading axes.
      dimensions: axes of the inputs, as in `Architecture`.
    """
    abstract, static = eqx.partition(
        eqx.filter_eval_shape(make, key),
        lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct),
    )

    def fn(arrays: Any, *inputs: Any) -> Any:
        module: Any = eqx.combine(arrays, static)
        return jax.vmap(module)(*inputs) if batched else module(*inputs)

    params = draw(key, abstract, outputs=0)
    return Architecture(fn, params, inputs, dimensions=dimensions)
