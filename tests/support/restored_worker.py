"""Restores models that `test_save.py` saved, in a process without any of their code.

Both processes draw the same inputs and measure values and gradients. It writes what it
finds beside each model, and ends with an error if a framework was imported.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jprune as jp
from jprune import graph as jg

# Name of a model -> batches and lengths, as for what is saved with symbolic ones.
SIZES = {
    "decoder": [(1, 4), (3, 1), (8, 6)],
    "nnx": [(2,), (3,), (8,)],
}


def draw(name, sizes):
    """Inputs of a model, of given sizes."""
    rng = np.random.default_rng(sizes)
    if name == "decoder":
        return jnp.asarray(rng.integers(0, 10, sizes), jnp.int32), jax.random.key(1)
    images = jnp.asarray(rng.normal(size=(*sizes, 5, 5, 3)), jnp.float32)
    return (images,)


def measure(fn, params, inputs):
    """Path -> results, and gradients of the sum of their squares, as float32."""

    def loss(params):
        results = fn(params, *inputs)
        floats = [
            x
            for x in jax.tree.leaves(results)
            if jax.dtypes.issubdtype(x.dtype, jnp.floating)
        ]
        return sum(jnp.square(x.astype(jnp.float32)).sum() for x in floats), results

    found = jax.jit(jax.grad(loss, has_aux=True, allow_int=True))(params)
    return {
        f"{i}/{path}": np.asarray(x, np.float32)
        for i, each in enumerate(found)
        for path, x in jp.tree.by_path(each).items()
        if x.dtype != jax.dtypes.float0
        and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    }


def main():
    directory = Path(sys.argv[1])
    jax.config.update("jax_disable_most_optimizations", True)
    for name, every in SIZES.items():
        saved = jg.restore(directory / name)
        for sizes in every:
            found = measure(saved.fn, saved.params, draw(name, sizes))
            np.savez(directory / f"{name}-{sizes[0]}.npz", **found)
    assert not {"flax", "equinox"} & set(sys.modules)


if __name__ == "__main__":
    main()
