"""The contract of a pruner, as a set of checks.

    jp.testing.check_pruner(my_pruner(0.9))

runs all checks on a small example. Each check is a function of a pruner, params and
gradients, and raises AssertionError, to which `check_pruner` adds its name. For methods
with a training loop of their own see `check_algorithm`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from jprune import masks as masks_lib
from jprune import tree
from jprune._core import base
from jprune.links import select
from jprune.testing._algorithms import check_fit, shard
from jprune.testing._naming import naming
from jprune.training import masks_of, sparsify


def example_params(seed: int = 0, dtype: Any = jnp.float32) -> base.Params:
    """Returns small params with all kinds of leaves that networks have.

    Args:
      seed: seed of the weights.
      dtype: dtype of the weights.

    Returns:
      A tree of kernels of a convolution, two dense layers and an attention projection,
      among them ties, zeros and a negative zero; and of biases, the scale of a norm and
      an embedding, which are not kernels. Each kernel has an axis that 8 divides.

    Example:
      >>> params = example_params()
      >>> params["conv"]["kernel"].shape, params["query"]["kernel"].shape
      ((3, 3, 8, 16), (16, 2, 8))
    """
    rng = np.random.default_rng(seed)
    shapes = {
        "conv": {"kernel": (3, 3, 8, 16), "bias": (16,)},
        "norm": {"scale": (16,), "bias": (16,)},
        "embed": {"embedding": (8, 16)},
        "query": {"kernel": (16, 2, 8), "bias": (2, 8)},
        "blocks": [{"kernel": (16, 32), "bias": (32,)}, {"kernel": (32, 8)}],
    }
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    tied = jnp.round(params["blocks"][0]["kernel"])
    params["blocks"][0]["kernel"] = tied.at[0, 0].set(-0.0)
    return params


def check_pruner(
    pruner: base.Pruner,
    params: base.Params | None = None,
    grads: Any = None,
    *,
    where: tree.Where = tree.is_kernel,
    track: optax.GradientTransformation | None = None,
) -> None:
    """Checks the contract of a pruner.

    The checks, by the names that errors give them:

    - "masks": masks fit their params, and are scalars for leaves that are not selected;
    - "jit": they are the same under `jit`, bit for bit;
    - "abstract_init": `init` and `update` run on shapes alone, and the state keeps its
      structure, shapes and dtypes;
    - "training": a step is traced once in 100 steps of AdamW, pruned weights are
      exactly zero after the last one, and no dtype changes;
    - "sharding": masks are the same on a mesh of all devices, and shardings stay.

    Args:
      pruner: links from gradients to masks.
      params: params to prune; `example_params()` if None.
      grads: gradients at the params; random if None.
      where: the leaves to prune, a `jprune.tree.Where`.
      track: transform that sees the gradients of every step, as in `jprune.sparsify`,
        for a pruner that takes its output in place of the gradients. It has to keep
        the structure, shapes and dtypes of its state, as a pruner has to.

    Raises:
      AssertionError: if the pruner breaks the contract. The message begins with the
        name of the check, and ends with what it found.
      Exception: whatever the pruner, `where` or `track` raises, such as PruningError
        where an argument of a link does not fit the params, or JAX's error about a
        traced bool in Python code. A note names the check.

    Example:
      >>> import optax, jprune as jp
      >>> jp.testing.check_pruner(jp.recipes.magnitude(0.5))
      >>> pruner = optax.chain(jp.score_by_taylor(), jp.keep_top(0.5))
      >>> jp.testing.check_pruner(pruner, track=optax.ema(0.9))
    """
    params = example_params() if params is None else params
    grads = random_like(params) if grads is None else grads
    checks: dict[str, Callable[..., None]] = {
        "masks": check_masks,
        "jit": check_jit,
        "abstract_init": check_abstract_init,
        "training": check_training,
        "sharding": check_sharding,
    }
    for name, check in checks.items():
        with naming(name, "pruner"):
            check(pruner, params, grads, where=where, track=track)


def check_masks(
    pruner: base.Pruner,
    params: base.Params,
    grads: Any,
    *,
    where: tree.Where,
    track: optax.GradientTransformation | None = None,
) -> None:
    """Masks fit the params, and are scalars for leaves that are not selected."""
    masks = _masks(pruner, params, grads, where, track)
    check_fit(params, masks)
    chosen = tree.flags(where, params)
    for path, meant, mask in zip(
        tree.leaf_paths(params),
        jax.tree.leaves(chosen),
        jax.tree.leaves(masks),
        strict=True,
    ):
        assert meant or (mask.shape == () and bool(mask)), f"{path!r} was pruned."


def check_jit(
    pruner: base.Pruner,
    params: base.Params,
    grads: Any,
    *,
    where: tree.Where,
    track: optax.GradientTransformation | None = None,
) -> None:
    """Masks under `jit` are the same, bit for bit."""
    eager = _masks(pruner, params, grads, where, track)
    jitted = jax.jit(lambda p, g: _masks(pruner, p, g, where, track))(params, grads)
    chex.assert_trees_all_equal(eager, jitted)


def check_abstract_init(
    pruner: base.Pruner,
    params: base.Params,
    grads: Any,
    *,
    where: tree.Where,
    track: optax.GradientTransformation | None = None,
) -> None:
    """`init` and `update` run on shapes alone, and the state keeps its structure."""
    tx = sparsify(optax.adamw(1e-3), pruner, where=where, track=track)
    state = jax.eval_shape(tx.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))
    _, after = jax.eval_shape(tx.update, grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    weak = [x for x in jax.tree.leaves(after) if getattr(x, "weak_type", False)]
    assert not weak, f"Weakly typed state retraces: {weak}"


def check_training(
    pruner: base.Pruner,
    params: base.Params,
    grads: Any,
    *,
    where: tree.Where,
    track: optax.GradientTransformation | None = None,
    steps: int = 100,
) -> None:
    """A jitted step of AdamW is traced once in 100 steps, and leaves exact zeros.

    Weight decay and momentum move every weight; even so, pruned weights have to be zero
    after the last step, and no dtype may change.
    """
    tx = optax.adamw(1e-2, weight_decay=0.1)
    when = {"every": 10, "begin": 5, "end": steps - 7}
    tx = sparsify(tx, pruner, where=where, track=track, **when)
    traces = []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traces.append(None)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    trained, state = params, tx.init(params)
    for _ in range(steps):
        trained, state = step(trained, state)
    assert len(traces) == 1, f"{len(traces)} traces in {steps} steps"
    chex.assert_trees_all_equal_shapes_and_dtypes(params, trained)
    for path, w, m in zip(
        tree.leaf_paths(params),
        jax.tree.leaves(trained),
        jax.tree.leaves(masks_of(state)),
        strict=True,
    ):
        pruned = np.broadcast_to(~np.asarray(m), w.shape)
        assert not np.any(np.asarray(w)[pruned]), f"{path!r} is not zero where pruned"
        assert np.all(np.isfinite(w)), f"{path!r} is not finite"


def check_sharding(
    pruner: base.Pruner,
    params: base.Params,
    grads: Any,
    *,
    where: tree.Where,
    track: optax.GradientTransformation | None = None,
) -> None:
    """Masks on a mesh of all devices are the same, and shardings stay.

    Each leaf is sharded along the first axis that the mesh divides, with automatic and
    with explicit axis types. One device checks little; for several on a CPU, use
    `jax.config.update("jax_num_cpu_devices", 8)`.
    """
    alone = _masks(pruner, params, grads, where, track)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((len(jax.devices()),), ("d",), axis_types=(axis_type,))
        place = functools.partial(shard, mesh)
        with jax.set_mesh(mesh):
            sharded = jax.tree.map(place, params)
            tx = sparsify(optax.adamw(1e-3), pruner, where=where, track=track)
            state = jax.jit(tx.init)(sharded)
            updates, state = jax.jit(tx.update)(
                jax.tree.map(place, grads), state, sharded
            )
        chex.assert_trees_all_equal(alone, masks_of(state))
        for path, w, u, m in zip(
            tree.leaf_paths(params),
            jax.tree.leaves(sharded),
            jax.tree.leaves(updates),
            jax.tree.leaves(masks_of(state)),
            strict=True,
        ):
            assert u.sharding.is_equivalent_to(w.sharding, w.ndim), path
            if m.shape == w.shape:
                assert m.sharding.is_equivalent_to(w.sharding, w.ndim), path


def check_sparsities(
    make: Callable[[Any], base.Pruner],
    params: base.Params,
    grads: Any,
    *,
    sparsities: Sequence[float] = (0.0, 0.37, 0.5, 0.9, 0.99, 1.0),
    where: tree.Where = tree.is_kernel,
    exact: bool = True,
) -> None:
    """Counts are exact, and one compilation serves all sparsities through `vmap`.

    Args:
      make: function from a sparsity, which may be traced, to a pruner.
      params: params to prune.
      grads: gradients at the params.
      sparsities: fractions to check.
      where: the leaves to prune, a `jprune.tree.Where`.
      exact: whether the pruner keeps n - round(n * sparsity) of all n weights; False
        for one with a minimum per leaf, which may keep more.

    Raises:
      AssertionError: if a count is wrong by more than one unit, by which rounding the
        sparsity to float32 may change it.
    """
    chosen = jax.tree.leaves(tree.flags(where, params))
    n = sum(
        np.size(w) for w, c in zip(jax.tree.leaves(params), chosen, strict=True) if c
    )

    def count(sparsity: Any) -> jax.Array:
        masks = _masks(make(sparsity), params, grads, where)
        kept = jax.tree.leaves(masks_lib.kept(params, masks))
        return jnp.asarray(sum(k for k, c in zip(kept, chosen, strict=True) if c))

    traced = jax.jit(jax.vmap(count))(jnp.asarray(sparsities, jnp.float32))
    for sparsity, batched in zip(sparsities, traced, strict=True):
        expected = n - round(n * sparsity)
        alone = int(count(sparsity))
        assert abs(alone - int(batched)) <= 1, (sparsity, alone, int(batched))
        if exact:
            assert alone == expected, (sparsity, alone, expected)
        assert alone >= expected, (sparsity, alone, expected)


def random_like(params: base.Params, seed: int = 1) -> Any:
    """Returns a tree of normal random numbers, with the params' shapes and dtypes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=np.shape(w)), jnp.result_type(w)), params
    )


def _masks(
    pruner: base.Pruner,
    params: base.Params,
    grads: Any,
    where: tree.Where,
    track: optax.GradientTransformation | None = None,
) -> base.Masks:
    """The masks of the first refresh of `sparsify`."""
    chosen, step = select(pruner, where), jnp.int32(0)
    if track is not None:
        meant = tree.flags(where, params)
        visible = tree.only(meant, params)
        grads, _ = track.update(tree.only(meant, grads), track.init(visible), visible)
    return chosen.update(grads, chosen.init(params), params, step=step)[0]
