"""What a KV cache does at its bounds: shapes raise, traced positions are reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jprune as jp
from jprune.attention import cache as caches
from jprune.attention import decode

HEADS, KV_HEADS, DIM = 4, 2, 8


def rows(steps, batch=1):
    """Queries, keys and values of each step."""
    rng = np.random.default_rng(0)

    def draw(heads):
        return jnp.asarray(rng.standard_normal((steps, batch, heads, DIM)), jnp.float32)

    return draw(HEADS), draw(KV_HEADS), draw(KV_HEADS)


def begin(slots, length, position=(0,)):
    batch = len(position)
    cache = caches.init(batch, KV_HEADS, slots, DIM, dtype=jnp.float32)
    at = jnp.asarray(position, jnp.int32)
    return cache, caches.start(batch, length)._replace(position=at)


def step(carry, qkv):
    out, cache, stream = decode.step(*qkv, *carry)
    return (cache, caches.advance(stream)), out


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("slots", [2, 5, 7])
def test_a_token_past_the_length_changes_nothing_and_shows(slots):
    """Five positions and eight tokens: the last three are those of a stopped run."""
    data = rows(8)
    run = jax.jit(lambda carry, data: jax.lax.scan(step, carry, data))
    first, outs = run(begin(slots, 5), [x[:5] for x in data])
    (cache, stream), all_outs = run(begin(slots, 5), data)
    same(cache, first[0])
    same(stream.scores, first[1].scores)
    same(stream.evicted, first[1].evicted)
    np.testing.assert_allclose(all_outs[:5], outs, rtol=1e-6)
    assert np.isfinite(outs).all()
    assert np.isnan(all_outs[5:]).all()


def test_sequences_end_one_by_one():
    """One of two is past its length; the other goes on as if alone."""
    data = rows(2, batch=2)
    (cache, _), outs = jax.jit(lambda c, d: jax.lax.scan(step, c, d))(
        begin(3, 9, (8, 3)), data
    )
    (alone, _), expected = jax.lax.scan(
        step, begin(3, 9, (3,)), [x[:, 1:] for x in data]
    )
    np.testing.assert_allclose(outs[:, 1:], expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(outs[1, 0]).all()
    assert np.isfinite(outs[0]).all()
    assert cache.used.tolist() == [1, 2]
    same(cache.positions[1:], alone.positions)


@pytest.mark.parametrize("slots", [2, 5])
def test_a_known_position_past_the_length_is_refused(slots):
    carry = begin(slots, 5, (5,))
    with pytest.raises(
        jp.PruningError, match=r"from 5 on.* cannot be decoded; got \[5\]"
    ):
        step(carry, [x[0] for x in rows(1)])
    with pytest.raises(jp.PruningError, match=r"next position has to be in \[0, 4\]"):
        caches.start(1, 4, position=jnp.array([5]))


def test_traced_bounds_are_reported_by_checkify():
    qkv = [x[0] for x in rows(1)]
    checked = jax.jit(checkify.checkify(step))
    error, _ = checked(begin(2, 5, (4,)), qkv)
    assert error.get() is None
    error, _ = checked(begin(2, 5, (5,)), qkv)
    assert "cannot be decoded" in error.get()
    cache, stream = begin(5, 5, (4,))
    error, _ = checked((cache._replace(used=jnp.array([5], jnp.int32)), stream), qkv)
    assert "All 5 slots are used" in error.get()
    start = jax.jit(checkify.checkify(lambda at: caches.start(1, 4, position=at)))
    assert "in [0, 4]" in start(jnp.array([5]))[0].get()
    used = jax.jit(checkify.checkify(lambda c: decode.attend(qkv[0], c)))
    error, _ = used(cache._replace(used=jnp.array([6], jnp.int32)))
    assert "5 slots; used is" in error.get()


def test_a_full_cache_that_evicts_nothing_overwrites_nothing():
    """Tokens without `advance` between them would have taken the last slot."""
    q, k, v = rows(3)

    @jax.jit
    def twice(carry):
        for i in range(3):
            out, *carry = decode.step(q[i], k[i], v[i], *carry)
        return out, carry

    out, (cache, _) = twice(begin(2, 2))
    assert np.isnan(out).all()
    np.testing.assert_array_equal(cache.keys[:, :, 1], k[1, 0])
    np.testing.assert_array_equal(cache.values[:, 1], v[1, 0])
    with pytest.raises(jp.PruningError, match=r"All 2 slots are used.*advance"):
        caches.append(cache, begin(2, 2)[1], k[0], v[0])


def test_prompts_that_do_not_fit_are_refused():
    keys, stream = jnp.zeros((1, 2, 6, 8)), caches.start(1, 4)
    with pytest.raises(jp.PruningError, match=r"6 tokens does not fit .* length of 4"):
        caches.fill(keys, keys, stream, 3)
    stream = caches.start(1, 9)
    with pytest.raises(jp.PruningError, match=r"one shape .*got \(1, 2, 6, 8\) and"):
        caches.fill(keys, keys[:, :1], stream, 3)
    with pytest.raises(jp.PruningError, match=r"positions \(1, 6\); got \(1, 5\)"):
        caches.fill(keys, keys, stream, 3, positions=jnp.zeros((1, 5), jnp.int32))
    with pytest.raises(jp.PruningError, match="A prompt of 2 sequences"):
        caches.fill(keys, keys, caches.start(2, 9), 3)
    with pytest.raises(jp.PruningError, match="stream of 2 sequences needs scores"):
        caches.start(2, 9, scores=jnp.zeros((1, 3)))
    with pytest.raises(jp.PruningError, match="positive length; got batch=1, length=0"):
        caches.start(1, 0)


def test_negative_positions_are_padding():
    keys = jnp.arange(3.0).reshape(1, 1, 3, 1)
    stream = caches.start(1, 4, scores=jnp.ones((1, 3)))
    positions = jnp.array([[-1, 0, 2]], jnp.int32)
    cache = caches.fill(keys, keys, stream, 3, positions=positions)
    assert cache.used.tolist() == [2]
    assert cache.positions[0, :2].tolist() == [0, 2]
    assert cache.values[0, :2, 0].tolist() == [1.0, 2.0]


def test_arrays_of_another_cache_are_refused():
    cache, stream = begin(3, 9)
    q, k = jnp.zeros((1, HEADS, DIM)), jnp.zeros((1, KV_HEADS, DIM))
    two = caches.start(2, 9)
    for call, words in (
        # As many numbers as fit, but of two sequences.
        (lambda: decode.query(jnp.zeros((2, KV_HEADS, DIM)), cache), "Queries"),
        (lambda: decode.attend(q[:, :3], cache), "multiple of KV heads"),
        (lambda: decode.mix(jnp.zeros((2, KV_HEADS, 3)), cache), "Probabilities"),
        (lambda: decode.credit(stream, cache, jnp.zeros((1, 4, 2))), "3 slots"),
        (lambda: decode.credit(two, cache, jnp.zeros((1, 4, 3))), "stream has 2"),
        (lambda: caches.append(cache, two, k, k), "stream has 2"),
        (lambda: caches.compact(cache, two, 2), "stream has 2"),
        (lambda: caches.append(cache, stream, q, q), "2 KV heads.* got keys"),
    ):
        with pytest.raises(jp.PruningError, match=words):
            call()
