"""The cascade against its float64 oracle, and under every transformation of JAX."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import attention_oracle as oracle

import jprune as jp
from jprune import attention as ja
from jprune.attention import _choose, cascade, soft

HIDDEN, HEADS, DIM = 16, 4, 4
PLAN = ja.schedule(18, (18, 12, 12, 5), (4, 4, 3, 2))


class Layer(NamedTuple):
    heads: ja.HeadWeights
    up: jax.Array
    down: jax.Array


def _layers(count=4, seed=0, kv_heads=HEADS):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape) / 4, jnp.float32)

    return [
        Layer(
            ja.HeadWeights(
                draw(HIDDEN, HEADS, DIM),
                draw(HIDDEN, kv_heads, DIM),
                draw(HIDDEN, kv_heads, DIM),
                draw(HEADS, DIM, HIDDEN) / 2,
            ),
            draw(HIDDEN, 24),
            draw(24, HIDDEN) / 4,
        )
        for _ in range(count)
    ]


def _mix(layer, x, valid, ids):
    return cascade.mix_heads(layer.heads, x, valid, ids)


def _finish(layer, x, outputs, ids):
    weights = layer.heads
    if ids.shape[0] < weights.key.shape[1]:
        weights = ja.take_heads(weights, ids)
    x = x + ja.combine(weights, outputs)
    return x + jnp.tanh(x @ layer.up) @ layer.down


def _encode(layers, x, valid, protected, plan=PLAN, **more):
    per_sample = more.pop("per_sample", False)
    kv_heads = layers[0].heads.key.shape[1]
    state = cascade.start(
        x, kv_heads, valid=valid, protected=protected, per_sample=per_sample
    )
    return cascade.encode(state, layers, plan, _mix, _finish, **more)


_run = jax.jit(_encode, static_argnames=("plan", "per_sample", "scan"))


def _inputs(batch, seed=0, length=PLAN.length):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, length, HIDDEN)).astype("f4")
    lengths = rng.integers(1, length + 1, batch)
    valid = np.arange(length) < lengths[:, None]
    protected = (np.arange(length) == 0) & np.ones((batch, 1), bool)
    return jnp.asarray(x), jnp.asarray(valid), jnp.asarray(protected)


def _plain(layer):
    h = layer.heads
    pairs = zip(("q", "k", "v", "o"), (h.query, h.key, h.value, h.output), strict=True)
    named = {n: np.asarray(w, np.float64) for n, w in pairs}
    return named | {n: np.asarray(getattr(layer, n), "f8") for n in ("up", "down")}


def test_two_hundred_cascades_agree_with_the_oracle():
    """Fifty batches of four, of any number of real tokens, one compilation."""
    layers, traces = _layers(), []

    @jax.jit
    def run(*inputs):
        traces.append(None)
        return _encode(layers, *inputs)

    plain, near = [_plain(layer) for layer in layers], 0
    for seed in range(50):
        inputs = _inputs(4, seed)
        state = run(*inputs)
        x, valid, protected = map(np.asarray, inputs)
        margins = []

        def tokens(i, b, scores, real, safe, margins=margins):
            ids = oracle.keep(scores, PLAN.tokens[i], real, safe)
            free = real & ~safe
            out = ~np.isin(np.arange(len(real)), ids)
            inside, outside = scores[~out & free], scores[out & free]
            if len(inside) and len(outside):
                margins.append((inside.min() - outside.max()) / scores.max())
            return ids

        def heads(i, scores, margins=margins):
            ids = oracle.keep(scores, PLAN.heads[i])
            out = np.delete(scores, ids).max()
            margins.append((scores[ids].min() - out) / scores.max())
            return ids

        found = oracle.encode(x, plain, PLAN, valid, protected, tokens, heads)
        if min(margins) < 1e-5:  # a choice that rounding may turn
            near += 1
            continue
        samples, where, scores, left, total = found
        np.testing.assert_array_equal(state.positions, np.stack(where))
        np.testing.assert_array_equal(state.heads, left)
        np.testing.assert_allclose(state.head_scores, total, rtol=1e-4)
        np.testing.assert_allclose(state.scores, np.stack(scores), atol=1e-3)
        kept = np.take_along_axis(valid, np.stack(where), 1)
        np.testing.assert_array_equal(state.valid, kept)
        for b in range(4):  # padding sees real tokens only, and nobody sees padding
            np.testing.assert_allclose(
                state.x[b][kept[b]], samples[b][kept[b]], rtol=1e-3, atol=1e-3
            )
    assert near <= 5
    assert len(traces) == 1


def _dense(layers, x, valid):
    """Plain encoder with JAX's attention."""
    for layer in layers:
        q, k, v = (
            jnp.einsum("btd,dhk->bthk", x, w)
            for w in (layer.heads.query, layer.heads.key, layer.heads.value)
        )
        out = jax.nn.dot_product_attention(q, k, v, mask=valid[:, None, None, :])
        x = x + jnp.einsum("bthk,hkd->btd", out, layer.heads.output)
        x = x + jnp.tanh(x @ layer.up) @ layer.down
    return x


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("scan", [False, True])
def test_keeping_all_is_the_plain_encoder(kv_heads, scan):
    layers, (x, valid, _) = _layers(kv_heads=kv_heads), _inputs(3)
    whole = ja.dense(4, PLAN.length, HEADS)
    state = _run(layers, x, valid, None, plan=whole, scan=scan)
    np.testing.assert_allclose(state.x, jax.jit(_dense)(layers, x, valid), atol=5e-5)
    np.testing.assert_array_equal(cascade.restore(state, x), state.x)


