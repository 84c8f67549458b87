"""Decoding as JAX sees it: types, traces, transformations, devices, refusals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support.decode_cases import DIM, HEADS, LENGTH, begin, decoded, draw, token

import jprune as jp
from jprune.attention import cache as caches
from jprune.attention import decode


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_types(dtype):
    """Keys and values as they are stored; importance in float32."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 8)).astype(dtype)
    cache, stream = caches.init(2, 2, 3, 8, dtype=dtype), caches.start(2, 5)
    for _ in range(4):
        out, cache, stream = decode.step(x, x[:, :2], x[:, 2:], cache, stream)
        stream = caches.advance(stream)
    assert out.dtype == cache.keys.dtype == cache.values.dtype == dtype
    assert stream.scores.dtype == jnp.float32
    # Whatever the weights, they add up to one for each head, layer and token.
    np.testing.assert_allclose(stream.scores.sum(1), 4 * 4, rtol=1e-5)
    expected = np.repeat(np.asarray(x[:, 2:], "f4"), 2, axis=1)  # all values are equal
    np.testing.assert_allclose(np.asarray(out, "f4"), expected, rtol=1e-2)


def test_one_trace_and_the_cache_is_reused():
    traces = []

    @jax.jit
    def counted(carry, qkv):
        traces.append(None)
        return token(carry, qkv)

    data = jax.tree.map(jnp.asarray, draw(1, 2, 20, 6))
    carry = begin(data, jnp.array([20, 3], jnp.int32))
    for t in range(6):
        carry, _ = counted(carry, tuple(data[n][:, :, t] for n in "qkv"))
    assert len(traces) == 1
    donating = jax.jit(lambda c, x: token(c, x)[0], donate_argnums=0)
    old = carry
    donating(carry, tuple(data[n][:, :, 0] for n in "qkv"))
    assert all(c.keys.is_deleted() and c.values.is_deleted() for c in old[0])


def test_under_vmap_and_remat():
    data = draw(2, 6, 20, 4)
    lengths = np.array([20, 3, 0, 11, 8, 20], np.int32)
    *_, (outs, kept, gone), _ = decoded(data, jnp.asarray(lengths))

    def half(data, lengths):
        return jax.checkpoint(lambda d, n: decoded(d, n)[1])(data, lengths)

    split = {
        n: x.reshape(2, 3, *x.shape[1:])
        if n == "scores"
        else np.moveaxis(x.reshape(x.shape[0], 2, 3, *x.shape[2:]), 1, 0)
        for n, x in data.items()
    }
    found = jax.jit(jax.vmap(half))(split, lengths.reshape(2, 3))
    for ours, theirs in zip(found, (outs, kept, gone), strict=True):
        joined = jnp.concatenate(list(ours), axis=2)
        np.testing.assert_allclose(joined, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.optimized
def test_a_batch_over_eight_devices():
    """The same as on one, and no key or value is sent anywhere."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    data = jax.tree.map(jnp.asarray, draw(4, 16, 20, 1))
    qkv = tuple(data[n][:, :, 0] for n in "qkv")
    carry = begin(data, jnp.arange(5, 21, dtype=jnp.int32))
    expected = token(carry, qkv)
    place = NamedSharding(mesh, P("x"))
    sharded = jax.tree.map(lambda x: jax.device_put(x, place), carry)
    there = tuple(jax.device_put(x, NamedSharding(mesh, P(None, "x"))) for x in qkv)
    jitted = jax.jit(token)
    found = jitted(sharded, there)
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    layers, stream = found[0]
    for x in jax.tree.leaves((layers, stream.scores)):
        assert x.sharding.is_equivalent_to(place, x.ndim)
    program = jitted.lower(sharded, there).compile().as_text()
    assert not re.findall(
        "all-gather|all-to-all|collective-permute|all-reduce", program
    )


def test_an_empty_batch():
    data = jax.tree.map(jnp.asarray, draw(0, 0, 20, 2))
    _, (outs, kept, _), _ = decoded(data, jnp.zeros(0, jnp.int32))
    assert outs.shape == (2, 3, 0, HEADS, DIM)
    assert kept.shape == (2, 3, 0, LENGTH)


def test_what_cannot_be_meant_is_refused():
    cache, stream = caches.init(1, 2, 4, 8, dtype=jnp.float32), caches.start(1, 9)
    q, k = jnp.zeros((1, 4, 8)), jnp.zeros((1, 2, 8))
    with pytest.raises(jp.PruningError, match="4 slots do not hold 2 sinks"):
        decode.step(q, k, k, cache, stream, sinks=2, recent=3)
    with pytest.raises(jp.PruningError, match="Queries"):
        decode.step(q[:, :3], k, k, cache, stream)
    with pytest.raises(jp.PruningError, match="keys"):
        decode.step(q, q, q, cache, stream)
    with pytest.raises(jp.PruningError, match="slots=0"):
        caches.init(1, 2, 0, 8, dtype=jnp.float32)
    with pytest.raises(jp.PruningError, match="A prompt of 6 tokens"):
        caches.start(1, 5, scores=jnp.zeros((1, 6)))
