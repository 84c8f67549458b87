"""Searching for masks over frozen weights: by hand, by property, and what is found."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import jprune as jp
from jprune.learned import _score_ranked
from jprune.recipes import _score_search

pytestmark = pytest.mark.others_code

_RNG = np.random.default_rng(0)
W, V = _RNG.normal(size=(6, 4)), _RNG.normal(size=(4, 2))
X, Y = _RNG.normal(size=(6, 16, 6)), _RNG.normal(size=(6, 16, 2))
KEY = jax.random.key(0)


def _f32(x):
    return jnp.asarray(x, jnp.float32)


PARAMS = {
    "first": {"kernel": _f32(W), "bias": jnp.zeros(4)},
    "second": {"kernel": _f32(V)},
}
BATCHES = [(_f32(x), _f32(y)) for x, y in zip(X, Y, strict=True)]


def _loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
    return jnp.mean(jnp.square(hidden @ params["second"]["kernel"] - y))


def _slopes(w, v, x, y):
    hidden = np.tanh(x @ w)
    slope = 2 * (hidden @ v - y) / y.size
    return x.T @ (slope @ v.T * (1 - hidden**2)), hidden.T @ slope


def _top(scores, kept):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:kept]] = True
    return mask.reshape(scores.shape)


def _kernels(tree):
    return np.asarray(tree["first"]["kernel"]), np.asarray(tree["second"]["kernel"])


def _cosine(step, steps):
    return (1 + math.cos(math.pi * step / steps)) / 2


# ---- the first scores ----


def test_hydra_starts_from_the_weights():
    """sqrt(6 / fan-in) w / max |w|; the fan-in of a convolution is its window's."""
    params = {
        "conv": {"kernel": _f32(_RNG.normal(size=(3, 3, 4, 5)))},
        "dense": {"kernel": _f32(_RNG.normal(size=(8, 3)))},
        "torch": {"weight": _f32(_RNG.normal(size=(3, 8)))},
        "empty": {"kernel": jnp.zeros((2, 2))},
    }
    loss = lambda p, b: jnp.zeros(())  # noqa: E731
    state = jp.recipes.hydra(loss, 0.5, steps=3).init(params, KEY)
    for layer, name, fan_in in (
        ("conv", "kernel", 36),
        ("dense", "kernel", 8),
        ("torch", "weight", 8),
    ):
        w = np.float64(params[layer][name])
        expected = math.sqrt(6 / fan_in) * w / np.abs(w).max()
        np.testing.assert_allclose(state.aux[layer][name], expected, rtol=1e-5)
    assert not np.any(state.aux["empty"]["kernel"])


def test_hydra_starts_from_weights_of_half_precision_without_rounding():
    """Weights that differ have scores that differ."""
    w = jnp.linspace(0.5, 1, 129, dtype=jnp.bfloat16)[:128].reshape(8, 16)
    loss = lambda p, b: jnp.zeros(())  # noqa: E731
    state = jp.recipes.hydra(loss, 0.5, steps=3).init({"kernel": w}, KEY)
    assert state.aux["kernel"].dtype == jnp.float32
    assert np.unique(state.aux["kernel"]).size == np.unique(w.astype(jnp.float32)).size


@pytest.mark.parametrize("recipe", ["edge_popup", "sign_supermask"])
def test_random_scores_fill_their_bounds(recipe):
    params = {"conv": {"kernel": jnp.ones((3, 3, 4, 50))}}
    loss = lambda p, b: jnp.zeros(())  # noqa: E731
    method = getattr(jp.recipes, recipe)(loss, 0.5, steps=3)
    s = np.asarray(method.init(params, KEY).aux["conv"]["kernel"])
    bound = 1 / 6  # of a fan-in of 36
    assert 0.99 * bound < s.max() <= bound
    if recipe == "sign_supermask":
        assert s.min() >= 0, "no weight is inverted at first"
    else:
        assert -bound <= s.min() < -0.99 * bound
        assert abs(s.mean()) < 0.01
    other = method.init(params, jax.random.key(1)).aux["conv"]["kernel"]
    assert np.any(other != s)


