"""Soft top-k against an explicit solve in float64."""

import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jprune import selection
from jprune.selection import soft_top_k


def _sigma(x):
    return np.exp(-np.logaddexp(0, -np.asarray(x, np.float64)))


def _oracle(s, k, temperature):
    """The gates, by 200 halvings in float64."""
    s = np.asarray(s, np.float64)
    low, high = s.min() - 60 * temperature, s.max() + 60 * temperature
    for _ in range(200):
        tau = (low + high) / 2
        many = _sigma((s - tau) / temperature).sum() > k
        low, high = (tau, high) if many else (low, tau)
    return _sigma((s - (low + high) / 2) / temperature)


def _scores(n, seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=n).astype(dtype)


_gates = jax.jit(soft_top_k)


@hypothesis.given(
    n=st.sampled_from([1, 2, 7, 100, 3000]),
    share=st.floats(1e-3, 0.999),
    temperature=st.floats(-7, 3).map(lambda x: 10.0**x),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    offset=st.sampled_from([0.0, 1.0, -1e3]),
    ties=st.booleans(),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(deadline=None, max_examples=150, derandomize=True)
def test_the_gates_add_up_to_k(n, share, temperature, scale, offset, ties, seed):
    s = _scores(n, seed)
    s = np.float32((np.round(s) if ties else s) * scale + offset)
    t = np.float32(max(temperature * scale, 3e-9 * np.max(np.abs(s))))
    k = np.float32(share * n)
    found = np.asarray(_gates(s, k, t), np.float64)
    assert np.all((found >= 0) & (found <= 1))
    np.testing.assert_allclose(found.sum(), k, rtol=1e-5)
    # Where tau may be anywhere between two scores, all that is told is the sum.
    if temperature > 1e-2:
        np.testing.assert_allclose(found, _oracle(s, k, t), atol=1e-4)


@pytest.mark.parametrize("k", [0, 1e-3, 49.5, 50])
def test_at_the_ends_all_gates_are_open_or_shut(k):
    found = np.asarray(_gates(_scores(50, 0), k, 0.3), np.float64)
    np.testing.assert_allclose(found.sum(), k, rtol=1e-5, atol=1e-5)
    slopes = jax.grad(lambda s: jnp.sum(soft_top_k(s, k, 0.3) ** 2))(_scores(50, 0))
    assert np.all(np.isfinite(slopes))


@pytest.mark.parametrize("k", [1, 17, 499])
def test_without_temperature_it_is_the_hard_mask(k):
    tree = {"a": _scores((20, 20), 1), "b": _scores(100, 2)}
    hard = selection.top_k(tree, k)
    for temperature in (1e-6, 1e-8):
        soft = _gates(tree, k, temperature)
        for name in tree:
            np.testing.assert_allclose(soft[name], hard[name], atol=1e-4)
    half = np.asarray(_gates(tree["b"], 16.5, 1e-8))
    np.testing.assert_allclose(np.sort(half)[-17:], [0.5] + [1] * 16, atol=1e-4)


def test_a_tree_is_selected_as_one():
    s = _scores(60, 3)
    tree = {"a": s[:24].reshape(4, 6), "none": optax.MaskedNode(), "s": s[24]}
    tree |= {"z": s[25:], "empty": np.zeros((0, 3), np.float32)}
    found = _gates(tree, 20, 0.4)
    assert found["none"] == optax.MaskedNode()
    assert found["empty"].shape == (0, 3)
    flat = np.concatenate([np.ravel(found[k]) for k in ("a", "s", "z")])
    np.testing.assert_allclose(flat, _oracle(s, 20, 0.4), atol=1e-6)
    assert soft_top_k({}, 3, 0.1) == {}


def test_bfloat16_scores_are_solved_in_float32():
    s = jnp.asarray(_scores(2000, 4), jnp.bfloat16)
    found = _gates(s, 700, 0.3)
    assert found.dtype == jnp.bfloat16
    wide = np.asarray(s.astype(jnp.float32))
    expected = _oracle(wide, 700, 0.3)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2.0**-8)
    slopes = jax.grad(lambda s: jnp.sum(soft_top_k(s, 700, 0.3)[:5]))(s)
    assert slopes.dtype == jnp.bfloat16
    expected = jax.grad(lambda s: jnp.sum(soft_top_k(s, 700, 0.3)[:5]))(wide)
    np.testing.assert_allclose(
        slopes.astype(jnp.float32), expected, rtol=2.0**-6, atol=1e-5
    )


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 5.0])
def test_the_jacobian_is_that_of_the_explicit_solve(derivative, temperature):
    s, k, h = _scores(12, 5), 4.3, 1e-5
    found = derivative(soft_top_k, argnums=(0, 1, 2))(
        s, jnp.float32(k), jnp.float32(temperature)
    )

    def difference(ds, dk, dt):
        ahead = _oracle(s + h * ds, k + h * dk, temperature + h * dt)
        behind = _oracle(s - h * ds, k - h * dk, temperature - h * dt)
        return (ahead - behind) / (2 * h)

    by_score = np.stack([difference(e, 0, 0) for e in np.eye(12)], axis=1)
    scale = 1 / temperature
    np.testing.assert_allclose(found[0], by_score, atol=1e-4 * scale)
    np.testing.assert_allclose(found[1], difference(0 * s, 1, 0), atol=1e-4)
    by_temperature = difference(0 * s, 0, 1)
    np.testing.assert_allclose(found[2], by_temperature, atol=1e-4 * scale)
    # What one gate wins the others lose.
    np.testing.assert_allclose(np.sum(found[0], axis=0), 0, atol=1e-5 * scale)
    np.testing.assert_allclose(np.sum(found[1]), 1, rtol=1e-5)


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivatives(outer, inner):
    s, k, t, h = _scores(5, 6), 2.2, 0.7, 1e-4
    c = np.random.default_rng(7).normal(size=5).astype("f4")

    def loss(s):
        return jnp.dot(c, soft_top_k(s, k, t))

    def exact(s):
        return np.dot(np.float64(c), _oracle(s, k, t))

    e = h * np.eye(5)
    expected = [
        [
            (exact(s + a + b) - exact(s + a - b) - exact(s - a + b) + exact(s - a - b))
            / (4 * h * h)
            for a in e
        ]
        for b in e
    ]
    np.testing.assert_allclose(outer(inner(loss))(s), expected, atol=1e-4)


