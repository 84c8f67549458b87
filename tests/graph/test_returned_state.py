"""State that a function returns beside its outputs: Linen's, Equinox's, a cache."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.reasons import reasons

import jprune as jp
from jprune import graph as jg

nn = pytest.importorskip("flax.linen")

pytestmark = pytest.mark.others_code

X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
KEPT = np.array([0, 2, 3, 7])


class Net(nn.Module):
    """A convolution with batch statistics and dropout."""

    width: int = 8
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        kind = {"param_dtype": x.dtype}
        x = nn.Conv(self.width, (3, 3), name="conv", **kind)(x)
        x = nn.BatchNorm(not train, momentum=0.8, name="norm", **kind)(x)
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
        return nn.Dense(2, name="out", **kind)(x.mean(axis=(1, 2)))


def train(net):
    def fn(variables, x, key):
        rngs = {"dropout": key}
        return net.apply(variables, x, True, mutable=["batch_stats"], rngs=rngs)

    return fn


def is_new(path, leaf):
    return path.startswith("1/")


def images(seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(4, 5, 5, 3)).astype(dtype)


def variables_of(net, x):
    variables = net.init(jax.random.key(0), x, False)
    return jax.tree.map(lambda w: w.astype(x.dtype), variables)  # statistics, too


def test_linen_s_small_function_returns_the_small_statistics():
    """They are those of the kept channels, and of the narrow module, step by step."""
    with X64(True):
        net, x = Net(rate=0.0), images(0, float)
        variables, key = variables_of(net, x), jax.random.key(1)
        graph = jg.trace(train(net), variables, x, key, shrinking=is_new)
        (name,) = graph.groups
        small_fn, small = jg.shrink(graph, variables, keep={name: KEPT})
        without = jg.without_entries(graph, {name: np.isin(range(8), KEPT)})
        full, narrow, run = variables, small, jax.jit(small_fn)
        for seed in range(2):
            x = images(seed, float)
            out, new = run(small, x, key)
            by_mask, of_full = without(full, x, key)
            alone, of_narrow = train(Net(4, 0.0))(narrow, x, key)
            np.testing.assert_allclose(out, by_mask, rtol=1e-9)
            np.testing.assert_allclose(out, alone, rtol=1e-9)
            for kind in ("mean", "var"):
                each = [t["batch_stats"]["norm"] for t in (new, of_full, of_narrow)]
                assert each[0][kind].shape == (4,)
                np.testing.assert_allclose(each[0][kind], each[1][kind][KEPT], 1e-9)
                np.testing.assert_allclose(each[0][kind], each[2][kind], 1e-9)
            small, full, narrow = small | new, full | of_full, narrow | of_narrow


def test_linen_tuned_in_train_mode():
    """One call halves; then statistics move and dropout follows its key."""
    net, x = Net(), images(0)
    variables, key = variables_of(net, x), jax.random.key(1)
    fn = train(net)
    small = jg.compress(fn, variables, x, key, multiple_of=1, shrinking=is_new)
    first, _ = small.fn(small.params, x, key)
    np.testing.assert_array_equal(small.fn(small.params, x, key)[0], first)
    other, _ = small.fn(small.params, x, jax.random.key(2))
    assert not np.allclose(other, first)
    tx = optax.sgd(0.1)

    @jax.jit
    def step(params, stats, state, key):
        def loss(params):
            out, new = small.fn({"params": params, **stats}, x, key)
            return jnp.mean(out**2), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), new, state

    params = small.params["params"]
    stats = {"batch_stats": small.params["batch_stats"]}
    tuned, new, _ = step(params, stats, tx.init(params), key)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, stats)
    for tree, before in ((tuned["conv"], params["conv"]), (new, stats)):
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(before), strict=True):
            assert not np.array_equal(a, b)


def test_explain_says_how_returned_state_may_shrink():
    net, x = Net(), images(0)
    variables, key = variables_of(net, x), jax.random.key(1)
    graph = jg.trace(train(net), variables, x, key)
    assert not graph.groups
    mend = "'1/batch_stats/norm/mean'; shrinking= of jg.trace says which results may"
    found = reasons(graph)
    assert any(mend in why for why in found)
    assert any(why.endswith("result '0'") for why in found)
    with pytest.raises(jp.PruningError, match="No group may shrink"):
        jg.compress(train(net), variables, x, key)


class Averaging(eqx.Module):
    """Equinox: centres by a running mean that lies in `eqx.nn.State`."""

    first: eqx.nn.Linear
    out: eqx.nn.Linear
    drop: eqx.nn.Dropout
    mean: eqx.nn.StateIndex

    def __init__(self, width, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.Linear(3, width, key=keys[0])
        self.out = eqx.nn.Linear(width, 2, key=keys[1])
        self.drop = eqx.nn.Dropout(0.5)
        self.mean = eqx.nn.StateIndex(jnp.zeros(width))

    def __call__(self, x, state, key):
        hidden = jax.vmap(self.first)(x)
        mean = 0.8 * state.get(self.mean) + 0.2 * hidden.mean(axis=0)
        hidden = self.drop(jax.nn.relu(hidden - mean), key=key)
        return jax.vmap(self.out)(hidden), state.set(self.mean, mean)


def test_equinox_s_state_is_small_and_moves():
    net, state = eqx.nn.make_with_state(Averaging)(8, jax.random.key(0))
    arrays, static = eqx.partition(net, eqx.is_inexact_array)
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    key = jax.random.key(1)

    def fn(params, x, key):
        arrays, state = params
        return eqx.combine(arrays, static)(x, state, key)

    graph = jg.trace(fn, (arrays, state), x, key, shrinking=is_new)
    (name,) = graph.groups
    small_fn, (small, small_state) = jg.shrink(
        graph, (arrays, state), keep={name: KEPT}
    )
    hidden = x @ np.asarray(net.first.weight)[KEPT].T
    hidden += np.asarray(net.first.bias)[KEPT]
    mean = np.zeros(4)
    outs = []
    for i in range(3):
        out, small_state = jax.jit(small_fn)((small, small_state), x, jax.random.key(i))
        mean = 0.8 * mean + 0.2 * hidden.mean(axis=0)
        np.testing.assert_allclose(small_state.get(net.mean), mean, 1e-5, 1e-7)
        outs.append(out)
    assert not np.allclose(outs[0], outs[1])


class Normalized(eqx.Module):
    """Equinox: batch statistics over the axis of a vmap, whose mean is a `psum`."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    out: eqx.nn.Linear

    def __init__(self, width, key):
        keys = jax.random.split(key)
        self.first = eqx.nn.Linear(3, width, key=keys[0])
        self.norm = eqx.nn.BatchNorm(width, "batch", mode="ema", momentum=0.8)
        self.out = eqx.nn.Linear(width, 2, key=keys[1])

    def __call__(self, x, state):
        hidden, state = self.norm(self.first(x), state)
        return self.out(jax.nn.relu(hidden)), state


