"""Column sums by kernels, interpreted: against float64, `attend`, and in a cascade."""

import functools
import sys
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import attention_oracle as oracle

import jprune as jp
from jprune import attention as ja
from jprune.attention import _fused_kernels, cascade, fused


def _inputs(sizes, seed=0, dtype="float32"):
    batch, heads, kv_heads, tokens, dim = sizes
    rng = np.random.default_rng(seed)
    q, k, v = (
        jnp.asarray(rng.standard_normal((batch, h, tokens, dim)), dtype)
        for h in (heads, kv_heads, kv_heads)
    )
    valid = np.arange(tokens) < rng.integers(0, tokens + 1, (batch, 1))
    return q, k, v, jnp.asarray(valid)


def _expected(q, k, v, valid, causal):
    """Outputs and column sums of each sample, in float64."""
    outputs, looks = [], []
    seen = np.tri(q.shape[2], dtype=bool) if causal else True
    for *qkv, real in zip(q, k, v, np.asarray(valid), strict=True):
        out, probs = oracle.attention(*map(np.asarray, qkv), seen & real[None, :])
        outputs.append(out)
        looks.append((probs * (real[:, None] & real)).sum(1))
    return np.stack(outputs), np.stack(looks)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [(2, 4, 2, 70, 16), (1, 2, 2, 64, 32), (2, 3, 1, 129, 16), (1, 2, 1, 1, 16)],
)
def test_the_kernels_say_what_float64_says(sizes, causal):
    q, k, v, valid = _inputs(sizes)
    run = functools.partial(_fused_kernels.run, causal=causal, scale=16**-0.5)
    if sizes[-1] != 16:
        run = functools.partial(run, scale=sizes[-1] ** -0.5)
    outputs, looks = jax.jit(functools.partial(run, interpret=True))(q, k, v, valid)
    wanted = _expected(q, k, v, valid, causal)
    real = np.asarray(valid)[:, None, :, None]
    np.testing.assert_allclose(
        np.where(real, outputs, 0), np.where(real, wanted[0], 0), atol=2e-5
    )
    np.testing.assert_allclose(looks, wanted[1], rtol=1e-4, atol=2e-5)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 2**16), causal=st.booleans(), masked=st.booleans()
)
def test_on_a_cpu_it_is_attend(seed, causal, masked):
    q, k, v, valid = _inputs((2, 4, 2, 5, 16), seed)
    some = valid if masked else None
    outputs, looks = ja.fused.attend_summed(q, k, v, some, causal=causal)
    mask = valid[:, None, None, :] if masked else None
    expected, probs = ja.attend(q, k, v, mask=mask, causal=causal)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)
    scores = ja.token_importance(probs, some, some)
    np.testing.assert_allclose(looks.sum(1), scores, rtol=1e-5, atol=1e-5)


def test_bfloat16_and_what_sees_nothing():
    q, k, v, _ = _inputs((2, 2, 2, 40, 16), dtype="bfloat16")
    valid = jnp.zeros((2, 40), bool).at[1, :7].set(True)
    outputs, looks = _fused_kernels.run(
        q, k, v, valid, causal=False, scale=0.25, interpret=True
    )
    assert outputs.dtype == jnp.bfloat16
    assert looks.dtype == jnp.float32
    assert not outputs[0].any()  # a sample of nothing but padding
    assert not looks[0].any()
    assert not looks[1, :, 7:].any()
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    wanted, sums = _expected(*wide, valid, causal=False)
    np.testing.assert_allclose(
        outputs[1, :, :7].astype(jnp.float32), wanted[1, :, :7], atol=0.02
    )
    np.testing.assert_allclose(looks, sums, rtol=1e-3, atol=1e-3)


