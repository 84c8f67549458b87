"""The contract of a method with a training loop of its own, as a set of checks."""

import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jprune import checkpoint, tree
from jprune import masks as masks_lib
from jprune._core import base
from jprune.testing._naming import naming

_AXIS_TYPES = (AxisType.Auto, AxisType.Explicit)

StateOf = Callable[[base.Params, jax.Array], Any]
"""`(params, key) -> state`, which calls the method's `init`."""


def check_algorithm(
    algorithm: base.Algorithm,
    state_of: StateOf,
    batches: Sequence[tuple[Any, ...]],
    params: base.Params,
    *,
    sparsity: float | None = None,
    where: tree.Where = tree.is_kernel,
    axis_types: Sequence[AxisType] = _AXIS_TYPES,
) -> None:
    """Checks the contract of a method with a training loop of its own.

    The checks, by the names that errors give them:

    - "form": `init` and `step` run on shapes alone and keep the structure of the state,
      so that steps are traced once;
    - "loop": a step donates its state, but not the caller's params, and a saved and
      restored state continues bit for bit;
    - "finish": the params of `finish` are zero where its masks are False, and have the
      given sparsity, to one unit;
    - "transforms": `lax.scan` over steps and `vmap` over seeds equal the loop;
    - "meshes": on a mesh of all devices params keep their shardings.

    Args:
      algorithm: the method.
      state_of: function `(params, key) -> state`, such as `algorithm.init`.
      batches: arguments of each step, after the state; at least two tuples, with equal
        shapes.
      params: params to prune.
      sparsity: fraction that `finish` removes of the entries of all masks that are not
        scalars: weights, or groups. None if the method determines it.
      where: the leaves to prune, a `jprune.tree.Where`.
      axis_types: axis types of the meshes; see `check_meshes`.

    Raises:
      AssertionError: if the method breaks the contract. The message begins with the
        name of the check, and ends with what it found.
      Exception: whatever the method raises, or `jprune.checkpoint` for a state that
        cannot be stored. A note names the check.

    Example:
      >>> import jax, jax.numpy as jnp, jprune as jp
      >>> loss = lambda p, x: jnp.mean(jnp.square(x @ p["kernel"]))
      >>> method = jp.recipes.edge_popup(loss, 0.5, steps=4)
      >>> batches = [(jnp.full((4, 8), i / 3),) for i in range(4)]
      >>> params = {"kernel": jnp.ones((8, 2))}
      >>> check_algorithm(method, method.init, batches, params, sparsity=0.5)
    """
    given = algorithm, state_of, batches, params
    meant: Any = {"sparsity": sparsity, "where": where}
    with naming("form", "algorithm"):
        check_form(*given)
    with naming("loop", "algorithm"):
        last = check_loop(*given)
    with naming("finish", "algorithm"):
        check_finish(params, *algorithm.finish(last), **meant)
    with naming("transforms", "algorithm"):
        check_transforms(*given, last)
    with naming("meshes", "algorithm"):
        first = algorithm, state_of, batches[0], params
        check_meshes(*first, **meant, axis_types=axis_types)


def check_form(
    algorithm: base.Algorithm,
    state_of: StateOf,
    batches: Sequence[tuple[Any, ...]],
    params: base.Params,
) -> None:
    """Checks, on shapes alone, that a step keeps the structure of the state.

    Args:
      algorithm: the method.
      state_of: function `(params, key) -> state`.
      batches: arguments of each step, after the state.
      params: params to prune, or their shapes.

    Raises:
      AssertionError: if a leaf of the state changes its shape or dtype, or is weakly
        typed, or `finish` changes the structure of the params.
    """
    state = jax.eval_shape(state_of, params, jax.random.key(0))
    after, _ = jax.eval_shape(algorithm.step, state, *batches[0])
    chex.assert_trees_all_equal_structs(state, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    weak = [x for x in jax.tree.leaves((state, after)) if x.weak_type]
    assert not weak, f"Weakly typed state retraces: {weak}"
    found, _ = jax.eval_shape(algorithm.finish, state)
    chex.assert_trees_all_equal_structs(params, found)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, found)


