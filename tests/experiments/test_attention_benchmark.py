"""The benchmark of attention at tiny size: its forms compute what they are said to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

from experiments.benchmarks.attention import _decode as attention_decode
from experiments.benchmarks.attention import _encoder as attention_encoder
from experiments.benchmarks.attention import attention, attention_gpu
from jprune import attention as ja

pytestmark = pytest.mark.others_code

SHAPE = attention_encoder.Shape(depth=5, width=16, heads=2, hidden=32)


@functools.cache
def _encoder():
    layers = attention_encoder.init(jax.random.key(0), SHAPE)
    x = jax.random.normal(jax.random.key(1), (1, 40, SHAPE.width))
    return layers, x, attention_encoder.half(SHAPE, 40, 4)


def test_pruned_and_masked_encoders_agree_on_the_tokens_that_are_left():
    layers, x, plan = _encoder()
    forms = (attention_encoder.pruned, attention_encoder.masked)
    both = jax.jit(lambda layers, x: [f(layers, x, plan) for f in forms])
    pruned, (masked, valid) = both(layers, x)
    assert pruned.shape == (1, plan.tokens[-1], SHAPE.width)
    np.testing.assert_allclose(pruned[0], masked[0][valid[0]], rtol=1e-3, atol=1e-4)
    assert valid[0, 0]


def test_dense_is_the_cascade_that_keeps_all():
    layers, x, plan = _encoder()
    whole = ja.dense(SHAPE.depth, 40, SHAPE.heads)

    @jax.jit
    def all_forms(layers, x):
        dense = attention_encoder.dense(layers, x)
        others = (attention_encoder.pruned, attention_encoder.cut)
        return dense, [form(layers, x, whole) for form in others]

    dense, others = all_forms(layers, x)
    for found in others:
        np.testing.assert_allclose(found, dense, rtol=1e-4, atol=1e-5)
    shape = jax.eval_shape(lambda *a: attention_encoder.cut(*a, plan), layers, x).shape
    assert shape[1] == plan.tokens[-1]


@pytest.mark.optimized
def test_the_schedule_costs_half_as_xla_counts_too():
    layers, x, plan = _encoder()
    counts = [
        jax.jit(f).lower(layers, x).compile().cost_analysis()["flops"]
        for f in (
            attention_encoder.dense,
            functools.partial(attention_encoder.cut, plan=plan),
        )
    ]
    whole = ja.dense(SHAPE.depth, 40, SHAPE.heads)
    share = attention_encoder.cost(SHAPE, plan) / attention_encoder.cost(SHAPE, whole)
    assert 0.4 < share <= 0.5
    # XLA counts what is not a product too, and that is much in a layer so narrow.
    assert counts[1] / counts[0] == pytest.approx(share, abs=0.05)


def test_caches_by_rows_by_columns_and_masked_agree():
    """A mask that keeps all, and an eviction of the oldest, are the dense cache."""
    context = attention_decode.Context(batch=2, length=12, tokens=5, heads=2, dim=4)
    depth = 3
    shape = (context.tokens, depth, context.batch, context.heads, context.dim)
    qkv = tuple(jax.random.normal(jax.random.key(i), shape) for i in range(3))

    def run(step, turned=None):
        state = attention_decode.start(context, [12] * depth, seed=0)
        layers, stream = state
        # Slots in order, so that the oldest one is where all forms expect it.
        ordered = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), (2, 12))
        layers = tuple(c._replace(positions=ordered) for c in layers)
        # The older, the less important.
        scores = jnp.zeros_like(stream.scores) + 1e6 * jnp.arange(2**16)
        state = layers, stream._replace(scores=scores)
        state = attention_decode._turned(state, turned) if turned else state
        return jax.jit(lambda s: attention_decode.tokens([step] * depth, s, qkv)[1])(
            state
        )

    dense = run(attention_decode.attend_dense)
    mask_all = functools.partial(attention_decode.attend_masked, count=12)
    for found in (
        run(functools.partial(attention_decode.attend_laid, axis=1), turned="keys"),
        run(functools.partial(attention_decode.attend_laid, axis=2), turned="values"),
        run(mask_all),
        run(attention_decode.decode.step),
    ):
        np.testing.assert_allclose(found, dense, rtol=1e-4, atol=1e-5)


def test_it_runs_and_its_claims_can_be_measured():
    settings = attention.Settings(
        seeds=(0, 1),
        steps=1,
        shape=SHAPE,
        lengths=(40,),
        multiple_of=4,
        contexts=((1, 32),),
        tokens=2,
    )
    outcome = attention.run(settings, None, Progress(disable=True))
    for table in outcome.tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows)
    one = outcome.figures["encoder"]["40"]
    assert one["times_fewer"] >= 2
    expected = one["ms, dense"][0] / one["ms, pruned"][0] / one["times_fewer"]
    assert one["of the ideal"][0] == pytest.approx(expected, rel=0.01)
    one = outcome.figures["decoding"]["1 x 32"]
    assert one["slots"] == [28, 22, 6, 6, 6, 6, 3, 3, 3, 3, 3, 3]
    moved = one["megabytes"] / one["ms, dense"][0]
    assert one["GB/s, dense"][0] == pytest.approx(moved, rel=0.01)
    figures = {
        "encoder": dict.fromkeys(
            ("128", "384", "512"), outcome.figures["encoder"]["40"]
        ),
        "decoding": dict.fromkeys(("1 x 1024", "1 x 4096"), one),
    }
    for claim in attention.STUDY.claims:
        assert np.isfinite(claim.check(figures)["ours"])


def test_the_one_for_gpus_runs_anywhere():
    settings = attention_gpu.Settings(
        seeds=(0, 1),
        steps=1,
        shape=SHAPE,
        batch=2,
        lengths=(40,),
        multiple_of=4,
        kernel_lengths=(9,),
        rows=((3, 8), (2, 2, 8)),
        contexts=((2, 32),),
        tokens=2,
    )
    outcome = attention_gpu.run(settings, None, Progress(disable=True))
    for table in outcome.tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows)
    one = outcome.figures["encoder"]["40"]
    expected = one["ms, dense"][0] / one["ms, fused"][0] / one["times_fewer"]
    assert one["of the ideal"][0] == pytest.approx(expected, rel=0.01)
    parts = outcome.figures
    figures = {
        "kernels": dict.fromkeys(("384", "512", "1024"), parts["kernels"]["9"]),
        "encoder": dict.fromkeys(("128", "384", "512"), one),
        "decoding": dict.fromkeys(
            ("64 x 1024", "16 x 4096"), parts["decoding"]["2 x 32"]
        ),
    }
    for claim in attention_gpu.STUDY.claims:
        assert np.isfinite(claim.check(figures)["ours"])


def test_sums_and_probabilities_prune_the_same_tokens():
    layers, x, plan = _encoder()
    fused = functools.partial(
        attention_encoder.pruned, plan=plan, mix=attention_encoder.mix_fused
    )
    plain = functools.partial(attention_encoder.pruned, plan=plan)
    found, expected = jax.jit(lambda *a: (fused(*a), plain(*a)))(layers, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