def test_gradients_are_those_of_attend():
    q, k, v, valid = _inputs((2, 2, 1, 6, 16), seed=3)
    weights = jax.random.normal(jax.random.key(0), (2, 2, 6))

    def ours(*qkv):
        out, looks = ja.fused.attend_summed(*qkv, valid)
        return (out**2).sum() + (weights * looks).sum()

    def plain(*qkv):
        out, probs = ja.attend(*qkv, mask=valid[:, None, None, :])
        real = valid[:, None, :, None] & valid[:, None, None, :]
        looks = jnp.where(real, probs, 0).sum(-2)
        return (out**2).sum() + (weights * looks).sum()

    for found, expected in zip(
        jax.jit(jax.grad(ours, (0, 1, 2)))(q, k, v),
        jax.grad(plain, (0, 1, 2))(q, k, v),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_vmap_and_no_batch():
    q, k, v, valid = _inputs((3, 2, 2, 5, 16), seed=1)
    together = ja.fused.attend_summed(q, k, v, valid)
    for single in (
        jax.vmap(ja.fused.attend_summed)(q, k, v, valid),
        jax.tree.map(
            lambda *x: jnp.stack(x),
            *(ja.fused.attend_summed(*one) for one in zip(q, k, v, valid, strict=True)),
        ),
    ):
        for found, expected in zip(single, together, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dim", "kernels"), [(32, 2), (24, 0)])
def test_what_a_gpu_is_given(dim, kernels):
    """Two kernels where their blocks exist, and what XLA has otherwise."""
    args = _inputs((1, 2, 2, 8, dim))
    traced = jax.jit(ja.fused.attend_summed).trace(*args)
    try:
        with warnings.catch_warnings():
            # JAX 0.12 says that Pallas will lose Triton.
            warnings.simplefilter("ignore", DeprecationWarning)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError:
        if not kernels or jax.__version_info__ < (0, 12):
            raise
        pytest.skip("JAX 0.12 asks the GPU how large it is")
    assert text.count("custom_call @__gpu$xla.gpu.triton") == kernels
    assert "custom_call" not in traced.lower().as_text()


def test_without_triton_it_is_xla(monkeypatch):
    monkeypatch.setitem(sys.modules, "jprune.attention.fused_kernels", None)
    monkeypatch.delattr(ja, "fused_kernels", raising=False)
    args = _inputs((1, 2, 2, 8, 16))
    found = fused.attend_summed(*args)
    expected = fused.reference(*args, causal=False, scale=0.25)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_cascade_takes_sums_for_probabilities(per_sample):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) / 4, jnp.float32)  # noqa: E731
    layers = [
        ja.HeadWeights(*(draw(12, 4, 16) for _ in range(3)), draw(4, 16, 12))
        for _ in range(3)
    ]
    x = draw(2, 18, 12) * 4
    valid = jnp.arange(18)[None] < jnp.array([[18], [11]])
    plan = ja.schedule(18, (18, 9, 4), (4, 3, 3))

    def own(weights, ids):
        few = ids.shape[0] < weights.key.shape[1]
        return ja.take_heads(weights, ids) if few else weights

    def summed(weights, x, valid, ids):
        return fused.attend_summed(*ja.project(own(weights, ids), x), valid)

    def finish(weights, x, outputs, ids):
        return x + ja.combine(own(weights, ids), outputs)

    first = cascade.start(x, 4, valid=valid, per_sample=per_sample)
    by_probs, by_sums = (
        cascade.encode(first, layers, plan, mix, finish)
        for mix in (cascade.mix_heads, summed)
    )
    np.testing.assert_array_equal(by_sums.positions, by_probs.positions)
    np.testing.assert_array_equal(by_sums.alive, by_probs.alive)
    real = by_probs.valid
    np.testing.assert_array_equal(by_sums.valid, real)
    np.testing.assert_allclose(by_sums.scores, by_probs.scores, rtol=1e-5)
    np.testing.assert_allclose(
        jnp.where(real[..., None], by_sums.x, 0),
        jnp.where(real[..., None], by_probs.x, 0),
        rtol=1e-4,
        atol=1e-5,
    )


def test_shapes_that_do_not_fit():
    q, k, v, valid = _inputs((2, 4, 2, 5, 16))
    with pytest.raises(jp.PruningError, match="4 query heads are not a multiple of 3"):
        fused.attend_summed(q, jnp.zeros((2, 3, 5, 16)), v)
    with pytest.raises(jp.PruningError, match="do not fit"):
        fused.attend_summed(q, k[:, :, :4], v)
    with pytest.raises(jp.PruningError, match=r"valid \(2, 4\) do not fit"):
        fused.attend_summed(q, k, v, valid[:, :4])
