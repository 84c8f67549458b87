"""Controllers land on their target, within one unit of the thing counted."""

import functools
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune as jp
from jprune import gates
from jprune.learned import controllers


def test_the_lagrangian_and_its_derivatives():
    def term(s, target, linear, quadratic):
        at = controllers.Multipliers(linear, quadratic)
        return controllers.lagrangian(s, target, at)

    s, target, a, b = 0.3, 0.8, -1.5, 2.5
    args = [jnp.float32(x) for x in (s, target, a, b)]
    value, slopes = jax.value_and_grad(term, argnums=(0, 1, 2, 3))(*args)
    gap = target - s
    np.testing.assert_allclose(value, a * gap + b * gap**2, rtol=1e-6)
    by_gap = a + 2 * b * gap
    expected = [-by_gap, by_gap, -gap, -(gap**2)]  # the multipliers' negated
    np.testing.assert_allclose(slopes, expected, rtol=1e-5)
    start = controllers.init_multipliers()
    assert controllers.lagrangian(args[0], 0.8, start) == 0
    assert [x.dtype for x in start] == [jnp.float32] * 2


@pytest.mark.parametrize("target", [0.5, 0.9])
def test_min_max_training_reaches_the_target(target):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(10, 10)), "b": rng.normal(size=(20, 10))}
    params = jax.tree.map(jnp.float32, params)
    probability = gates.hard_concrete_nonzero

    def loss(v):
        p = jax.tree.map(probability, v["logits"])
        errors = jax.tree.map(lambda w, p: jnp.sum((w * (p - 1)) ** 2), params, p)
        s = gates.expected_sparsity(params, p)
        task = sum(jax.tree.leaves(errors)) / 300
        return task + controllers.lagrangian(s, target, v["multipliers"]), s

    rates = {"logits": 30.0, "multipliers": 0.1}

    def step(v, _):
        slopes, s = jax.grad(loss, has_aux=True)(v)
        moved = {
            k: jax.tree.map(lambda x, g, k=k: x - rates[k] * g, v[k], slopes[k])
            for k in v
        }
        return moved, s

    logits = {"a": jnp.full((10, 10), 2.0), "b": jnp.full((1, 10), 2.0)}
    start = {"logits": logits, "multipliers": controllers.init_multipliers()}
    end, s = jax.jit(lambda v: jax.lax.scan(step, v, length=3000))(start)
    assert s[0] < 0.1
    np.testing.assert_array_less(np.abs(s[-500:] - target) * 300, 1)
    assert end["multipliers"].linear > 0  # keeping weights has a price


@functools.cache
def _shift_by(probability):
    shift = functools.partial(controllers.shift_to_sparsity, probability=probability)
    return jax.jit(shift)