def test_layers_that_are_scanned_and_groups_that_leave():
    """Half of the KV heads go, too, each with its two query heads."""
    layers, inputs = _layers(kv_heads=2), _inputs(3)
    plan = ja.schedule(18, (18, 9, 9, 9), (4, 4, 2, 2))
    state = _run(layers, *inputs, plan=plan)
    assert state.heads.shape == (1,)
    assert state.x.shape == (3, 9, HIDDEN)
    scanned = _run(layers, *inputs, plan=plan, scan=True)
    np.testing.assert_array_equal(scanned.positions, state.positions)
    np.testing.assert_allclose(scanned.x, state.x, atol=5e-5)
    # The order of the input, of tokens that stayed in their order all along.
    assert np.all(np.diff(np.asarray(state.positions), axis=1) > 0)


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(batch):
    state = _run(_layers(), *_inputs(batch))
    assert state.x.shape == (batch, 5, HIDDEN)
    if batch:
        x, valid, protected = (a[0] for a in _inputs(1))
        alone = _run(_layers(), x, valid, protected)
        np.testing.assert_allclose(alone.x, state.x[0], atol=5e-5)
        np.testing.assert_array_equal(alone.heads, state.heads)


def test_a_mask_of_heads_for_each_sample_is_each_sample_alone():
    layers, inputs = _layers(), _inputs(5)
    masked = _run(layers, *inputs, per_sample=True)
    alone = jax.jit(jax.vmap(functools.partial(_encode, layers)))(*inputs)
    np.testing.assert_array_equal(masked.positions, alone.positions)
    np.testing.assert_allclose(masked.x, alone.x, atol=5e-5)
    ids = [np.flatnonzero(row).tolist() for row in masked.alive]
    assert ids == alone.heads.tolist()
    assert len(set(map(tuple, ids))) > 1  # they are not all the same


def test_derivatives_are_those_of_the_kept_tokens_and_remat_changes_nothing():
    layers, (x, valid, protected) = _layers(2), _inputs(2, 3)
    valid = jnp.ones_like(valid)
    plan = ja.schedule(18, (9, 9), (4, 4))

    def loss(x, layers, encode=_encode):
        state = encode(layers, x, valid, protected, plan)
        return jnp.sum(jnp.sin(state.x[:, 0])), state.positions

    jitted = jax.jit(loss)
    slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, kept), slope = slopes(x, layers)
    direction = jax.random.normal(jax.random.key(0), x.shape)
    step = 1e-3
    ends = [jitted(x + s * step * direction, layers) for s in (1, -1)]
    for _, same in ends:
        np.testing.assert_array_equal(same, kept)
    numeric = (ends[0][0] - ends[1][0]) / (2 * step)
    np.testing.assert_allclose(jnp.sum(slope * direction), numeric, rtol=2e-2)

    def remat(*args):
        return jax.checkpoint(_encode, static_argnums=4)(*args)

    again = jax.jit(jax.grad(lambda x: loss(x, layers, remat)[0]))(x)
    np.testing.assert_allclose(again, slope, atol=5e-5)
    assert jnp.isfinite(value)