# ---- the steps ----


@pytest.mark.parametrize("recipe", ["hydra", "edge_popup", "sign_supermask"])
def test_the_loop_is_the_one_in_float64(recipe):
    """Momentum, weight decay, the cosine, and the straight-through gradients."""
    steps, kept, rate = 6, (12, 4), 1.0 if recipe == "hydra" else 0.1
    method = getattr(jp.recipes, recipe)(_loss, 0.5, steps=steps, learning_rate=rate)
    state = method.init(PARAMS, KEY)
    w = [W, V]
    s = [np.float64(x) for x in _kernels(state.aux)]
    trace = [np.zeros_like(x) for x in s]
    first = [_top(np.abs(x), k) for x, k in zip(s, kept, strict=True)]
    for step, (x, y) in enumerate(zip(X, Y, strict=True)):
        m = [_top(np.abs(x), k) for x, k in zip(s, kept, strict=True)]
        sign = [np.where(x < 0, -1, 1) for x in s]
        flip = sign if recipe == "sign_supermask" else [1, 1]
        g = _slopes(*(a * b * c for a, b, c in zip(w, m, flip, strict=True)), x, y)
        back = [1, 1] if recipe == "sign_supermask" else sign
        for i in range(2):
            slope = back[i] * w[i] * g[i] + 1e-4 * s[i]
            trace[i] = slope + 0.9 * trace[i]
            s[i] = s[i] - rate * _cosine(step, steps) * trace[i]
        state, _ = method.step(state, BATCHES[step])
        for found, expected in zip(_kernels(state.aux), s, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    m = [_top(np.abs(x), k) for x, k in zip(s, kept, strict=True)]
    assert any(np.any(a != b) for a, b in zip(m, first, strict=True))
    params, masks = method.finish(state)
    flip = [np.where(x < 0, -1, 1) for x in s]
    flip = flip if recipe == "sign_supermask" else [1, 1]
    for i in range(2):
        np.testing.assert_array_equal(_kernels(masks)[i], m[i])
        np.testing.assert_allclose(
            _kernels(params)[i], w[i] * m[i] * flip[i], rtol=1e-5, atol=1e-7
        )
    np.testing.assert_array_equal(
        state.params["first"]["kernel"], PARAMS["first"]["kernel"]
    )


def test_a_signed_supermask_has_three_values():
    """-w, 0 and w, each of them."""
    method = jp.recipes.sign_supermask(_loss, 0.3, steps=6, learning_rate=10.0)
    state = method.init(PARAMS, KEY)
    for batch in BATCHES:
        state, _ = method.step(state, batch)
    params, _ = method.finish(state)
    ratio = np.concatenate(
        [
            (z / w).ravel()
            for z, w in zip(_kernels(params), _kernels(PARAMS), strict=True)
        ]
    )
    assert set(ratio.tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("restriction", [4.0, None])
def test_jackpots_by_hand(restriction):
    """Scores in float64; the swaps one at a time."""
    steps, share = 6, lambda t: (1 - t / 6) ** 4 if restriction else 1.0
    method = jp.recipes.lottery_jackpots(
        _loss, 0.5, steps=steps, restriction=restriction
    )
    state = method.init(PARAMS, KEY)
    flat = _top(np.abs(np.concatenate([W.ravel(), V.ravel()])), 16)
    w, m = [W, V], [flat[:24].reshape(6, 4), flat[24:].reshape(4, 2)]
    s = [np.where(x, 1.0, 0.99) for x in m]
    trace, counts, changed = [0.0, 0.0], [x.sum() for x in m], 0
    for step, (x, y) in enumerate(zip(X, Y, strict=True)):
        for found, expected in zip(_kernels(state.masks), m, strict=True):
            np.testing.assert_array_equal(found, expected)
        g = _slopes(W * m[0], V * m[1], x, y)
        for i in range(2):
            trace[i] = w[i] * g[i] + 5e-4 * s[i] + 0.9 * trace[i]
            s[i] = s[i] - 0.1 * _cosine(step, steps) * trace[i]
            best = _top(s[i], counts[i])
            comes, goes = best & ~m[i], m[i] & ~best
            for _ in range(math.ceil(comes.sum() * share(step + 1))):
                a = np.unravel_index(np.argmax(np.where(comes, s[i], -9)), s[i].shape)
                b = np.unravel_index(np.argmin(np.where(goes, s[i], 9)), s[i].shape)
                m[i] = m[i].copy()
                m[i][a], m[i][b], comes[a], goes[b] = True, False, False, False
                changed += 1
        state, _ = method.step(state, BATCHES[step])
    assert changed > 0
    params, masks = method.finish(state)
    for i in range(2):
        np.testing.assert_array_equal(_kernels(masks)[i], m[i])
        np.testing.assert_array_equal(_kernels(params)[i], np.float32(w[i]) * m[i])


def _swaps(restriction, steps=20):
    """How many swaps each step makes where gradients are nothing but noise."""
    draw = np.random.default_rng(0).normal
    params = {
        "a": {"kernel": _f32(draw(size=(16, 8)))},
        "b": {"kernel": jnp.ones((9, 9))},
    }

    def loss(p, b):
        each = [jnp.sum(p[k]["kernel"] * b[k]) for k in p]
        return jnp.sum(jnp.stack(each))

    method = jp.recipes.lottery_jackpots(
        loss, 0.5, steps=steps, restriction=restriction
    )
    state, found = method.init(params, KEY), []
    for _ in range(steps):
        before = jax.tree.map(np.asarray, state.masks)
        noise = {"a": _f32(draw(size=(16, 8))), "b": _f32(draw(size=(9, 9)))}
        state, _ = method.step(state, noise)
        pairs = [
            (before[k]["kernel"], np.asarray(state.masks[k]["kernel"])) for k in "ab"
        ]
        assert all(a.sum() == b.sum() for a, b in pairs), "layers keep their counts"
        found.append(sum(int((a & ~b).sum()) for a, b in pairs))
    return found


def test_the_short_restriction_brings_the_mask_to_rest():
    restricted, free = _swaps(4.0), _swaps(None)
    assert restricted[-1] == 0, "no swap at the last step"
    assert 0 < sum(restricted) < 0.85 * sum(free)  # measured: 75 and 97


def test_numbers_out_of_range_are_refused_at_once():
    for recipe in ("hydra", "edge_popup", "sign_supermask", "lottery_jackpots"):
        with pytest.raises(jp.PruningError, match="steps must be at least 1; got 0"):
            getattr(jp.recipes, recipe)(_loss, 0.5, steps=0)
    with pytest.raises(jp.PruningError, match="restriction must be >= 0 or None"):
        jp.recipes.lottery_jackpots(_loss, 0.5, steps=3, restriction=-1.0)


@pytest.mark.optimized
def test_the_share_of_swaps_ends_at_exactly_zero():
    """XLA makes t / steps a product, by which 1 - t / steps misses 0 at 41 and 49."""
    for steps in (6, 41, 49):
        share = jax.jit(_score_search._falling_share(4.0, steps))
        assert float(share(jnp.int32(steps))) == 0
        assert float(share(jnp.int32(0))) == pytest.approx(1, rel=1e-6)
    assert float(_score_search._falling_share(0.0, 6)(jnp.int32(6))) == 1


# ---- the swap ----

_LEAF = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.booleans(), min_size=n, max_size=n),
        st.lists(st.floats(-4, 4, width=16), min_size=n, max_size=n),
    )
)
_SWAP = jax.jit(_score_ranked._swap)