def test_many_counts_and_temperatures_at_once():
    s = _scores(300, 8)
    ks, ts = np.linspace(0.5, 299.5, 12, dtype="f4"), np.float32([0.01, 0.3, 4])
    over_k = jax.vmap(soft_top_k, (None, 0, None))
    found = jax.jit(jax.vmap(over_k, (None, None, 0)))(s, ks, ts)
    for row, t in zip(found, ts, strict=True):
        for p, k in zip(row, ks, strict=True):
            np.testing.assert_allclose(p, _oracle(s, k, t), atol=1e-4)
    integers = jax.vmap(soft_top_k, (None, 0, None))(s, np.arange(1, 5), 0.3)
    np.testing.assert_allclose(integers.sum(1), np.arange(1, 5), rtol=1e-5)


@pytest.mark.optimized
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_leaves_are_selected_where_they_are(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    host = {"a": _scores((16, 8), 9), "b": _scores(64, 10), "c": _scores((3, 5), 11)}
    specs = {"a": ("x", "y"), "b": (("x", "y"),), "c": ()}
    scores = {
        k: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*specs[k])))
        for k, x in host.items()
    }
    weights = jax.tree.map(jnp.sin, scores)

    def loss(s, k, w):
        p = soft_top_k(s, k, 0.2)
        return sum(jnp.sum(p[name] * w[name]) for name in sorted(p)), p

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    compiled = step.lower(scores, np.float32(60), weights).compile()
    collectives = set(
        re.findall(r"\b(all-gather|all-to-all|collective-permute)", compiled.as_text())
    )
    assert not collectives
    (value, p), slopes = compiled(scores, np.float32(60), weights)
    (value_1, p_1), slopes_1 = step(host, np.float32(60), jax.tree.map(jnp.sin, host))
    np.testing.assert_allclose(value, value_1, rtol=1e-5)
    for name in host:
        np.testing.assert_allclose(p[name], p_1[name], atol=1e-5)
        np.testing.assert_allclose(slopes[name], slopes_1[name], atol=1e-4)
        assert p[name].sharding.is_equivalent_to(
            scores[name].sharding, scores[name].ndim
        )
