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


def test_a_target_out_of_reach_is_said_before_training():
    def never(small_fn, small, step):
        raise AssertionError("trained")

    with pytest.raises(jp.PruningError, match="Even the minimum sizes cost"):
        jg.compress_gradually(
            net, arrays(), X, train=never, steps=3, remove=0.9, most=0.5
        )


def test_a_target_that_rounding_met_before_leaves_all():
    """Width 2 to 1 is all that may go, and half of the cost."""
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 1))}
    mlp = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    steps = []

    def train(small_fn, small, step):
        steps.append(small["a"].shape)
        return small

    found = jg.compress_gradually(
        mlp, params, X[:, :3], train=train, steps=2, remove=0.5, multiple_of=1
    )
    assert steps == [(3, 1), (3, 1)]
    assert found.cost_after == found.cost_before / 2


def test_a_budget_that_sizes_meet_exactly():
    """5 tokens: (4 + 2) 8 of (4 + 2) 80 multiply-adds are left of 1 - 0.9."""
    params = {"a": jnp.ones((4, 80)), "b": jnp.ones((80, 2))}
    mlp = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    small = jg.compress(mlp, params, X[:, :4], remove=0.9)
    assert (small.cost_before, small.cost_after) == (2400, 240)
    small = jg.compress_gradually(
        mlp, params, X[:, :4], train=idle, steps=3, remove=0.9
    )
    assert small.cost_after == 240


def test_leaves_that_stay_whole_are_not_taken_for_others():
    """The path of a whole leaf is the end of the path of one that shrinks."""

    def fn(p, x):
        hidden = jnp.tanh(x @ p["block"]["out"]["w"]) @ p["block"]["down"]
        return jnp.tanh(hidden @ p["out"]["w"]) @ p["head"]

    draw = np.random.default_rng(0).normal
    block = {"out": {"w": draw(size=(6, 32))}, "down": draw(size=(32, 6))}
    out = {"w": draw(size=(6, 32))}
    params = {"block": block, "out": out, "head": draw(size=(32, 2))}
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)
    found = jg.compress_gradually(
        fn, params, X, train=idle, steps=2, remove=0.3, exclude=["out/w", "head"]
    )
    assert found.params["out"]["w"].shape == (6, 32)
    assert found.params["block"]["out"]["w"].shape[1] < 32
    cut = jg.slice_tree(found.plan, params)
    jax.tree.map(np.testing.assert_array_equal, cut, found.params)


def attend(p, x):
    """Heads and their dimensions in one axis of a kernel, and a hidden layer."""
    q, k, v = ((x @ p[name]).reshape(x.shape[0], -1, 8) for name in "qkv")
    x = x + jax.nn.dot_product_attention(q, k, v).reshape(x.shape[0], -1) @ p["out"]
    return jnp.tanh(x @ p["up"]) @ p["down"]


def test_groups_are_known_by_their_axes_when_heads_are_gone():
    """Where one head is left, its dimensions stay, as in one call of `compress`."""
    draw = np.random.default_rng(0).normal
    shapes = dict.fromkeys("qkv", (6, 32)) | {"out": (32, 6)}
    shapes |= {"up": (6, 64), "down": (64, 3)}
    params = {n: jnp.asarray(draw(size=s), jnp.float32) for n, s in shapes.items()}
    for name in "qkv":  # all heads but the first are worth little
        params[name] = params[name].at[:, 8:].multiply(0.01)
    params["out"] = params["out"].at[8:].multiply(0.01)
    groups, seen, widths = jg.trace(attend, params, X).groups, [], []

    def most(group):
        seen.append((group.name, group.size))
        return 1.0

    def train(small_fn, small, step):
        widths.append((small["q"].shape[1], small["up"].shape[1]))
        return small

    found = jg.compress_gradually(
        attend, params, X, train=train, steps=4, remove=0.8, multiple_of=1, most=most
    )
    heads, hidden = zip(*widths, strict=True)
    assert heads[-1] == heads[-2] == 8  # one head, whose dimensions stay
    assert hidden[-1] < hidden[-2]
    assert set(seen) <= {(name, group.size) for name, group in groups.items()}
    assert found.cost_after <= 0.2 * found.cost_before


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