@pytest.mark.optimized
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_over_eight_devices(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    layers, inputs = _layers(), _inputs(16)
    one = _run(layers, *inputs)
    placed = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in inputs]
    whole = jax.device_put(layers, NamedSharding(mesh, P()))
    state = _run(whole, *placed)
    np.testing.assert_array_equal(state.positions, one.positions)
    np.testing.assert_array_equal(state.heads, one.heads)
    np.testing.assert_allclose(state.x, one.x, atol=5e-5)
    assert state.x.sharding.is_equivalent_to(placed[0].sharding, 3)
    # The sums of the heads' scores cross the devices, and no token does.
    text = _run.lower(whole, *placed).compile().as_text()
    assert "all-to-all" not in text
    assert "collective-permute" not in text


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (ja.dense(4, 17, HEADS), "17 tokens in 4 layers"),
        (ja.dense(3, 18, HEADS), "18 tokens in 3 layers"),
        (ja.dense(4, 18, 6), r"\(6, 6, 6, 6\) are not multiples"),
    ],
)
def test_plans_that_do_not_fit(plan, message):
    with pytest.raises(jp.PruningError, match=message):
        _encode(_layers(), *_inputs(1), plan)


# Soft versions


def _soft(layers, x, valid, protected, counts, keep=soft.straight_keep):
    state = soft.SoftCascade(
        x, valid.astype(jnp.float32), jnp.zeros(valid.shape, jnp.float32)
    )
    kept = []
    for layer, count in zip(layers, counts, strict=True):
        state = soft.soft_layer(
            state,
            lambda x, gates, w=layer.heads: soft.gated_attend(*ja.project(w, x), gates),
            lambda x, out, layer=layer: _finish(layer, x, out, jnp.arange(HEADS)),
            lambda scores, real, count=count: keep(
                scores, count, 0.1, valid=real, protected=protected & real
            ),
        )
        kept.append(state.gates.sum(-1))
    return state, jnp.stack(kept)


def test_hard_gates_are_the_gather():
    layers, (x, _, protected) = _layers(), _inputs(3)
    valid = jnp.arange(18)[None] < jnp.array([[18], [15], [13]])
    plan = PLAN._replace(heads=(4,) * 4)
    gathered = _run(layers, x, valid, protected, plan=plan)
    state, kept = _soft(layers, x, valid, protected, [float(c) for c in plan.tokens])
    np.testing.assert_array_equal(kept[1:], np.tile([[12], [12], [5]], 3))
    expected = _choose.put(
        jnp.zeros(valid.shape, bool), gathered.positions, gathered.valid
    )
    np.testing.assert_array_equal(state.gates > 0, expected)
    rows = ja.take(state.x, gathered.positions)
    np.testing.assert_allclose(rows, gathered.x, atol=5e-5)
    scores = ja.take(state.scores, gathered.positions)
    np.testing.assert_allclose(scores, gathered.scores, atol=1e-4)


def test_soft_gates_add_up_and_are_the_formula():
    rng = np.random.default_rng(0)
    s = rng.standard_normal((6, 12)).astype("f4")
    valid = np.arange(12) < rng.integers(6, 13, (6, 1))
    protected = np.arange(12)[None] == np.zeros((6, 1))
    k = np.array([1.5, 2, 3.3, 4, 5, 5.9], "f4")
    given = {"valid": jnp.asarray(valid), "protected": jnp.asarray(protected)}
    found = soft.soft_keep(jnp.asarray(s), jnp.asarray(k), 0.3, **given)
    np.testing.assert_allclose(found.sum(-1), k, rtol=1e-4)
    np.testing.assert_array_equal(np.asarray(found)[~valid], 0)
    np.testing.assert_allclose(found[:, 0], 1, atol=5e-5)
    for gates, row, real in zip(np.asarray(found, "f8"), s, valid, strict=True):
        free = real & (gates > 1e-3) & (gates < 1 - 1e-3)
        tau = row[free] - 0.3 * np.log(gates[free] / (1 - gates[free]))
        assert np.ptp(tau) < 1e-3  # one threshold for all of a row


