"""Quantized attention and what it fetches: bounds, identities, counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import attention_oracle as oracle

import jprune as jp
from jprune import attention
from jprune import attention as ja


@pytest.mark.parametrize(
    ("msb", "lsb"), [(4, 4), (6, 4), (8, 4), (10, 4), (12, 4), (8, 0)]
)
def test_planes_hold_all_bits_and_nothing_else(msb, lsb):
    x = np.random.default_rng(0).standard_normal((3, 50, 8)).astype("f4")
    planes = ja.split_planes(jnp.asarray(x), msb, lsb)
    upper, lower = (np.asarray(p, np.int64) for p in planes[:2])
    assert -(2 ** (msb - 1)) <= upper.min()
    assert upper.max() < 2 ** (msb - 1)
    assert lower.min() >= 0
    assert lower.max() < 2**lsb
    integers = np.stack([oracle.quantize(head, msb + lsb)[0] for head in x])
    np.testing.assert_array_equal((upper << lsb) + lower, integers)
    unit = np.asarray(planes.scale)
    error = np.abs(np.asarray(ja.join_planes(planes, lsb)) - x)
    assert np.all(error <= 0.5001 * unit)
    missing = np.asarray(ja.join_planes(planes, lsb, lower=False)) - x
    assert np.all((missing <= 0.51 * unit) & (missing > -(2**lsb - 0.49) * unit))
    least = jnp.int8 if msb <= 8 else jnp.int16
    assert planes.msb.dtype == least


@pytest.mark.parametrize(
    "bits", [ja.Bits(16, 10, 4), ja.Bits(12, 12, 4), ja.Bits(2, 2)]
)
def test_scores_of_the_largest_numbers_do_not_overflow(bits):
    """All at the ends of their range: the sums are the bounds, and float64 knows."""
    q = jnp.full((1, 1, 64), -3.0)
    k = jnp.stack([jnp.full((64,), s * 5.0) for s in (1, -1)])[None]
    planes = ja.split_planes(k, bits.msb, bits.lsb)
    upper, whole = attention.progressive_scores(q, planes, bits)
    np.testing.assert_allclose(whole[0, 0], [-120, 120], rtol=1e-6)
    share = np.asarray(planes.msb[0, :, 0], np.float64) * 2**bits.lsb
    most = 2 ** (bits.msb + bits.lsb - 1) - 1
    np.testing.assert_allclose(upper[0, 0], -120 * share / most, rtol=1e-6)


def test_bits_that_would_overflow_are_refused():
    q = jnp.ones((1, 1, 64))
    with pytest.raises(jp.PruningError, match="overflow"):
        ja.progressive_attend(q, q, q, bits=ja.Bits(16, 12, 4))
    for bits in (1, 17):
        with pytest.raises(jp.PruningError, match=str(bits)):
            ja.fake_quantize(q, bits)
    with pytest.raises(jp.PruningError, match="1 and 4"):
        ja.split_planes(q, 1, 4)


def test_an_error_of_a_score_moves_probabilities_by_half_of_it_at_most():
    """Why flat rows need more bits: section III.D's bound, 2 ds p (1 - p)."""
    rng = np.random.default_rng(0)
    s = 3 * rng.standard_normal((4000, 6))
    ds = rng.uniform(-0.1, 0.1, 4000)
    p = np.asarray(jax.nn.softmax(s))
    moved = s.copy()
    moved[:, 0] += ds
    change = np.abs(np.asarray(jax.nn.softmax(moved)) - p)
    flat = np.maximum(p[:, 0] * (1 - p[:, 0]), 0)
    total = change.sum(1)
    assert np.all(total <= np.abs(ds) / 2 + 1e-6)
    assert np.all(total <= 2 * np.abs(ds) * flat * 1.11 + 1e-6)


