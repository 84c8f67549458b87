"""Gates against their formulas in float64, samples against their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune as jp
from jprune import gates
from jprune.gates import _sampled


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_values_are_exact_in_every_type(dtype):
    soft = jnp.asarray(np.linspace(-3000, 3000, 4001), dtype)
    hard = soft > 0
    found = jp.straight_through(hard, soft)
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.asarray(found, np.float32), hard)
    if dtype != jnp.float32:  # what it is there to avoid
        common = soft + (hard.astype(dtype) - soft)
        assert np.any(np.asarray(common, np.float32) != np.asarray(hard))


def test_first_derivatives_in_both_modes():
    w = jnp.array([2.0, -3.0, 5.0])

    def loss(s):
        return jnp.sum(w * jp.straight_through(s > 0, jnp.square(s)))

    s = jnp.array([0.5, -1.0, 2.0])
    assert loss(s) == 2 + 5
    np.testing.assert_allclose(jax.grad(loss)(s), 2 * s * w)
    value, tangent = jax.jvp(loss, (s,), (jnp.array([1.0, 0.0, -1.0]),))
    assert value == 7
    assert tangent == 2 * 0.5 * 2 - 2 * 2 * 5
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(s), 2 * s * w)
    np.testing.assert_allclose(jax.vmap(jax.grad(loss))(s[None])[0], 2 * s * w)


@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_in_all_orders_of_modes(outer, inner):
    def loss(s):
        return jnp.sum(jp.straight_through(s > 0, s**3)) * s[0]

    # The gate is h = [s > 0] with gradient 3 s^2, so by the product rule the
    # gradient is 3 s^2 s_0 + h_total e_0.
    s = jnp.array([0.5, -2.0])
    gradient = [3 * 0.5**2 * 0.5 + 1, 3 * 4 * 0.5]
    np.testing.assert_allclose(inner(loss)(s), gradient)
    # Once more, where the derivative of h_total is again 3 s^2.
    hessian = [[6 * 0.5 * 0.5 + 2 * 3 * 0.25, 3 * 4], [3 * 4, 6 * -2 * 0.5]]
    np.testing.assert_allclose(outer(inner(loss))(s), hessian, rtol=1e-6)


def test_no_derivative_flows_through_the_hard_argument():
    def loss(hard, soft):
        return jnp.sum(jp.straight_through(hard, soft) ** 2)

    hard, soft = jnp.array([2.0, 3.0]), jnp.array([0.1, 0.2])
    by_hard, by_soft = jax.grad(loss, argnums=(0, 1))(hard, soft)
    np.testing.assert_array_equal(by_hard, [0, 0])
    np.testing.assert_array_equal(by_soft, [4, 6])


LOGITS = np.array([-6.0, -2.5, -1.0, 0.0, 0.4, 2.0, 5.0])


def _sigma(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_sigmoid_and_threshold_gates_are_their_formulas(temperature):
    s = jnp.asarray(LOGITS, jnp.float32)
    p = _sigma(LOGITS / temperature)
    for t in (temperature, jnp.float32(temperature)):
        np.testing.assert_allclose(gates.sigmoid_gate(s, t), p, rtol=1e-5)
    shifted = gates.threshold_gate(s, 0.4, temperature)
    np.testing.assert_array_equal(shifted, np.float32(LOGITS) > np.float32(0.4))

    def loss(s, threshold):
        return jnp.sum(gates.threshold_gate(s, threshold, temperature))

    slopes, by_threshold = jax.grad(loss, argnums=(0, 1))(s, jnp.float32(0.4))
    q = _sigma((LOGITS - 0.4) / temperature)
    expected = q * (1 - q) / temperature
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(by_threshold, -expected.sum(), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_gates_have_the_shape_and_type_of_their_logits(dtype):
    s, key = jnp.zeros((3, 2), dtype), jax.random.key(0)
    made = [
        gates.sigmoid_gate(s, jnp.float32(2)),
        gates.threshold_gate(s, jnp.float32(0.5)),
        gates.gumbel_gate(s, key, jnp.float32(0.5)),
        gates.gumbel_gate(s, key, 0.5, hard=True),
        gates.hard_concrete(s, key),
        gates.hard_concrete_mean(s),
        gates.hard_concrete_nonzero(s),
    ]
    for p in made:
        assert (p.shape, p.dtype) == (s.shape, dtype)
        assert jnp.all((p >= 0) & (p <= 1))


def _draw(f, draws=200_000):
    """Samples of a gate at each of the logits, (draws, logits)."""
    s = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (draws, len(LOGITS)))
    return np.asarray(f(s, jax.random.key(7)), np.float64)


def _within_five_errors(found, expected, deviation, draws=200_000):
    error = np.maximum(deviation, 1e-4) / np.sqrt(draws)
    np.testing.assert_array_less(np.abs(found - expected), 5 * error)


@pytest.mark.parametrize("temperature", [0.2, 2.0])
def test_gumbel_gates_are_above_a_half_with_the_probability_of_the_logit(temperature):
    def sample(hard):
        return _draw(lambda s, key: gates.gumbel_gate(s, key, temperature, hard))

    soft, hard = sample(False), sample(True)
    np.testing.assert_array_equal(hard, soft > 0.5)
    p = _sigma(LOGITS)
    _within_five_errors(hard.mean(0), p, np.sqrt(p * (1 - p)))
    # The quantiles of the concrete distribution, inverted by hand.
    u = np.linspace(0.05, 0.95, 19)
    for column, s in zip(soft.T, LOGITS, strict=True):
        quantiles = _sigma((s + np.log(u / (1 - u))) / temperature)
        share = (column[:, None] <= quantiles).mean(0)
        told = quantiles < 1 - 1e-5  # from 1, in float32
        deviation = np.sqrt(u * (1 - u))
        _within_five_errors(share[told], u[told], deviation[told])


def test_a_hard_gumbel_gate_has_the_derivative_of_the_soft_one():
    s, key = jnp.asarray(LOGITS, jnp.float32), jax.random.key(3)

    def slopes(hard):
        return jax.grad(lambda s: jnp.sum(gates.gumbel_gate(s, key, 0.7, hard)))(s)

    np.testing.assert_array_equal(slopes(True), slopes(False))
    p = np.asarray(gates.gumbel_gate(s, key, 0.7), np.float64)
    np.testing.assert_allclose(slopes(True), p * (1 - p) / 0.7, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "constants", [gates.HardConcrete(), gates.HardConcrete(0.4, -0.3, 1.05)]
)
def test_hard_concrete_samples_have_its_distribution(constants):
    beta, gamma, zeta = constants
    z = _draw(lambda s, key: gates.hard_concrete(s, key, constants))
    s = jnp.asarray(LOGITS, jnp.float32)

    nonzero = np.asarray(gates.hard_concrete_nonzero(s, constants), np.float64)
    by_hand = _sigma(LOGITS - beta * np.log(-gamma / zeta))
    np.testing.assert_allclose(nonzero, by_hand, rtol=1e-5)
    _within_five_errors((z > 0).mean(0), nonzero, np.sqrt(nonzero * (1 - nonzero)))
    ones = _sigma(LOGITS - beta * np.log((1 - gamma) / (zeta - 1)))
    _within_five_errors((z == 1).mean(0), ones, np.sqrt(ones * (1 - ones)))

    # Moments by the midpoint rule over the uniform number.
    u = (np.arange(400_000) + 0.5) / 400_000
    noise = np.log(u / (1 - u))[:, None]
    values = np.clip(_sigma((noise + LOGITS) / beta) * (zeta - gamma) + gamma, 0, 1)
    _within_five_errors(z.mean(0), values.mean(0), values.std(0))

    still = np.clip(_sigma(LOGITS) * (zeta - gamma) + gamma, 0, 1)
    np.testing.assert_allclose(gates.hard_concrete_mean(s, constants), still, rtol=1e-5)


def test_the_derivative_of_a_hard_concrete_sample_is_that_of_its_formula():
    s, key, h = jnp.asarray(LOGITS, jnp.float32), jax.random.key(1), 1e-2
    slopes = jax.grad(lambda s: jnp.sum(gates.hard_concrete(s, key)))(s)
    z = np.asarray(gates.hard_concrete(s, key), np.float64)
    stretched = (z + 0.1) / 1.2
    expected = np.where(
        (z == 0) | (z == 1), 0, 1.2 * stretched * (1 - stretched) / (2 / 3)
    )
    np.testing.assert_allclose(slopes, expected, rtol=1e-3)
    assert np.any(expected > 0)
    assert np.any(expected == 0)
    ahead, behind = (gates.hard_concrete(s + x, key) for x in (h, -h))
    np.testing.assert_allclose(slopes, (ahead - behind) / (2 * h), atol=2e-3)


def test_noise_is_finite_and_symmetric_at_its_ends():
    # The least and the greatest of the 2^23 uniform numbers, as the code makes them.
    ends = (np.array([0, 2**23 - 1], np.float32) + np.float32(0.5)) * np.float32(2**-23)
    assert ends[0] > 0
    assert ends[1] < 1
    assert ends[0] == 1 - ends[1]
    noise = jax.random.key(5), jnp.zeros(1_000_000)
    drawn = np.asarray(_sampled._logistic(*noise), np.float64)
    assert np.all(np.isfinite(drawn))
    _within_five_errors(drawn.mean(), 0, np.pi / np.sqrt(3), 1_000_000)
    _within_five_errors(drawn.std() ** 2, np.pi**2 / 3, 6, 1_000_000)


def test_polarization_is_a_mean_over_all_leaves():
    rng = np.random.default_rng(0)
    tree = {"a": rng.random((3, 4)), "b": rng.random(5), "c": optax.MaskedNode()}
    flat = np.concatenate([tree["a"].ravel(), tree["b"]])
    found = gates.polarization(jax.tree.map(jnp.float32, tree))
    np.testing.assert_allclose(found, np.mean(flat * (1 - flat)), rtol=1e-5)
    hard = {"a": jnp.array([0.0, 1.0]), "b": jnp.array([True])}
    assert gates.polarization(hard) == 0
    assert gates.polarization(jnp.full(9, 0.5, jnp.bfloat16)) == 0.25
    assert gates.polarization({}) == 0
    one = {"a": jnp.array([0.0, 1.0, 1e-3]), "b": jnp.array([1.0])}
    assert gates.polarization(one) > 0


def test_expected_sparsity_counts_the_weights_behind_each_gate():
    rng = np.random.default_rng(1)
    params = {
        "channels": jnp.zeros((3, 4, 5)),
        "each": jnp.zeros((2, 3)),
        "layer": jnp.zeros((7, 2)),
        "bias": jnp.zeros(100),
        "norm": jnp.zeros(9),
    }
    p = {
        "channels": rng.random((1, 1, 5)),
        "each": rng.random((2, 3)),
        "layer": rng.random(()),
    }
    kept = sum(np.broadcast_to(p[k], params[k].shape).sum() for k in p)
    total = 60 + 6 + 14
    probabilities = jax.tree.map(jnp.float32, p)
    probabilities |= {"bias": optax.MaskedNode(), "norm": jnp.array(True)}
    found = gates.expected_sparsity(params, probabilities)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 1 - kept / total, rtol=1e-5)

    chosen = {"channels": probabilities["channels"]}
    weights = {"channels": params["channels"]}
    slopes = jax.grad(lambda p: gates.expected_sparsity(weights, p))(chosen)
    np.testing.assert_allclose(slopes["channels"], np.full((1, 1, 5), -12 / 60))
    assert gates.expected_sparsity(params, jp.masks.full(params)) == 0


def test_expected_sparsity_of_masks_is_their_sparsity():
    rng = np.random.default_rng(2)
    params = {"a": jnp.zeros((8, 6)), "b": jnp.zeros((4, 4)), "c": jnp.zeros(3)}
    masks = {
        "a": jnp.asarray(rng.random((1, 6)) > 0.5),
        "c": jnp.array(True),
        "b": jnp.asarray(rng.random((4, 4)) > 0.3),
    }
    found = jax.jit(gates.expected_sparsity)(params, masks)
    np.testing.assert_allclose(found, jp.sparsity(params, masks), rtol=1e-6)


def test_gates_that_do_not_fit_their_leaf_are_named():
    params = {"w": jnp.zeros((4, 6))}
    for shape in [(6,), (2, 6), (4, 3)]:
        with pytest.raises(jp.PruningError, match=r"'w' have shape .* \(4, 6\)"):
            gates.expected_sparsity(params, {"w": jnp.zeros(shape)})


def test_one_descent_plays_both_sides_of_a_game():
    # min over x, max over y of x^2 / 2 + 2 x y - y^2 / 2 + y has its saddle at
    # x = -2 y and 2 x - y + 1 = 0: y = 1 / 5, x = -2 / 5.
    def game(v):
        y = gates.reverse_gradient({"y": v["y"]})["y"]
        return v["x"] ** 2 / 2 + 2 * v["x"] * y - y**2 / 2 + y

    def step(v, _):
        return jax.tree.map(lambda x, g: x - 0.1 * g, v, jax.grad(game)(v)), None

    start = {"x": jnp.float32(1), "y": jnp.float32(-1)}
    end, _ = jax.lax.scan(step, start, length=300)
    np.testing.assert_allclose(end["x"], -0.4, atol=1e-4)
    np.testing.assert_allclose(end["y"], 0.2, atol=1e-4)
    x = jnp.float32(3)
    assert gates.reverse_gradient(x) == 3
    assert jax.jvp(gates.reverse_gradient, (x,), (x,))[1] == -3
    assert jax.vmap(jax.grad(gates.reverse_gradient))(x[None])[0] == -1


@pytest.mark.optimized
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_logits_draw_the_same_gates_where_they_are(kind):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    host, key = np.linspace(-3, 3, 64, dtype="f4").reshape(16, 4), jax.random.key(2)
    logits = jax.device_put(host, NamedSharding(mesh, PartitionSpec("x")))

    @jax.jit
    def step(s, key):
        drawn = gates.hard_concrete(s, key), gates.gumbel_gate(s, key, 0.5, hard=True)
        return *drawn, gates.expected_sparsity({"w": s}, {"w": drawn[0]})

    compiled = step.lower(logits, key).compile()
    assert "all-gather" not in compiled.as_text()
    found = compiled(logits, key)
    for one, other in zip(found, step(host, key), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert found[0].sharding.is_equivalent_to(logits.sharding, 2)