def test_equinox_s_batch_norm_keeps_the_statistics_of_what_is_kept():
    net, state = eqx.nn.make_with_state(Normalized)(8, jax.random.key(0))
    arrays, static = eqx.partition(net, eqx.is_inexact_array)
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)

    def fn(params, x):
        arrays, state = params
        module = eqx.combine(arrays, static)
        axes = {"in_axes": (0, None), "out_axes": (0, None)}
        return jax.vmap(module, axis_name="batch", **axes)(x, state)

    graph = jg.trace(fn, (arrays, state), x, shrinking=is_new)
    (name,) = graph.groups
    small_fn, small = jg.shrink(graph, (arrays, state), keep={name: KEPT})
    _, full_state = fn((arrays, state), x)
    out, small_state = jax.jit(small_fn)(small, x)
    expected, _ = jg.without_entries(graph, {name: np.isin(np.arange(8), KEPT)})(
        (arrays, state), x
    )
    np.testing.assert_allclose(out, expected, 1e-5, 1e-6)
    moved = 0
    for a, b in zip(*map(jax.tree.leaves, (full_state, small_state)), strict=True):
        if np.shape(a) == (8,):
            assert np.shape(b) == (4,)
            np.testing.assert_allclose(b, np.asarray(a)[KEPT], 1e-5, 1e-6)
            moved += 1
    assert moved == 2