@hypothesis.given(
    shape=st.sampled_from([(1, 1), (40, 3), (13, 40)]),
    target=st.floats(0.01, 0.99),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    offset=st.sampled_from([0.0, -300.0, 5.0]),
    probability=st.sampled_from([gates.hard_concrete_nonzero, gates.sigmoid_gate]),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
def test_shifted_logits_have_the_expected_sparsity(
    shape, target, spread, offset, probability, seed
):
    rows, columns = shape
    rng = np.random.default_rng(seed)
    params = {
        "a": jnp.zeros((rows, columns)),
        "b": jnp.zeros((3, rows)),
        "bias": jnp.zeros(7),
        "norm": jnp.zeros(2),
    }
    logits = {
        "a": jnp.asarray(rng.normal(offset, spread, (rows, columns)), jnp.float32),
        "b": jnp.asarray(rng.normal(offset, spread, (1, rows)), jnp.float32),
        "bias": optax.MaskedNode(),
        "norm": jnp.array(True),
    }
    moved = _shift_by(probability)(params, logits, np.float32(target))
    assert moved["bias"] == optax.MaskedNode()
    assert moved["norm"].dtype == bool

    def p(x):
        return np.asarray(probability(x), np.float64)

    kept = p(moved["a"]).sum() + 3 * p(moved["b"]).sum()
    total = rows * columns + 3 * rows
    assert abs(kept - (1 - target) * total) < 1e-4 * total
    assert abs(kept - (1 - target) * total) < 1
    deltas = [np.ravel(moved[k] - logits[k]) for k in ("a", "b")]
    np.testing.assert_allclose(np.concatenate(deltas), deltas[0][0], atol=1e-3)


def test_shifting_is_traced_once_and_idempotent():
    rng = np.random.default_rng(3)
    params = {"w": jnp.zeros((30, 20))}
    logits = {"w": jnp.asarray(rng.normal(size=(30, 20)), jnp.float32)}

    def shifted(target):
        return controllers.shift_to_sparsity(params, logits, target)

    def found(target):
        p = jax.tree.map(gates.hard_concrete_nonzero, shifted(target))
        return gates.expected_sparsity(params, p)

    targets = jnp.linspace(0.0, 1.0, 9)
    np.testing.assert_allclose(jax.jit(jax.vmap(found))(targets), targets, atol=1e-6)
    once = shifted(0.7)
    again = controllers.shift_to_sparsity(params, once, 0.7)
    np.testing.assert_allclose(again["w"], once["w"], atol=1e-5)
    ends = [np.abs(shifted(t)["w"]) for t in (0.0, 1.0)]
    assert np.all(np.isfinite(ends))
    slope = jax.grad(lambda x: jnp.sum(_shift(params, x)["w"]))(logits)["w"]
    np.testing.assert_array_equal(slope, np.ones((30, 20)))  # none through delta


def _shift(params, logits):
    return controllers.shift_to_sparsity(params, logits, 0.5)


def test_half_precision_logits_and_no_logits():
    params = {"w": jnp.zeros((50, 40))}
    logits = {"w": jax.random.normal(jax.random.key(0), (50, 40), jnp.bfloat16)}
    moved = controllers.shift_to_sparsity(params, logits, 0.8)
    assert moved["w"].dtype == jnp.bfloat16
    p = {"w": gates.hard_concrete_nonzero(moved["w"].astype(jnp.float32))}
    np.testing.assert_allclose(gates.expected_sparsity(params, p), 0.8, atol=2e-3)
    none = {"w": optax.MaskedNode()}
    assert controllers.shift_to_sparsity(params, none, 0.8) == none
    assert controllers.shift_thresholds(params, none, 3) == none


def _logit(w):
    w = np.abs(np.asarray(w, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(w >= 1, np.inf, np.log(w) - np.log1p(-np.minimum(w, 1)))


def test_threshold_scores_are_the_formula():
    w = np.float32([2e-38, 1e-6, -0.3, 0.5, 0.999999, -1.0, 1.5, 0.0, -np.inf])
    params = {"w": w, "half": jnp.bfloat16([0.25]), "bias": np.zeros(2, np.float32)}
    logits = {"w": jnp.float32(-4), "half": jnp.float32(1), "bias": optax.MaskedNode()}
    found = controllers.threshold_scores(params, logits)
    assert found["bias"] == optax.MaskedNode()
    np.testing.assert_allclose(found["w"], _logit(w) + 4, rtol=1e-5)
    np.testing.assert_allclose(found["half"], [np.log(1 / 3) - 1], rtol=1e-5)
    np.testing.assert_array_equal(
        found["w"] > 0, np.abs(w) > np.asarray(jax.nn.sigmoid(logits["w"]))
    )


def _passing(params, logits):
    counts = jax.tree.map(
        lambda w, s: jnp.sum(jnp.abs(w) > jax.nn.sigmoid(s), dtype=jnp.int32),
        *(params, logits),
    )
    return int(sum(jax.tree.leaves(counts)))


@hypothesis.given(
    sizes=st.sampled_from([(1,), (700,), (300, 1, 50)]),
    share=st.floats(0, 1),
    level=st.sampled_from([-3200.0, -40.0, -5.0, 0.0]),
    scale=st.sampled_from([0.02, 0.3, 2.0]),
    seed=st.integers(0, 2**16),
)
@hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
def test_k_weights_pass_their_shifted_thresholds(sizes, share, level, scale, seed):
    rng = np.random.default_rng(seed)
    params = {str(i): np.float32(rng.normal(0, scale, n)) for i, n in enumerate(sizes)}
    logits = {i: jnp.float32(rng.normal(level, 1)) for i in params}
    n = sum(sizes)
    wide = sum(int(np.sum(np.abs(w) >= 1)) for w in params.values())
    k = max(round(share * n), wide)
    moved = controllers.shift_thresholds(params, logits, k)
    # Apart from ties: weights that float32 thresholds cannot tell from the cut.
    distance = [np.abs(_logit(params[i]) - np.float64(moved[i])) for i in params]
    near = int(np.sum(np.concatenate(distance) < 1e-6))
    assert abs(_passing(params, moved) - k) <= max(1, near)
    shifts = np.array([moved[i] - logits[i] for i in params])
    np.testing.assert_allclose(shifts, shifts[0], atol=1e-3)


def test_thresholds_at_the_ends():
    params = {"w": np.float32([0.0, 0.0, 0.1, -0.2, 1.0, 3.0])}
    logits = {"w": jnp.float32(-2)}
    reached = {
        k: _passing(params, controllers.shift_thresholds(params, logits, k))
        for k in range(7)
    }
    assert reached == {0: 2, 1: 2, 2: 2, 3: 3, 4: 4, 5: 4, 6: 4}
    odd = {"w": np.float32([0.0, 2.0])}
    assert _passing(odd, controllers.shift_thresholds(odd, logits, 1)) == 1
    many = jax.vmap(lambda k: controllers.shift_thresholds(params, logits, k)["w"])
    assert np.all(np.diff(many(np.arange(2, 5))) < 0)


def test_misuse_is_refused_with_its_values():
    params, logits = {"w": jnp.zeros((2, 3))}, {"w": jnp.zeros((2, 3))}
    with pytest.raises(jp.PruningError, match=r"got 1\.5"):
        controllers.shift_to_sparsity(params, logits, 1.5)
    with pytest.raises(jp.PruningError, match=r"got -0\.1"):
        controllers.lagrangian(jnp.float32(0), -0.1, controllers.init_multipliers())
    with pytest.raises(jp.PruningError, match="'w' have shape"):
        controllers.shift_to_sparsity(params, {"w": jnp.zeros(3)}, 0.5)
    with pytest.raises(jp.NonFiniteScoreError, match="'w'"):
        controllers.shift_thresholds(
            {"w": np.float32([np.nan, 1])}, {"w": jnp.float32(0)}, 1
        )


@pytest.mark.optimized
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_leaves_are_controlled_where_they_are(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    rng = np.random.default_rng(4)
    host = {"a": rng.normal(size=(16, 8)), "b": rng.normal(size=64)}
    host = jax.tree.map(np.float32, host)
    specs = {"a": PartitionSpec("x", "y"), "b": PartitionSpec(("x", "y"))}
    placed = {k: jax.device_put(host[k], NamedSharding(mesh, specs[k])) for k in host}
    levels = {"a": np.float32(-1), "b": np.float32(-2)}

    @jax.jit
    def both(w, target, k):
        return (
            controllers.shift_to_sparsity(w, w, target),
            controllers.shift_thresholds(w, levels, k),
        )

    compiled = both.lower(placed, np.float32(0.75), np.int32(50)).compile()
    # Selection has one number of each device, and nothing else is gathered.
    shapes = re.findall(r"\[([\d,]*)\]\S* all-(?:gather|to-all)\(", compiled.as_text())
    assert all(np.prod([int(n) for n in x.split(",")]) <= mesh.size for x in shapes)
    found, thresholds = compiled(placed, np.float32(0.75), np.int32(50))
    expected, thresholds_1 = both(host, np.float32(0.75), np.int32(50))
    for name in host:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
        np.testing.assert_allclose(thresholds[name], thresholds_1[name], rtol=1e-6)
        assert found[name].sharding.is_equivalent_to(
            placed[name].sharding, placed[name].ndim
        )