def _swapped(leaf, share):
    """In leaves of one length, so that one program serves all examples."""
    mask, s = np.zeros(40, bool), np.full(40, -100.0, np.float32)
    mask[: len(leaf[0])], s[: len(leaf[1])] = leaf
    # Equal scores are told apart by their place: of ties the first come first.
    after = _SWAP({"a": mask, "b": ~mask}, {"a": s, "b": -s}, np.float32(share))
    return mask, s, jax.tree.map(np.asarray, after)


@hypothesis.given(leaf=_LEAF, share=st.floats(0, 1, width=32))
@hypothesis.settings(deadline=None, max_examples=100, derandomize=True)
def test_a_swap_keeps_the_count_and_makes_a_share_of_the_swaps(leaf, share):
    mask, s, after = _swapped(leaf, share)
    for before, scores, name in ((mask, s, "a"), (~mask, -s, "b")):
        assert before.sum() == after[name].sum()
        possible = int((_top(scores, before.sum()) & ~before).sum())
        comes, goes = after[name] & ~before, before & ~after[name]
        swaps = math.ceil(np.float32(possible) * np.float32(share))
        assert comes.sum() == goes.sum() == swaps
        if swaps:  # the best of those that could come, the worst that could go
            assert scores[comes].min() >= scores[goes].max()
            stays_out = ~before & ~comes
            assert not stays_out.any() or scores[comes].min() >= scores[stays_out].max()
            stays_in = before & ~goes
            assert not stays_in.any() or scores[goes].max() <= scores[stays_in].min()


