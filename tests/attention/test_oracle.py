"""The pieces of pruned attention against the float64 oracle, on 2,000 random cases.

Scores and outputs agree up to rounding. Choices agree exactly with those of the oracle
on the library's own scores, ties included, and with the oracle's own scores wherever
these tell candidates apart by more than rounding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import attention_oracle as oracle

from jprune import attention as ja


class Shape(NamedTuple):
    """What is static: one compilation for all of its cases."""

    tokens: int
    heads: int
    kv_heads: int
    causal: bool
    dtype: str
    bits: ja.Bits
    count: int
    cases: int


F32, BF16 = "float32", "bfloat16"
SHAPES = [
    Shape(1, 2, 2, False, F32, ja.Bits(8, 4, 4, 8), 1, 300),
    Shape(2, 4, 2, True, F32, ja.Bits(12, 6, 4, 6), 1, 400),
    Shape(9, 3, 1, False, BF16, ja.Bits(12, 8, 4, 8), 4, 400),
    Shape(32, 4, 2, True, BF16, ja.Bits(12, 10, 4, 0), 20, 400),
    Shape(65, 4, 4, False, F32, ja.Bits(12, 12, 4, 12), 33, 250),
    Shape(128, 2, 1, True, F32, ja.Bits(8, 8, 0, 8), 40, 150),
    Shape(300, 2, 2, False, F32, ja.Bits(16, 6, 4, 6), 90, 60),
    Shape(300, 4, 2, True, BF16, ja.Bits(12, 8, 4, 8), 150, 40),
]
DIM = 8
FRACTION = 0.3
THRESHOLD = 0.11  # no row of equal probabilities has this


def _pruned(inputs, shape):
    """All pieces on a batch."""
    q, k, v, valid, protected, before = inputs
    mask = jnp.broadcast_to(
        valid[:, None, None, :], (len(valid), 1, shape.tokens, shape.tokens)
    )
    out, probs = ja.attend(q, k, v, mask=mask, causal=shape.causal)
    seen = (
        mask & jnp.tri(shape.tokens, dtype=bool)[None, None] if shape.causal else mask
    )
    scores = before + ja.token_importance(probs, valid, valid)
    kept = ja.keep_values(probs, ja.count_values(FRACTION, seen))
    return {
        "out": out,
        "probs": probs,
        "scores": scores,
        "heads": ja.head_importance(out, valid),
        "ids": ja.top_indices(scores, shape.count, valid=valid, protected=protected),
        "kept": kept,
        "local": ja.weigh_values(probs, v, kept),
        "progressive": ja.progressive_attend(
            q, k, v, bits=shape.bits, threshold=THRESHOLD, mask=seen, keys=valid
        ),
    }


def _draw(shape, cases, seed):
    """Random contents; every fourth case is full of ties."""
    rng = np.random.default_rng(seed)
    n = shape.tokens
    lengths = rng.integers(1, n + 1, cases)
    # Rows from sure of themselves to flat, so that both sides of a threshold occur.
    sharp = rng.choice([0.3, 1.0, 3.0], (cases, 1, 1, 1))
    q = sharp * rng.standard_normal((cases, shape.heads, n, DIM))
    q[::4] = 0
    k, v = (rng.standard_normal((cases, shape.kv_heads, n, DIM)) for _ in range(2))
    valid = np.arange(n) < lengths[:, None]
    protected = (rng.random((cases, n)) < 0.1) & (rng.random((cases, 1)) < 0.5)
    before = rng.integers(0, 3, (cases, n)).astype("f4")
    arrays = (jnp.asarray(x, shape.dtype) for x in (q, k, v))
    return (*arrays, *(jnp.asarray(x) for x in (valid, protected & valid, before)))


def _check_case(found, inputs, shape):
    """Compares one sample; returns (near choice, near rows, rows)."""
    q, k, v, valid, protected, before = inputs
    n, low = shape.tokens, shape.dtype == BF16
    mask = np.broadcast_to(valid, (n, n)) & (np.tri(n, dtype=bool) | (not shape.causal))
    out, probs = oracle.attention(q, k, v, mask)
    np.testing.assert_allclose(found["probs"], probs, atol=3e-6)
    # Outputs are rounded to their type, after products of rounded probabilities.
    atol = 0.04 if low else 2e-5
    np.testing.assert_allclose(found["out"], out, atol=atol)

    scores = before + oracle.token_scores(probs, valid)
    slack = 1e-6 * (1 + scores.max())
    np.testing.assert_allclose(found["scores"], scores, atol=slack)
    heads = oracle.head_scores(np.asarray(found["out"], np.float64), valid)
    np.testing.assert_allclose(found["heads"], heads, rtol=1e-5)

    ids, count = list(found["ids"]), shape.count
    assert ids == oracle.keep(found["scores"], count, valid, protected)
    assert oracle.is_best(ids, scores, valid, protected, 2 * slack)
    near = ids != oracle.keep(scores, count, valid, protected)

    counts = np.maximum(1, np.floor(FRACTION * mask.sum(1) + 1e-4)).astype(int)
    for row, mine in zip(found["probs"], found["kept"], strict=True):
        np.testing.assert_array_equal(mine, oracle.value_mask(row, counts))
    local = oracle.weigh(np.where(found["kept"], probs, 0), np.asarray(v, np.float64))
    np.testing.assert_allclose(found["local"], local, atol=atol)
    return near, *_check_progressive(found, inputs, shape, mask, atol)


def _check_progressive(found, inputs, shape, mask, atol):
    q, k, v, valid, *_ = inputs
    given = found["progressive"]
    out, probs, refetched, largest = oracle.progressive(
        q, k, v, mask, valid, shape.bits, THRESHOLD
    )
    near = np.abs(largest - THRESHOLD) < 1e-6
    np.testing.assert_array_equal(given.refetched[~near], refetched[~near])
    same = given.refetched == refetched
    np.testing.assert_allclose(given.probs[same], probs[same], atol=5e-6)
    np.testing.assert_allclose(given.out[same], out[same], atol=atol)
    return (near & mask.any(1)).sum(), refetched.sum(), refetched.size


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_pieces_agree_with_the_oracle(shape):
    traced = []

    @jax.jit
    def pruned(inputs):
        traced.append(shape)
        return _pruned(inputs, shape)

    inputs = _draw(shape, shape.cases, seed=shape.tokens)
    found = jax.tree.map(np.asarray, pruned(inputs))
    host = [np.asarray(x.astype(jnp.float32) if x.dtype != bool else x) for x in inputs]
    results = []
    for b in range(shape.cases):
        one = jax.tree.map(lambda x, b=b: x[b], found)
        results.append(_check_case(one, [x[b] for x in host], shape))
    near, near_rows, refetched, rows = np.array(results, float).sum(0)
    assert near <= 0.03 * shape.cases
    assert near_rows <= 1e-3 * rows
    if shape.tokens > 30 and shape.bits.lsb:  # both answers were tried
        assert 0.1 * rows < refetched < 0.95 * rows
    assert traced == [shape]


@pytest.mark.parametrize("cases", [0, 1])
def test_batches_of_none_and_one(cases):
    shape = SHAPES[3]
    inputs = _draw(shape, cases, seed=1)
    found = jax.tree.map(np.asarray, _pruned(inputs, shape))
    assert found["ids"].shape == (cases, shape.count)
    host = [np.asarray(x.astype(jnp.float32) if x.dtype != bool else x) for x in inputs]
    for b in range(cases):
        one = jax.tree.map(lambda x, b=b: x[b], found)
        _check_case(one, [x[b] for x in host], shape)


@pytest.mark.others_code  # JAX's own attention promotes types
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_whole_and_with_all_bits_it_is_the_attention_of_jax(
    dtype, heads, kv_heads, causal
):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.standard_normal((2, heads, 24, 16)), dtype)
    k, v = (
        jnp.asarray(rng.standard_normal((2, kv_heads, 24, 16)), dtype) for _ in range(2)
    )
    other = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
    expected = jnp.swapaxes(
        jax.nn.dot_product_attention(*other, is_causal=causal), 1, 2
    )
    out, probs = ja.attend(q, k, v, causal=causal)
    assert out.dtype == q.dtype
    eps = float(jnp.finfo(dtype).eps)
    exact = jnp.asarray(expected, jnp.float32)
    np.testing.assert_allclose(jnp.asarray(out, jnp.float32), exact, atol=16 * eps)
    kept = ja.keep_values(probs, 24)
    local = jnp.asarray(ja.weigh_values(probs, v, kept), jnp.float32)
    np.testing.assert_allclose(local, exact, atol=16 * eps)
    mask = jnp.tri(24, dtype=bool) if causal else jnp.ones((24, 24), bool)
    found = ja.progressive_attend(
        q, k, v, bits=ja.Bits(12, 12, 4, 0), threshold=1.1, mask=mask[None, None]
    )
    assert jnp.all(found.refetched)
    # Twelve bits of queries: an error of 2^-12 of the largest, in each score.
    np.testing.assert_allclose(
        jnp.asarray(found.out, jnp.float32), exact, atol=16 * eps + 4e-3
    )