def check_loop(
    algorithm: base.Algorithm,
    state_of: StateOf,
    batches: Sequence[tuple[Any, ...]],
    params: base.Params,
) -> Any:
    """Checks what a step donates, and that a restored state continues bit for bit.

    Args:
      algorithm: the method.
      state_of: function `(params, key) -> state`.
      batches: arguments of each step, after the state.
      params: params to prune.

    Returns:
      The state after the last batch.

    Raises:
      AssertionError: if the method breaks the contract.
    """
    key = jax.random.key(0)
    # Copies: arrays that share memory with NumPy are not donated.
    params = jax.tree.map(jnp.copy, params)
    state = state_of(params, key)
    algorithm.step(state, *batches[0])
    alive = [not x.is_deleted() for x in jax.tree.leaves(params)]
    assert all(alive), "A step has deleted the caller's params"
    if _donates():
        for keys, x in jax.tree_util.tree_leaves_with_path(state):
            if jnp.issubdtype(x.dtype, jnp.floating):
                assert x.is_deleted(), f"{tree.leaf_path(keys)} was not donated"

    def run(state: Any, batches: Sequence[tuple[Any, ...]]) -> Any:
        for batch in batches:
            state, _ = algorithm.step(state, *batch)
        return state

    half = len(batches) // 2
    middle = run(state_of(params, key), batches[:half])
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.save(directory, half, middle)
        like = jax.eval_shape(state_of, params, key)
        restored = checkpoint.restore(directory, like)
    last = run(middle, batches[half:])
    chex.assert_trees_all_equal(_plain(last), _plain(run(restored, batches[half:])))
    return last