@hypothesis.given(leaf=_LEAF)
@hypothesis.settings(deadline=None, max_examples=50, derandomize=True)
def test_the_ends_of_the_share(leaf):
    """0 changes nothing, 1 keeps the best scores."""
    mask, s, after = _swapped(leaf, 0.0)
    np.testing.assert_array_equal(after["a"], mask)
    _, _, after = _swapped(leaf, 1.0)
    np.testing.assert_array_equal(after["a"], _top(s, mask.sum()))
    np.testing.assert_array_equal(after["b"], _top(-s, (~mask).sum()))


# ---- what is found ----


def test_a_search_beats_magnitude_on_frozen_weights():
    """A net that does two things; the task is the one that its small weights do."""
    rng = np.random.default_rng(1)
    kernel = np.concatenate([rng.normal(size=(8, 4)), 5 * rng.normal(size=(8, 4))])
    params = {"kernel": _f32(kernel)}

    def batch(i):
        x = np.random.default_rng(i).normal(size=(64, 16))
        return _f32(x), _f32(x[:, :8] @ kernel[:8])

    loss = lambda p, b: jnp.mean(jnp.square(b[0] @ p["kernel"] - b[1]))  # noqa: E731
    pruned, _ = jp.prune(params, jp.recipes.magnitude(0.5))
    worst = float(loss(pruned, batch(99)))
    # Measured: 0.15, 0.05 and 0 of magnitude's loss.
    shares = {"hydra": 0.25, "edge_popup": 0.1, "lottery_jackpots": 0.01}
    for recipe, share in shares.items():
        method = getattr(jp.recipes, recipe)(loss, 0.5, steps=60)
        state = method.init(params, KEY)
        for i in range(60):
            state, _ = method.step(state, batch(i))
        found, masks = method.finish(state)
        assert float(loss(found, batch(99))) < share * worst, recipe
        assert np.mean(np.asarray(masks["kernel"])[:8]) > 0.7, recipe


def test_a_schedule_of_the_sparsity():
    schedule = optax.linear_schedule(0.0, 0.75, 3)
    method = jp.recipes.edge_popup(_loss, schedule, steps=6)
    state, found = method.init(PARAMS, KEY), []
    for batch in BATCHES[:4]:
        state, info = method.step(state, batch)
        found.append(float(info.sparsity))
    assert found == [0.25, 0.5, 0.75, 0.75]


@pytest.mark.parametrize(
    "recipe", ["hydra", "edge_popup", "sign_supermask", "lottery_jackpots"]
)
@pytest.mark.parametrize("sparsity", [-0.1, 1.5, float("nan")])
def test_a_sparsity_outside_its_range_is_refused_at_once(recipe, sparsity):
    with pytest.raises(jp.PruningError, match=str(sparsity)):
        getattr(jp.recipes, recipe)(_loss, sparsity, steps=3)
