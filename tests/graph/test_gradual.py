"""`compress_gradually`: budgets of the steps, one plan at the end, ratios, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import graph as jg

SHAPES = {"a": (6, 32), "b": (32, 48), "c": (48, 3)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)


def net(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


def arrays(seed=0):
    draw = np.random.default_rng(seed).normal
    return {n: jnp.asarray(draw(size=s), jnp.float32) for n, s in SHAPES.items()}


def idle(small_fn, small, step):
    del small_fn, step
    return small


def test_one_step_without_training_is_compress():
    params = arrays()
    found = jg.compress_gradually(net, params, X, train=idle, steps=1, remove=0.6)
    one = jg.compress(net, params, X, remove=0.6)
    jax.tree.map(np.testing.assert_array_equal, found.plan, one.plan)
    jax.tree.map(np.testing.assert_array_equal, found.params, one.params)
    assert (found.cost_before, found.cost_after) == (one.cost_before, one.cost_after)


def test_each_step_meets_its_budget_and_training_is_kept():
    params, seen = arrays(), []

    def train(small_fn, small, step):
        assert small_fn(small, X).shape == (5, 3)
        a, b, c = (small[name].shape for name in "abc")
        cost = 5 * (a[0] * a[1] + b[0] * b[1] + c[0] * c[1])
        seen.append((step, cost))
        return jax.tree.map(lambda w: w + 1.0, small)

    found = jg.compress_gradually(
        net, params, X, train=train, steps=4, remove=0.8, multiple_of=1
    )
    full = 5 * sum(np.prod(s) for s in SHAPES.values())
    assert found.cost_before == full
    for i, (step, cost) in enumerate(seen):
        budget = full * (1 - 0.8 * (i + 1) / 4)
        # Within it, by less than the largest entry costs.
        assert step == i
        assert budget - 5 * (32 + 48 + 6) < cost <= budget
    assert found.cost_after == seen[-1][1]
    # Of the full arrays what the plan keeps, trained four times.
    for name, w in jg.slice_tree(found.plan, params).items():
        np.testing.assert_allclose(found.params[name], w + 4.0, rtol=1e-6)
    trained = {name: w + 4.0 for name, w in params.items()}
    expected = jg.without_entries(found.graph, found.keep)(trained, X)
    np.testing.assert_allclose(
        jax.jit(found.fn)(found.params, X), expected, rtol=1e-5, atol=1e-5
    )


def test_later_steps_see_what_was_trained():
    """Training empties the best entry of the first step, so the next removes it."""
    params = arrays()

    def train(small_fn, small, step):
        if step:
            return small
        norms = jnp.sum(small["b"] ** 2, axis=0) + jnp.sum(small["c"] ** 2, axis=1)
        seen.append(float(norms.max()))
        gone = jnp.argmax(norms)
        return {
            "a": small["a"],
            "b": small["b"].at[:, gone].set(0.0),
            "c": small["c"].at[gone].set(0.0),
        }

    seen = []
    found = jg.compress_gradually(
        net, params, X, train=train, steps=2, remove=0.4, multiple_of=1, exclude="a"
    )
    left = jnp.sum(found.params["b"] ** 2, axis=0)
    assert seen
    assert np.all(left > 0)
    assert np.all(left + jnp.sum(found.params["c"] ** 2, axis=1) < seen[0])
    assert found.params["a"].shape == SHAPES["a"]


def test_a_ratio_per_layer_is_of_the_full_size():
    ratio = {"a[1]": 0.25, "b[1]": 0.75}
    found = jg.compress_gradually(
        net,
        arrays(),
        X,
        train=idle,
        steps=3,
        remove=0.6,
        multiple_of=1,
        most=lambda group: ratio[group.name],
    )
    assert found.params["a"].shape[1] >= 24
    assert found.params["b"].shape[1] >= 12
    # All that may go: then the rest of the budget cannot be met, and this is said.
    with pytest.raises(jp.PruningError, match="Even the minimum sizes cost"):
        jg.compress_gradually(
            net, arrays(), X, train=idle, steps=3, remove=0.9, most=ratio_of(ratio)
        )


def ratio_of(ratio):
    return lambda group: ratio[group.name]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "positive number; got 0"),
        ({"remove": 1.0}, r"\[0, 1\); got 1.0"),
        ({"most": 1.5}, r"\[0, 1\]; got 1.5 for a\[1\]"),
        ({"most": lambda group: -0.1}, r"\[0, 1\]; got -0.1"),
        ({"exclude": "nothing"}, "nothing"),
        ({"train": lambda fn, p, i: arrays()}, "train has to return .* at a"),
    ],
)
def test_what_is_wrong_is_said(wrong, message):
    given = {"train": idle, "steps": 2} | wrong
    with pytest.raises(jp.PruningError, match=message):
        jg.compress_gradually(net, arrays(), X, **given)