def check_finish(
    params: base.Params,
    found: base.Params,
    masks: base.Masks,
    *,
    sparsity: float | None = None,
    where: tree.Where = tree.is_kernel,
) -> None:
    """Checks the result of `finish`: its masks, zeros and sparsity.

    Args:
      params: params that were pruned.
      found: sparse params that `finish` returned.
      masks: masks that `finish` returned.
      sparsity: fraction that `finish` removes, as in `check_algorithm`.
      where: the leaves to prune, a `jprune.tree.Where`.

    Raises:
      AssertionError: if the method breaks the contract.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(params, found)
    check_fit(params, masks)
    chosen = jax.tree.leaves(tree.flags(where, params))
    size = kept = 0
    for path, z, m, meant in zip(
        tree.leaf_paths(params),
        jax.tree.leaves(found),
        jax.tree.leaves(masks),
        chosen,
        strict=True,
    ):
        assert meant or (m.shape == () and bool(m)), f"{path!r} was pruned."
        pruned = np.broadcast_to(~np.asarray(m), z.shape)
        assert not np.any(np.asarray(z)[pruned]), f"{path!r} is not zero where pruned"
        assert np.all(np.isfinite(np.asarray(z, np.float32))), f"{path!r} is not finite"
        if m.shape:
            size, kept = size + m.size, kept + int(np.sum(np.asarray(m)))
    if sparsity is not None:
        expected = size - round(size * sparsity)
        assert abs(kept - expected) <= 1, f"{kept} of {size} are kept, not {expected}"


def check_fit(params: base.Params, masks: base.Masks) -> None:
    """Checks that masks have the params' tree and broadcast to them.

    Args:
      params: params that were pruned.
      masks: their masks.

    Raises:
      AssertionError: if they do not; names the leaf.
    """
    try:
        masks_lib.check(params, masks)
    except base.PruningError as error:
        raise AssertionError(str(error)) from error


def check_transforms(
    algorithm: base.Algorithm,
    state_of: StateOf,
    batches: Sequence[tuple[Any, ...]],
    params: base.Params,
    last: Any,
) -> None:
    """Checks that `scan` over steps and `vmap` over seeds equal a loop.

    Args:
      algorithm: the method.
      state_of: function `(params, key) -> state`.
      batches: arguments of each step, after the state.
      params: params to prune.
      last: state after a loop over the batches from `jax.random.key(0)`. Differences
        of 1e-3 are allowed, since operations may run in another order.

    Raises:
      AssertionError: if the method breaks the contract.
    """
    streams = jax.tree.map(lambda *x: jnp.stack(x), *batches)

    @jax.jit
    @jax.vmap
    def scanned(params: base.Params, key: jax.Array) -> Any:
        step = lambda state, batch: algorithm.step(state, *batch)  # noqa: E731
        state, _ = lax.scan(step, state_of(params, key), streams, length=len(batches))
        return state, algorithm.finish(state)

    other = jax.tree.map(lambda w: w[..., ::-1], params)
    seeds = jax.tree.map(lambda *x: jnp.stack(x), params, other)
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    states, (_, masks) = scanned(seeds, keys)
    first = jax.tree.map(lambda x: x[0], (states, masks))
    expected = last, algorithm.finish(last)[1]
    chex.assert_trees_all_close(_plain(first), _plain(expected), rtol=1e-3, atol=1e-3)


def check_meshes(
    algorithm: base.Algorithm,
    state_of: StateOf,
    batch: tuple[Any, ...],
    params: base.Params,
    *,
    sparsity: float | None = None,
    where: tree.Where = tree.is_kernel,
    axis_types: Sequence[AxisType] = _AXIS_TYPES,
) -> None:
    """Checks that shardings stay and counts are exact on a mesh of all devices.

    Each leaf is sharded along the first axis that the mesh divides, with automatic and
    with explicit axis types. One device checks little; for several on a CPU, use
    `jax.config.update("jax_num_cpu_devices", 8)`.

    Args:
      algorithm: the method.
      state_of: function `(params, key) -> state`.
      batch: arguments of a step, after the state.
      params: params to prune.
      sparsity: fraction that `finish` removes, as in `check_algorithm`.
      where: the leaves to prune, a `jprune.tree.Where`.
      axis_types: axis types of the meshes.

    Raises:
      AssertionError: if the method breaks the contract.
    """
    for axis_type in axis_types:
        mesh = jax.make_mesh((len(jax.devices()),), ("d",), axis_types=(axis_type,))
        with jax.set_mesh(mesh):
            sharded = jax.tree.map(functools.partial(shard, mesh), params)
            state, _ = algorithm.step(state_of(sharded, jax.random.key(0)), *batch)
            found, masks = algorithm.finish(state)
        check_finish(params, found, masks, sparsity=sparsity, where=where)
        for path, w, z, m in zip(
            tree.leaf_paths(params),
            jax.tree.leaves(sharded),
            jax.tree.leaves(found),
            jax.tree.leaves(masks),
            strict=True,
        ):
            for x in (z, m):
                if x.shape == w.shape:
                    assert x.sharding.is_equivalent_to(w.sharding, w.ndim), (
                        f"{path!r}: {w.sharding} has become {x.sharding}"
                    )


def shard(mesh: Any, x: jax.Array) -> jax.Array:
    """Places an array, sharded along the first axis that the mesh divides.

    Args:
      mesh: mesh with one axis, called "d".
      x: array.

    Returns:
      The array on the devices of the mesh; replicated if the mesh divides no axis.
    """
    size = math.prod(mesh.devices.shape)
    spec: list[str | None] = [None] * x.ndim
    for i, n in enumerate(x.shape):
        if n % size == 0:
            spec[i] = "d"
            break
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


def _plain(state: Any) -> Any:
    """The state with PRNG keys as integers, and narrow floats as float32."""

    def leaf(x: jax.Array) -> np.ndarray:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
        return np.asarray(x.astype(jnp.float32) if wide else x)

    return jax.tree.map(leaf, state)


def _donates() -> bool:
    x = jnp.zeros(8)
    jax.jit(lambda x: x + 1, donate_argnums=0)(x)
    return x.is_deleted()
