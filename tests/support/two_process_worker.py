"""One of two processes that select from, and train, weights that both hold.

`test_two_processes.py` runs it twice. Each process writes its shards of all masks;
nothing is gathered.
"""

import contextlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jprune as jp
from jprune import selection

SHAPES = {"a": (16, 24), "b": (24, 8), "c": (33,), "d": (16, 8), "e": ()}
SPECS = {"a": ("x",), "b": (None, "x"), "c": (), "d": ("x",), "e": ()}
FLOORS = {"a": 9, "b": 190, "c": 0, "d": 40, "e": 1}
K = sum(int(np.prod(shape)) for shape in SHAPES.values()) // 3
TX = jp.sparsify(
    optax.adamw(1e-2),
    jp.recipes.gradual_magnitude(0.8, begin=0, steps=4, scope="global"),
)


def host(seed: int = 0) -> dict[str, np.ndarray]:
    """Scores that often tie, also across devices; `d` in half precision."""
    rng = np.random.default_rng(seed)
    tree = {k: rng.integers(0, 6, s).astype(np.float32) for k, s in SHAPES.items()}
    return {**tree, "d": tree["d"].astype(jnp.bfloat16)}


def select(scores, k):
    """All kinds of selection."""
    pruner = jp.keep_n_of_m(2, 4)
    matrices = {key: x for key, x in scores.items() if np.ndim(x) == 2}
    return {
        "global": selection.top_k(scores, k),
        "leaf": selection.top_k_per_leaf(scores, FLOORS),
        "floors": selection.top_k_with_floors(scores, k, FLOORS),
        "n of m": pruner.update(matrices, pruner.init(matrices), matrices)[0],
    }


def params(seed: int = 1) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "one": {"kernel": rng.normal(size=(16, 24)).astype(np.float32)},
        "two": {"kernel": rng.normal(size=(24, 8)).astype(np.float32)},
        "norm": {"bias": rng.normal(size=(8,)).astype(np.float32)},
    }


@jax.jit
def train_step(params, state, step):
    """Gradients that depend on each weight alone: no order of a sum matters."""
    grads = jax.tree.map(lambda w: w * (1 + step / 8) - 0.25, params)
    updates, state = TX.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(params) -> dict:
    state = jax.jit(TX.init)(params)
    for step in range(5):
        params, state = train_step(params, state, jnp.float32(step))
    return {"params": params, "masks": jp.masks_of(state, params)}


def shards(tree) -> dict[str, np.ndarray]:
    """What this process holds of a tree: path, and where it starts, to values."""
    found = {}
    for path, x in zip(jp.leaf_paths(tree), jax.tree.leaves(tree), strict=True):
        if not isinstance(x, jax.Array):
            x = jnp.asarray(x)
        for shard in x.addressable_shards:
            starts = [i.start or 0 for i in shard.index]
            found[f"{path} {starts}"] = np.asarray(shard.data)
    return found


def by_hand(place) -> dict:
    """Selections that a loop on the host drives."""
    scores = {key: place(x, SPECS[key]) for key, x in host().items()}
    return {"masks": select(scores, K), "counts": selection.count_top_k(scores, K)}


def compiled(place) -> dict:
    """The same selections in one program, and a training."""
    scores = {key: place(x, SPECS[key]) for key, x in host().items()}
    weights = jax.tree.map(lambda w: place(w, ("x",) * (w.ndim == 2)), params())
    masks = jax.jit(select)(scores, np.int32(K))
    return {"masks": masks, "trained": train(weights)}


# Explicit axes refuse more, and a program that runs piece by piece meets them more.
RUNS = {
    "by hand": (by_hand, jax.sharding.AxisType.Explicit),
    "compiled": (compiled, jax.sharding.AxisType.Auto),
}


def main() -> None:
    address, process, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    assert (jax.process_count(), jax.device_count()) == (2, 4)

    for name, (run, kind) in RUNS.items():
        mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))

        def place(x, spec, mesh=mesh):
            sharding = jax.NamedSharding(mesh, jax.P(*spec))
            return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

        explicit = kind == jax.sharding.AxisType.Explicit
        with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
            found = run(place)
        if explicit:  # the others' shardings are XLA's choice
            for masks in found["masks"].values():
                for key, mask in masks.items():
                    like = place(np.zeros(SHAPES[key]), SPECS[key])
                    same = mask.sharding.is_equivalent_to(like.sharding, like.ndim)
                    assert same, (key, mask.sharding)
        np.savez(directory / f"{name}-{process}.npz", **shards(found))
    print("done", flush=True)


if __name__ == "__main__":
    main()
