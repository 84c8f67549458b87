"""Merged tokens, routed tokens, predicted masks: against loops written from the papers.

Sizes add up, merging nothing is the identity, and a loop over pairs in float64 gives
the same means.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import attention as ja
from jprune.attention import merge, routers, soft


def _merged_by_hand(x, metric, sizes, count, valid, protected):
    """Section 3 of the paper: lists, and the mean of all that each token stands for."""
    n = len(x)
    unit = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    edges = []
    for i in range(0, n, 2):

        def likeness(j, i=i):
            free = all(valid[t] and not protected[t] for t in (i, j))
            return unit[i] @ unit[j] if free else -2

        best = max(range(1, n, 2), key=lambda j: (likeness(j), -j))
        edges.append((-3 if protected[i] else likeness(best), -i, best))
    goes = {-i: j for _, i, j in sorted(edges, reverse=True)[:count]}
    out, new = [], []
    for i in range(n):
        if i in goes:
            continue
        members = [i] + [a for a, b in goes.items() if b == i]
        total = sum(sizes[m] for m in members)
        out.append(sum(sizes[m] * x[m] for m in members) / max(total, 1e-9))
        new.append(total)
    return np.array(out), np.array(new)


@pytest.mark.parametrize("n", [2, 9, 16])
def test_merging_is_the_loop_over_pairs(n):
    rng = np.random.default_rng(n)
    for count in sorted({0, 1, n // 2}):
        x = rng.standard_normal((7, n, 4)).astype("f4")
        metric = rng.standard_normal((7, n, 6)).astype("f4")
        sizes = rng.integers(1, 4, (7, n)).astype("f4")
        valid = np.arange(n) < rng.integers(1, n + 1, (7, 1))
        protected = (np.arange(n) == 0)[None] & (rng.random((7, 1)) < 0.5)
        sizes = np.where(valid, sizes, 0)
        matching = merge.match(
            jnp.asarray(metric),
            count,
            valid=jnp.asarray(valid),
            protected=jnp.asarray(protected),
        )
        found = merge.merge(jnp.asarray(x), jnp.asarray(sizes), matching)
        for b in range(7):
            out, new = _merged_by_hand(
                x[b], metric[b], sizes[b], count, valid[b], protected[b]
            )
            np.testing.assert_allclose(found[1][b], new)
            real = new > 0
            np.testing.assert_allclose(
                found[0][b][real], out[real], rtol=1e-4, atol=1e-6
            )
            if protected[b, 0] and count < (n + 1) // 2:  # while others can go
                np.testing.assert_allclose(found[0][b, 0], x[b, 0], rtol=1e-6)
        back = merge.unmerge(found[0], matching.source)
        assert back.shape == x.shape
        if count == 0:
            np.testing.assert_allclose(back[valid], x[valid], rtol=1e-6)


def test_equal_tokens_merge_into_the_same_attention():
    """Each token twice, side by side: half of them say all, if sizes count."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(np.repeat(rng.standard_normal((2, 4, 8)), 2, 1), jnp.float32)
        for _ in range(3)
    )
    k = k.at[:, 6:].set(k[:, :2])  # so that sizes end up 4, 2, 2
    v = v.at[:, 6:].set(v[:, :2])
    whole = ja.attend(q, k, v)[0]
    both = jnp.concatenate([k, v], -1)
    sizes = jnp.ones((2, 8))
    matching = merge.match(k, 4)
    both, sizes = merge.merge(both, sizes, matching)
    assert both.shape == (2, 4, 16)
    for head in range(2):  # sizes of each head's own tokens
        args = (q[head][None], both[head][None, :, :8], both[head][None, :, 8:])
        found = soft.gated_attend(*args, sizes[head])[0][0]
        np.testing.assert_allclose(found, whole[head], atol=1e-5)
    with pytest.raises(jp.PruningError, match="merge 5 of 8"):
        merge.match(k, 5)


def test_two_layers_of_merging_compose_and_have_derivatives():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 12, 4)), jnp.float32)

    @jax.jit
    def twice(x):
        first = merge.match(x, 4)
        y, sizes = merge.merge(x, jnp.ones(x.shape[:-1]), first)
        second = merge.match(y, 3)
        y, sizes = merge.merge(y, sizes, second)
        return y, sizes, ja.take(second.source, first.source)

    y, sizes, source = twice(x)
    np.testing.assert_allclose(sizes.sum(-1), 12)
    for b in range(3):
        for j in range(5):
            members = np.asarray(source[b]) == j
            assert members.sum() == float(sizes[b, j])
            np.testing.assert_allclose(y[b, j], x[b][members].mean(0), atol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(twice(x)[0] * twice(x)[1][..., None]))(x)
    np.testing.assert_allclose(slope, 1, rtol=1e-5)  # sums do not change


