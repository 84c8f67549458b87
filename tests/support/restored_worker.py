"""Restores a model that `test_save.py` saved, in a process without any of its code.

Both processes draw the same inputs and measure values and gradients. It writes what it
finds beside the model, and ends with an error if a framework was imported.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jprune as jp
from jprune import graph as jg

SIZES = [(1, 4), (3, 1), (8, 6)]  # batch and length: both are symbolic


def draw(sizes):
    """Tokens and a key."""
    tokens = np.random.default_rng(sizes).integers(0, 10, sizes)
    return jnp.asarray(tokens, jnp.int32), jax.random.key(1)


def measure(fn, params, inputs):
    """Path -> gradients of the sum of the results' squares, and results, as float32."""

    def loss(params):
        results = fn(params, *inputs)
        squares = [jnp.square(x.astype(float)).sum() for x in jax.tree.leaves(results)]
        return sum(squares), results

    found = jax.jit(jax.grad(loss, has_aux=True))(params)
    return {p: np.asarray(x, np.float32) for p, x in jp.tree.by_path(found).items()}


def main():
    path = Path(sys.argv[1])
    jax.config.update("jax_disable_most_optimizations", True)
    saved = jg.restore(path)
    for sizes in SIZES:
        found = measure(saved.fn, saved.params, draw(sizes))
        np.savez(path.with_name(f"{sizes[0]}.npz"), **found)
    assert not {"flax", "equinox"} & set(sys.modules)


if __name__ == "__main__":
    main()