def test_centred_keys_give_the_same_attention_and_a_finer_unit():
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 20, 8)), jnp.float32) for _ in "qkv")
    k = k + 50
    real = jnp.arange(20) < 15
    mask = real[None, None]
    centred = ja.center_keys(k, real)
    np.testing.assert_allclose(centred[:, :15].mean(1), 0, atol=1e-5)
    exact = ja.attend(q, k, v, mask=mask)[0]
    np.testing.assert_allclose(ja.attend(q, centred, v, mask=mask)[0], exact, atol=1e-4)

    def error(k):
        bits = ja.Bits(12, 6, 0, 0)
        found = ja.progressive_attend(q, k, v, bits=bits, mask=mask, keys=real)
        return float(jnp.abs(found.out - exact).mean())

    assert error(centred) < 0.2 * error(k)


def test_a_threshold_of_zero_never_fetches_and_padding_never_asks():
    q = jnp.zeros((1, 4, 8))
    real = jnp.array([True, True, True, False])
    mask = (real[:, None] & real[None])[None]

    def asked(t):
        return ja.progressive_attend(
            q, q, q, threshold=t, mask=mask, keys=real
        ).refetched

    assert asked(0.0).tolist() == [[False] * 4]
    assert asked(1.0).tolist() == [[True, True, True, False]]
    assert float(ja.refetch_fraction(asked(1.0), mask)) == 1
    assert not jnp.any(
        ja.progressive_attend(q, q, q, bits=ja.Bits(8, 8, 0), threshold=1.0).refetched
    )


def test_the_derivative_goes_straight_through_all_rounding():
    rng = np.random.default_rng(2)
    q, k, v, w = (
        jnp.asarray(rng.standard_normal((2, 6, 8)), jnp.float32) for _ in range(4)
    )

    def progressive(q, k, v):
        bits = ja.Bits(16, 10, 4, 16)
        out = ja.progressive_attend(q, k, v, bits=bits, threshold=1.0).out
        return jnp.sum(w * out)

    plain = lambda q, k, v: jnp.sum(w * ja.attend(q, k, v)[0])  # noqa: E731
    every = (0, 1, 2)
    found = jax.jit(jax.grad(progressive, every))(q, k, v)
    for a, b in zip(found, jax.grad(plain, every)(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    # Were it not for the rule, no derivative would reach the keys at all.
    coarse = ja.Bits(8, 4, 0, 4)
    loss = lambda k: jnp.sum(w * ja.progressive_attend(q, k, v, bits=coarse).out)  # noqa: E731
    assert float(jnp.abs(jax.grad(loss)(k)).min()) > 0


def test_rows_and_bits_that_are_fetched():
    """Four queries, two heads of a group: counted by hand."""
    visible = np.tri(4, dtype=bool)[None].repeat(2, 0)
    kept = np.zeros((2, 4, 4), bool)
    kept[0, 3, 0] = kept[1, 3, 1] = kept[1, 2, 1] = True
    asked = np.zeros((2, 4), bool)
    asked[0, 1] = asked[1, 1] = True
    given = {"refetched": jnp.asarray(asked), "kept": jnp.asarray(kept)}
    shared = ja.fetched(jnp.asarray(visible), 1, **given)
    assert [int(n[0]) for n in shared] == [8, 4, 2, 2]
    # Generation: 1 + 2 + 3 + 4 keys; the two heads of the group read them together.
    each = ja.fetched(jnp.asarray(visible), 1, **given, shared=False)
    assert [int(n[0]) for n in each] == [8, 10, 2, 3]
    own = ja.fetched(jnp.asarray(visible), 2, **given, shared=False)
    assert [n.tolist() for n in own] == [[4, 4], [10, 10], [2, 2], [1, 2]]
    bits = ja.fetched_bits(own, 64, ja.Bits(16, 6, 4, 8))
    assert bits == (8 * 64 * 16, 20 * 64 * 6, 4 * 64 * 4, 3 * 64 * 8)
    assert sum(ja.fetched_bits(own, 2**40, ja.Bits())) > 2**45  # no overflow
    with pytest.raises(jp.PruningError, match="multiple of 3 KV heads"):
        ja.fetched(jnp.asarray(visible), 3)


def test_the_share_of_rows_that_refetched():
    visible = jnp.array([[[True], [True], [False], [True]]])
    asked = jnp.array([[True, False, True, False]])
    assert float(ja.refetch_fraction(asked, visible)) == pytest.approx(1 / 3)
