"""Pruned attention inside Flax's own modules, Linen and NNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jprune import attention as ja
from jprune.attention import adapters, cascade

pytestmark = pytest.mark.others_code

X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 10, 16)), jnp.float32)
VALID = jnp.arange(10)[None] < jnp.array([[10], [7], [6]])
MASK = VALID[:, None, None, :]


def _linen(**options):
    return nn.MultiHeadDotProductAttention(num_heads=4, **options)


def test_linen_and_nnx_give_what_flax_gives():
    params = _linen().init(jax.random.key(0), X)
    plain = _linen().apply(params, X, mask=MASK)
    mine = _linen(attention_fn=adapters.attention_fn()).apply(params, X, mask=MASK)
    np.testing.assert_allclose(mine, plain, atol=1e-5)

    def module(**options):
        return nnx.MultiHeadAttention(4, 16, rngs=nnx.Rngs(0), decode=False, **options)

    plain = module()(X, mask=MASK)
    mine = module(attention_fn=adapters.attention_fn())(X, mask=MASK)
    np.testing.assert_allclose(mine, plain, atol=1e-5)
    causal = nn.make_causal_mask(VALID)
    fn = adapters.attention_fn()
    q = X.reshape(3, 10, 4, 4)
    np.testing.assert_allclose(
        fn(q, q, q, is_causal=True), fn(q, q, q, mask=causal), atol=1e-6
    )


def test_values_and_bits_in_flax_are_those_of_the_functions():
    q, k, v = (jax.random.normal(jax.random.key(i), (3, 10, 4, 8)) for i in range(3))
    a, b, c = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    bits, seen = ja.Bits(12, 6, 4, 8), []
    fn = adapters.attention_fn(
        lambda *saw: seen.append(saw), values=0.5, bits=bits, threshold=0.3
    )
    out = jnp.swapaxes(fn(q, k, v, MASK), 1, 2)
    found = ja.progressive_attend(
        a, b, c, bits=bits, threshold=0.3, mask=MASK, keys=VALID
    )
    rows = jnp.broadcast_to(MASK, found.probs.shape)
    kept = ja.keep_values(found.probs, ja.count_values(0.5, rows))
    rounded = ja.fake_quantize(c, 8, where=VALID[:, None, :, None])
    expected = ja.weigh_values(found.probs, rounded, kept)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    np.testing.assert_allclose(seen[0][1], found.probs, atol=1e-6)
    np.testing.assert_allclose(seen[0][0], expected, atol=1e-6)


def test_dropout_keeps_the_mean_and_needs_a_key():
    q = jnp.ones((2, 6, 2, 4))
    fn = adapters.attention_fn()
    keys = jax.random.split(jax.random.key(0), 500)
    draws = jax.vmap(lambda key: fn(q, q, q, dropout_rng=key, dropout_rate=0.5))(keys)
    np.testing.assert_allclose(draws.mean(0), 1, atol=0.1)
    assert float(draws.std()) > 0.1
    np.testing.assert_allclose(fn(q, q, q, dropout_rate=0.5, deterministic=True), 1)
    with pytest.raises(ValueError, match=r"0\.5 needs dropout_rng"):
        fn(q, q, q, dropout_rate=0.5)


class Block(nn.Module):
    """A Linen block of a cascade: importance goes on in the state."""

    @nn.compact
    def __call__(self, state, tokens=None):
        seen = []
        fn = adapters.attention_fn(lambda *saw: seen.append(saw))
        y = _linen(attention_fn=fn)(
            nn.LayerNorm()(state.x), mask=state.valid[:, None, None, :]
        )
        state = adapters.after_attention(
            state._replace(x=state.x + y), *seen[0], tokens=tokens
        )
        z = nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(state.x))))
        return state._replace(x=state.x + z)


class Encoder(nn.Module):
    """Two blocks; `tokens` None is the plain encoder."""

    tokens: tuple = (None, None)

    @nn.compact
    def __call__(self, x, valid):
        safe = jnp.zeros_like(valid).at[:, 0].set(True)
        state = cascade.start(x, 4, valid=valid, protected=safe)
        for count in self.tokens:
            state = Block()(state, count)
        return state


class PlainBlock(nn.Module):
    """The same block with Flax's own attention."""

    @nn.compact
    def __call__(self, x, valid):
        x = x + _linen()(nn.LayerNorm()(x), mask=valid[:, None, None, :])
        z = nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
        return x + z


def test_a_linen_encoder_prunes_and_learns():
    params = Encoder().init(jax.random.key(0), X, VALID)
    whole = Encoder().apply(params, X, VALID)
    x = X
    for i in range(2):
        own = {"params": params["params"][f"Block_{i}"]}
        x = PlainBlock().apply(own, x, VALID)
    np.testing.assert_allclose(whole.x, x, atol=1e-5)
    small = Encoder((6, 3))
    run = jax.jit(small.apply)
    state = run(params, X, VALID)
    assert state.x.shape == (3, 3, 16)
    assert np.all(np.asarray(state.positions)[:, 0] == 0)
    assert jnp.all(state.valid)
    # Of the whole encoder's first layer the six best, by the scores that it reports.
    first = Encoder((None,)).apply(params, X, VALID)
    safe = jnp.zeros_like(VALID).at[:, 0].set(True)
    ids = ja.top_indices(first.scores, 6, valid=VALID, protected=safe)
    assert jnp.all(Encoder((6,)).apply(params, X, VALID).positions == ids)

    def loss(params):
        return jnp.sum(small.apply(params, X, VALID).x ** 2)

    slopes = jax.tree.leaves(jax.grad(loss)(params))
    assert all(jnp.all(jnp.isfinite(g)) for g in slopes)


def test_nnx_modules_carry_importance_too():
    class NNXBlock(nnx.Module):
        def __init__(self, rngs):
            seen = []  # one list for all copies that NNX makes of the module
            self.reported = seen.pop
            fn = adapters.attention_fn(lambda *saw: seen.append(saw))
            self.attention = nnx.MultiHeadAttention(
                4, 16, rngs=rngs, decode=False, attention_fn=fn
            )

        def __call__(self, state, tokens):
            y = self.attention(state.x, mask=state.valid[:, None, None, :])
            outputs, probs = self.reported()
            state = state._replace(x=state.x + y)
            return adapters.after_attention(state, outputs, probs, tokens)

    block = NNXBlock(nnx.Rngs(0))
    state = cascade.start(X, 4, valid=VALID)
    found = nnx.jit(NNXBlock.__call__, static_argnums=2)(block, state, 4)
    assert found.x.shape == (3, 4, 16)
    whole = block(state, None)
    np.testing.assert_array_equal(
        found.positions, ja.top_indices(whole.scores, 4, valid=VALID)
    )
    np.testing.assert_allclose(found.x, ja.take(whole.x, found.positions), atol=1e-5)
