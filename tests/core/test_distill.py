"""Attention maps against float64 NumPy, and what they are for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune import distill
from jprune import graph as jg

FEATURES = np.random.default_rng(0).normal(size=(3, 4, 5, 6))


def _map(features, power):
    """Float64."""
    sums = (np.abs(np.asarray(features, np.float64)) ** power).sum(-1)
    return sums / np.sqrt((sums**2).sum((-2, -1), keepdims=True))


@pytest.mark.parametrize("power", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_maps_by_numpy_at_any_scale(power, scale):
    found = distill.attention_map(jnp.float32(scale * FEATURES), power=power)
    np.testing.assert_allclose(found, _map(FEATURES, power), rtol=2e-5)
    assert found.dtype == jnp.float32


def test_maps_of_low_precision_are_float32():
    found = distill.attention_map(jnp.asarray(FEATURES, jnp.bfloat16))
    rounded = np.asarray(jnp.asarray(FEATURES, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(found, _map(rounded, 2), rtol=1e-5)
    assert found.dtype == jnp.float32


def test_nothing_gives_nothing_and_no_nan():
    zeros = jnp.zeros((2, 3, 3, 4))
    value, slopes = jax.value_and_grad(
        lambda x: distill.attention_map(x).sum() + jnp.square(x).sum()
    )(zeros)
    assert value == 0
    np.testing.assert_array_equal(slopes, zeros)


def test_the_gradient_is_that_of_the_formula():
    """By central differences in float64, in spite of the scaling by the largest."""
    x = np.random.default_rng(1).normal(size=(2, 3, 2))
    weights = np.random.default_rng(2).normal(size=(2, 3))

    def value(x):
        return float((weights * _map(x, 2)).sum())

    wanted = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-5
        wanted[i] = (value(x + step) - value(x - step)) / 2e-5
    found = jax.grad(lambda x: (jnp.float32(weights) * distill.attention_map(x)).sum())(
        jnp.float32(x)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_loss_by_numpy_over_networks_of_other_widths():
    rng = np.random.default_rng(3)
    student = [rng.normal(size=(3, 4, 5, 2)), rng.normal(size=(3, 2, 2, 7))]
    teacher = [FEATURES, rng.normal(size=(3, 2, 2, 1))]
    wanted = np.mean(
        [
            ((_map(a, 2) - _map(b, 2)) ** 2).sum((-2, -1)).mean()
            for a, b in zip(student, teacher, strict=True)
        ]
    )
    maps = [
        [distill.attention_map(jnp.float32(x)) for x in f] for f in (student, teacher)
    ]
    np.testing.assert_allclose(distill.attention_loss(*maps), wanted, rtol=1e-5)
    assert distill.attention_loss(maps[0], maps[0]) == 0
    slopes = jax.grad(distill.attention_loss, argnums=1)(*maps)
    assert not any(map(np.any, slopes)), "the teacher does not learn"


def test_channels_may_be_in_any_order_and_zeros_do_not_count():
    x = jnp.float32(FEATURES)
    some = distill.attention_map(jnp.concatenate([x[..., ::-1], 0 * x], axis=-1))
    np.testing.assert_allclose(some, distill.attention_map(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: distill.attention_map(jnp.ones((2, 2))), r"height, width, channels"),
        (lambda: distill.attention_map(jnp.ones((2, 2, 2), int)), "floating"),
        (
            lambda: distill.attention_map(jnp.ones((2, 2, 2)), power=0),
            "positive; got 0",
        ),
        (lambda: distill.attention_loss([], []), "need at least one map"),
        (
            lambda: distill.attention_loss([jnp.ones((2, 3))], [jnp.ones((1, 3))]),
            r"\(2, 3\).*\(1, 3\)",
        ),
        (
            lambda: distill.attention_loss([jnp.ones((1, 3))], [jnp.ones((1, 3))] * 2),
            "need at least one map",
        ),
    ],
)
def test_misuse_says_what_it_got(make, match):
    with pytest.raises(jp.PruningError, match=match):
        make()


@pytest.mark.others_code
def test_a_shrunk_network_looks_where_the_full_one_does():
    """The student's features have half of the channels; its kernel learns."""

    def features(params, images):
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            images, params["in"], (1, 1), "SAME", dimension_numbers=dims
        )
        return jnp.tanh(x)

    def net(params, images):
        x = features(params, images)
        return distill.attention_map(x), x.mean((1, 2)) @ params["out"]

    rng = np.random.default_rng(4)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params, images = {"in": draw(3, 3, 2, 8), "out": draw(8, 3)}, draw(5, 6, 6, 2)
    graph = jg.trace(net, params, images)
    (name,) = graph.groups
    plan = jg.make_plan(graph, {name: np.arange(4)})
    small, at = jg.shrink(graph, params, plan)
    teacher, _ = net(params, images)
    tx = optax.adam(1e-2)

    def loss(params):
        return distill.attention_loss(small(params, images)[0], teacher)

    @jax.jit
    def step(carry, _):
        at, state = carry
        value, grads = jax.value_and_grad(loss)(at)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(at, updates), state), value

    _, values = jax.lax.scan(step, (at, tx.init(at)), length=100)
    assert values[-1] < 0.4 * values[0]