def test_what_a_router_knows():
    importance = jnp.array([[2.0, 8.0, 2.0, 5.0], [1.0, 0.0, 7.0, 9.0]])
    valid = jnp.array([[True] * 4, [True, True, True, False]])
    known = routers.factors(importance, jnp.array([0.25, 0.5]), valid)
    np.testing.assert_allclose(known[0, :, 0], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(known[0, :, 1], [0.25, 1, 0.25, 0.625])
    np.testing.assert_allclose(known[0, :, 2], [1 / 3, 1, 0, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(known[1, :, 2], [2 / 3, 1 / 3, 1, 0], atol=1e-6)
    np.testing.assert_allclose(known[1, :, 1], [1 / 7, 0, 1, 0], rtol=1e-6)
    np.testing.assert_array_equal(known[:, :, 3], [[0.25] * 4, [0.5] * 4])


def test_a_router_learns_the_static_one_and_the_sparsity():
    """The guide alone makes it rank by importance; then only the best go through."""
    rng = np.random.default_rng(0)
    importance = jnp.asarray(rng.random((64, 10)) ** 3, jnp.float32)
    known = routers.factors(importance, 0.6)
    ids = ja.top_indices(importance, 4)
    target = jnp.zeros((64, 10), bool).at[jnp.arange(64)[:, None], ids].set(True)
    router = routers.init_router(jax.random.key(0))

    def loss(router):
        logits = routers.route(router, known)
        guide = routers.guide_loss(logits, target)
        return guide + routers.sparsity_loss(logits, 0.6)

    def step(router):
        slope = jax.grad(loss)(router)
        return jax.tree.map(lambda w, g: w - 0.5 * g, router, slope)

    router = jax.lax.fori_loop(0, 600, lambda _, router: step(router), router)
    logits = routers.route(router, known)
    assert float(jnp.mean((logits > 0) == target)) > 0.97
    assert float(routers.sparsity_loss(logits, 0.6)) < 0.01


def test_who_goes_through_a_block():
    x = jnp.arange(2.0 * 5 * 3).reshape(2, 5, 3)
    logits = jnp.array([[1.0, -1.0, 2.0, -2.0, -1.0], [-1.0, -1.0, -1.0, 3.0, 0.5]])
    block = lambda x: jnp.sin(x) + x  # noqa: E731
    ids = ja.top_indices(logits, 2)
    gathered = routers.through(block, x, ids)
    gated = routers.gated_through(block, x, logits)
    np.testing.assert_allclose(gathered, gated, rtol=1e-6)
    np.testing.assert_array_equal(gathered[0, 1], x[0, 1])
    slope = jax.grad(lambda s: routers.gated_through(block, x, s).sum())(logits)
    p = np.asarray(jax.nn.sigmoid(logits))
    expected = p * (1 - p) * np.sin(np.asarray(x)).sum(-1)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)


def test_losses_are_their_formulas():
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 6, 4))
    target, valid = rng.random((2, 6, 4)) < 0.6
    p = 1 / (1 + np.exp(-s))
    entropy = -np.where(target, np.log(p), np.log(1 - p))[valid].mean()
    logits = jnp.asarray(s, jnp.float32)
    found = routers.guide_loss(logits, jnp.asarray(target), jnp.asarray(valid))
    assert float(found) == pytest.approx(entropy, rel=1e-5)
    share = ((s > 0) & valid).sum(1) / np.maximum(valid.sum(1), 1)
    found = routers.sparsity_loss(logits, 0.3, jnp.asarray(valid))
    assert float(found) == pytest.approx(np.mean((share - 0.7) ** 2), rel=1e-5)

    def softmax(x):
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)

    goal, mine = softmax(t / 2), softmax(s / 2)
    divergence = 4 * (goal * np.log(goal / mine)).sum(-1).mean()
    teacher = jnp.asarray(t, jnp.float32)
    found = routers.distillation_loss(logits, teacher, 2.0)
    assert float(found) == pytest.approx(divergence, rel=1e-4)
    slope = jax.grad(routers.distillation_loss, 1)(logits, teacher)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_the_fewest_channels_that_hold_the_mass(share):
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 50, (20, 15)).astype("f4")
    scores[0] = 0
    masks = np.asarray(routers.mass_mask(jnp.asarray(scores), share))
    for row, mask in zip(scores, masks, strict=True):
        assert row[mask].sum() >= share * row.sum() * (1 - 1e-6)
        if mask.any():  # without the least of them it would not be enough
            assert row[mask].sum() - row[mask].min() < share * row.sum()
            assert row[mask].min() >= max(row[~mask], default=0)
            assert row[mask].min() > 0
