"""Metrics for loggers against counts in NumPy, and pictures by the data in them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from PIL import Image

import jprune as jp

SHAPES = {"a": {"kernel": (7, 9), "bias": (9,)}, "b": {"kernel": (9, 3)}}


def normal(shapes, seed=0):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=is_shape
    )


def counted(params):
    """Shares of zeros by NumPy: of the two kernels, and of both together."""
    kernels = {f"{k}/kernel": np.asarray(params[k]["kernel"]) for k in ("a", "b")}
    each = {k: np.mean(w == 0) for k, w in kernels.items()}
    whole = np.concatenate([w.ravel() for w in kernels.values()])
    leaves = {f"sparsity/{path}": share for path, share in each.items()}
    return {"sparsity": np.mean(whole == 0), **leaves}


def close(found, wanted):
    assert list(found) == list(wanted)
    for name in wanted:
        assert found[name].shape == ()
        assert found[name].dtype == jnp.float32
        assert float(found[name]) == pytest.approx(wanted[name], abs=1e-6)
        assert not np.signbit(found[name])


@pytest.mark.parametrize("packed", [False, True])
def test_metrics_inside_a_jitted_scan_are_numpys_counts(packed):
    pruner = jp.recipes.gradual_magnitude(0.8, begin=2, steps=4)
    tx = optax.chain(
        optax.clip(1.0), jp.sparsify(optax.sgd(0.1), pruner, every=2, packed=packed)
    )
    params = normal(SHAPES)

    def step(carry, seed):
        params, state = carry
        grads = jax.tree.map(lambda w: jnp.cos(w + seed), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, jp.metrics(state, params))

    start = (params, tx.init(params))
    _, (each, found) = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(8.0)))(start)
    for t in range(8):
        at = lambda x, t=t: x[t]  # noqa: E731
        close(jax.tree.map(at, found), counted(jax.tree.map(at, each)))
    assert float(found["sparsity"][0]) == 0
    assert float(found["sparsity"][-1]) == pytest.approx(0.8, abs=0.01)


def test_metrics_of_masks_under_vmap():
    params = normal(SHAPES)

    def at(sparsity):
        pruned, masks = jp.prune(params, jp.recipes.magnitude(sparsity))
        return pruned, jp.report.mask_metrics(params, masks)

    each, found = jax.jit(jax.vmap(at))(jnp.array([0.0, 0.25, 1.0]))
    for i in range(3):
        one = lambda x, i=i: x[i]  # noqa: E731
        close(jax.tree.map(one, found), counted(jax.tree.map(one, each)))


def test_metrics_need_masks_and_count_nothing_where_nothing_is_prunable():
    params = normal(SHAPES)
    with pytest.raises(jp.PruningError, match="no SparsifyState"):
        jp.metrics(optax.adam(0.1).init(params), params)
    dense = jp.masks.full(params)
    assert list(jp.report.mask_metrics(params, dense)) == ["sparsity"]
    assert float(jp.report.mask_metrics(params, dense)["sparsity"]) == 0


def history(leaves, times):
    rng = np.random.default_rng(0)
    names = ["sparsity", *(f"sparsity/block_{i}/kernel" for i in range(leaves))]
    return [{n: rng.random() for n in names} | {"loss": 3.0} for _ in range(times)]


@pytest.mark.parametrize("leaves", [2, 24])
def test_the_picture_of_sparsities(leaves, tmp_path):
    rows, steps = history(leaves, 5), [0, 10, 30, 60, 100]
    path = tmp_path / "sparsity.png"
    axes = jp.report.draw_sparsity(rows, path, steps=steps)
    lines = axes.get_lines()
    names = [*(f"sparsity/block_{i}/kernel" for i in range(leaves)), "sparsity"]
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        assert line.get_xdata().tolist() == steps
        assert line.get_drawstyle() == "steps-post"  # masks change at refreshes
        assert line.get_ydata().tolist() == [row[name] for row in rows]
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend[0] == "all prunable weights"
    assert legend[1] == "block_0/kernel"
    assert legend[-1] == f"block_{leaves - 1}/kernel"
    assert len(legend) == min(leaves, 7) + 1
    assert len({line.get_color() for line in lines}) == len(lines)
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_the_picture_of_what_a_scan_stacks_is_the_same():
    rows = history(3, 4)
    stacked = {n: jnp.array([row[n] for row in rows]) for n in rows[0]}
    names = [*list(rows[0])[1:4], "sparsity"]
    given = Figure().subplots()
    assert jp.report.draw_sparsity(stacked, given) is given
    for line, name in zip(given.get_lines(), names, strict=True):
        np.testing.assert_allclose(line.get_ydata(), [r[name] for r in rows], rtol=1e-6)
        assert line.get_xdata().tolist() == [0, 1, 2, 3]


def test_no_picture_of_incomplete_histories():
    axes, rows = Figure().subplots(), history(2, 3)
    with pytest.raises(jp.PruningError, match=r"jp\.metrics.*got \['loss'\]"):
        jp.report.draw_sparsity([{"loss": 1.0}], axes)
    with pytest.raises(jp.PruningError, match="at least one time"):
        jp.report.draw_sparsity([], axes)
    with pytest.raises(jp.PruningError, match="2 steps for 3 times"):
        jp.report.draw_sparsity(rows, axes, steps=[0, 1])
    del rows[1]["sparsity/block_1/kernel"]
    with pytest.raises(jp.PruningError, match=r"Time 1 .* lacks \['sparsity/block_1/"):
        jp.report.draw_sparsity(rows, axes)