def test_gates_weigh_keys_and_their_derivative_is_that_of_the_formula():
    rng = np.random.default_rng(1)
    q, k, v, w = (
        jnp.asarray(rng.standard_normal((2, 5, 4)), jnp.float32) for _ in range(4)
    )
    gates = jnp.array([1.0, 0.5, 0.0, 0.25, 1.0])

    def loss(g):
        return jnp.sum(w * soft.gated_attend(q, k, v, g)[0])

    def formula(g):
        e = np.exp(np.einsum("hid,hjd->hij", *map(np.asarray, (q, k))) / 2) * g
        p = e / e.sum(-1, keepdims=True)
        return np.sum(np.asarray(w) * np.einsum("hij,hjd->hid", p, np.asarray(v)))

    assert loss(gates) == pytest.approx(formula(np.asarray(gates, "f8")), rel=1e-4)
    slope = jax.grad(loss)(gates)
    for j in (0, 1, 3, 4):
        step = 1e-5 * np.eye(5)[j]
        rise = formula(np.asarray(gates) + step) - formula(np.asarray(gates) - step)
        assert slope[j] == pytest.approx(rise / 2e-5, rel=1e-2, abs=1e-3)
    assert jnp.all(jnp.isfinite(slope))


def test_keep_ratios_learn_to_meet_a_budget():
    """Counts fall under the charge until it is paid, and no further."""
    layers, (x, valid, protected) = _layers(2), _inputs(4)
    valid = jnp.ones_like(valid)
    full = sum(ja.multiply_adds(ja.dense(2, 18, HEADS), HIDDEN, 24))

    def loss(ratios):
        state, kept = _soft(layers, x, valid, protected, list(18 * ratios))
        kept = kept.mean(1)
        plan = ja.Schedule(18, tuple(kept), (HEADS,) * 2, (18, kept[0]))
        cost = sum(ja.multiply_adds(plan, HIDDEN, 24))
        task = 1e-3 * jnp.mean(jnp.square(state.x[:, 0] - x[:, 0]))
        return soft.over_budget(cost, 0.6 * full) + task, cost / full

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    ratios = jnp.array([0.95, 0.9])
    for _ in range(80):
        (_, share), slope = step(ratios)
        ratios = jnp.clip(ratios - 0.02 * slope, 0.05, 1)
    assert 0.5 < float(share) < 0.63


def test_learned_thresholds_keep_what_is_above_and_learn():
    layers, (x, valid, _) = _layers(1), _inputs(3)
    gates = valid.astype(jnp.float32)
    q, k, v = ja.project(layers[0].heads, x)
    _, probs = soft.gated_attend(q, k, v, gates)
    mean = soft.mean_importance(probs, gates)
    # Each row of probabilities adds up to one, so the means of a sentence do.
    np.testing.assert_allclose(mean.sum(-1), 1, rtol=1e-5)
    exact = ja.token_importance(probs, valid, valid)
    votes = HEADS * valid.sum(-1, keepdims=True).astype(jnp.float32)
    np.testing.assert_allclose(mean * votes, exact, rtol=1e-5, atol=1e-6)
    hard = soft.threshold_keep(mean, 0.05, 1e-3, hard=True)
    np.testing.assert_array_equal(hard > 0, mean > 0.05)
    safe = jnp.arange(18)[None] == jnp.zeros((3, 1), jnp.int32)
    assert soft.threshold_keep(mean, 2.0, 1e-3, hard=True, protected=safe).sum() == 3
    fewer = jax.grad(lambda t: soft.threshold_keep(mean, t, 1e-2).sum())(0.05)
    assert fewer < 0
    alive = jnp.array([1.0, 0.0, 1.0, 1.0])
    out = jnp.ones((HEADS, 2, DIM))
    assert soft.gate_heads(out, alive)[:, 0, 0].tolist() == [1, 0, 1, 1]
