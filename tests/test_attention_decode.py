"""Decoding with a pruned cache against the paper's algorithm and against all keys."""

import re

import decode_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune as jp
from experiments.models import decoder as decoders
from jprune import attention as ja
from jprune.attention import cache as caches
from jprune.attention import decode

LENGTH, BUDGETS, HEADS, KV_HEADS, DIM = 40, (16, 9, 6), 4, 2, 8


def _draw(seed, batch, prompt, steps, layers=3):
    """Heads that look hard at few tokens, or softly at many."""
    rng = np.random.default_rng(seed)
    sharp = rng.choice([0.3, 1.0, 3.0], (batch, 1, 1, 1))

    def normal(*shape):
        return rng.standard_normal((layers, batch, *shape)).astype("f4")

    return {
        "keys": normal(KV_HEADS, prompt, DIM),
        "values": normal(KV_HEADS, prompt, DIM),
        "scores": rng.uniform(0, 3, (batch, prompt)).astype("f4"),
        "q": (sharp * normal(steps, HEADS, DIM)).astype("f4"),
        "k": normal(steps, KV_HEADS, DIM),
        "v": normal(steps, KV_HEADS, DIM),
    }


def _token(carry, qkv, *, sinks=0, recent=0):
    """One token through all layers; `qkv` are `(layers, batch, ...)`."""
    layers, stream = list(carry[0]), carry[1]
    outs, kept, gone = [], [], []
    for i, (q, k, v) in enumerate(zip(*qkv, strict=True)):
        out, layers[i], stream = decode.step(
            q, k, v, layers[i], stream, sinks=sinks, recent=recent
        )
        outs.append(out)
        kept.append(_members(layers[i], stream))
        gone.append(stream.evicted)
    stream = caches.advance(stream)
    return (tuple(layers), stream), (jnp.stack(outs), jnp.stack(kept), jnp.stack(gone))


def _members(cache, stream):
    """(batch, length): which positions a layer holds."""
    set_at = jax.vmap(lambda row, at, live: row.at[at].max(live))
    none = jnp.zeros(stream.scores.shape, bool)
    return set_at(none, cache.positions, caches.live_slots(cache))


def _begin(data, lengths, budgets=BUDGETS, length=LENGTH, **protected):
    batch = data["scores"].shape[0]
    stream = caches.start(batch, length, scores=data["scores"], position=lengths)
    layers = tuple(
        caches.fill(k, v, stream, n, **protected)
        for k, v, n in zip(data["keys"], data["values"], budgets, strict=True)
    )
    return layers, stream


def _decode(data, lengths, budgets=BUDGETS, length=LENGTH, **protected):
    """Outputs (steps, layers, batch, ...), kept sets and what was given up."""
    data = jax.tree.map(jnp.asarray, data)
    carry = _begin(data, lengths, budgets, length, **protected)
    first = tuple(_members(c, carry[1]) for c in carry[0])
    qkv = tuple(jnp.moveaxis(data[n], 2, 0) for n in "qkv")
    carry, found = lax.scan(lambda c, x: _token(c, x, **protected), carry, qkv)
    return carry, found, jnp.stack(first)


@pytest.mark.parametrize(
    ("protected", "batch"), [({}, 96), ({"sinks": 2, "recent": 3}, 32)]
)
def test_decoding_is_that_of_the_paper(protected, batch):
    """Prompts of 0 to 20 tokens: outputs, kept sets, evictions, importance."""
    prompt, steps, seed = 20, 16, batch
    data = _draw(seed, batch, prompt, steps)
    lengths = np.random.default_rng(seed).integers(0, prompt + 1, batch)
    run = jax.jit(lambda d, n: _decode(d, n, **protected))
    carry, (outs, kept, gone), first = run(data, jnp.asarray(lengths, jnp.int32))
    near = 0
    for b, n in enumerate(lengths):
        slow = decode_oracle.Slow(BUDGETS, **protected)
        rows = [data[x][:, b, :, :n] for x in ("keys", "values")]
        slow.prompt(*rows, data["scores"][b, :n])
        assert [set(np.flatnonzero(x)) for x in first[:, b]] == [
            set(x) for x in slow.layers
        ]
        for t in range(steps):
            expected = slow.step(*(data[x][:, b, t] for x in "qkv"))
            if slow.margin < 1e-5:  # float32 may decide otherwise
                near += 1
                break
            np.testing.assert_allclose(outs[t, :, b], expected, rtol=1e-4, atol=1e-5)
            for i, layer in enumerate(slow.layers):
                assert set(np.flatnonzero(kept[t, i, b])) == set(layer)
                assert int(gone[t, i, b]) == (
                    -1 if slow.evicted[i] is None else slow.evicted[i]
                )
        else:
            scores = np.array([slow.scores[t] for t in range(slow.position)])
            found = carry[1].scores[b]
            np.testing.assert_allclose(found[: len(scores)], scores, rtol=1e-4)
            assert not np.any(found[len(scores) :])
    assert near <= batch // 50


def test_the_cascade_holds():
    """What a layer has, all before it have; nobody comes back; protected stay."""
    protected = {"sinks": 2, "recent": 2}
    data = _draw(7, 32, 20, 20)
    lengths = jnp.full(32, 20, jnp.int32)
    _, (_, kept, _), first = jax.jit(lambda d: _decode(d, lengths, **protected))(data)
    kept = np.concatenate([first[None], kept])
    assert np.all(kept[:, :-1] >= kept[:, 1:])
    np.testing.assert_array_equal(
        kept.sum(-1), np.broadcast_to(np.array(BUDGETS)[None, :, None], (21, 3, 32))
    )
    for t in range(1, 21):
        now = 19 + t
        back = kept[t] & ~kept[t - 1]
        assert np.all(np.argwhere(back)[:, -1] == now)
        assert back[..., now].all()
        assert kept[t][..., :2].all()
        assert kept[t][..., now - 1 : now + 1].all()


def test_of_equal_scores_the_later_token_goes():
    zeros = jnp.zeros((1, 1, 6, 4))
    stream = caches.start(1, 10, scores=jnp.ones((1, 6)))
    cache = caches.fill(zeros, zeros, stream, 4)
    assert cache.positions.tolist() == [[0, 1, 2, 3]]
    token = jnp.zeros((1, 1, 4))
    _, cache, after = decode.step(token, token, token, cache, stream)
    assert sorted(cache.positions[0].tolist()) == [0, 1, 2, 6]
    assert after.evicted.tolist() == [3]
    # All four were looked at alike.
    np.testing.assert_allclose(after.scores[0, :7], [1.25] * 3 + [1] * 3 + [0.25])


@pytest.mark.others_code  # the models promote ranks
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_step_by_step_is_the_full_forward_under_the_same_kept_sets(name):
    """A whole model; and with room for all tokens it is the model unpruned."""
    batch, prompt, steps, depth = 2, 9, 8, 3
    model, params = _model(name, depth)
    ids = jax.random.randint(jax.random.key(1), (batch, prompt + steps), 0, 50)
    kept_in = {}
    for budgets in ((10, 6, 4), (17, 17, 17)):
        logits, kept = jax.jit(
            lambda ids, budgets=budgets: _generate(model, params, ids, prompt, budgets)
        )(ids)
        causal = np.tri(prompt + steps, dtype=bool)
        masks = np.broadcast_to(causal, (depth, batch, *causal.shape)).copy()
        masks[:, :, prompt:] = np.moveaxis(kept, 0, 2)
        expected = _forward(model, params, ids, jnp.asarray(masks))[:, prompt:]
        np.testing.assert_allclose(
            np.moveaxis(logits, 0, 1), expected, rtol=1e-4, atol=1e-4
        )
        kept_in[budgets] = kept
    assert kept_in[10, 6, 4].sum() == steps * batch * (10 + 6 + 4)
    plain = decoders.forward(model, params, ids)[:, prompt:]
    np.testing.assert_allclose(np.moveaxis(logits, 0, 1), plain, rtol=1e-4, atol=1e-4)


def _model(name, depth):
    params = decoders.init_gpt(
        jax.random.key(0), vocabulary=50, length=32, width=32, depth=depth
    )
    params = jax.tree.map(lambda x: 3 * x, params)  # attention that is not uniform
    if name == "gpt":
        return decoders.gpt(4), params

    def kernel(seed, *shape):
        return 0.3 * jax.random.normal(jax.random.key(seed), shape)

    params["norm"] = jnp.ones(32)
    params["layers"] = [
        {
            "norm1": jnp.ones(32),
            "norm2": jnp.ones(32),
            **{n: kernel(10 * i, 32, 32) for n in ("q", "o")},
            **{n: kernel(10 * i + j, 32, 16) for j, n in enumerate("kv", 1)},
            **{n: kernel(10 * i + j, 32, 48) for j, n in enumerate(("gate", "up"), 3)},
            "down": kernel(10 * i + 5, 48, 32),
        }
        for i in range(depth)
    ]
    return decoders.llama(4, 2), params


def _forward(model, params, ids, masks):
    positions = jnp.arange(ids.shape[-1])
    x = model.embed(params, ids, positions)
    for layer, mask in zip(params["layers"], masks, strict=True):
        q, k, v = model.qkv(layer, x, positions)
        x = model.finish(layer, x, ja.attend(q, k, v, mask=mask[:, None])[0])
    return model.logits(params, x)


def _generate(model, params, ids, prompt, budgets):
    """Logits (steps, batch, words) and kept sets (steps, layers, batch, length)."""
    batch, length = ids.shape
    positions = jnp.arange(prompt)
    x = model.embed(params, ids[:, :prompt], positions)
    rows, scores = [], jnp.zeros((batch, prompt))
    for layer in params["layers"]:
        q, k, v = model.qkv(layer, x, positions)
        out, probs = ja.attend(q, k, v, causal=True)
        scores += ja.token_importance(probs)
        rows.append((k, v))
        x = model.finish(layer, x, out)
    stream = caches.start(batch, length, scores=scores)
    layers = tuple(
        caches.fill(k, v, stream, n) for (k, v), n in zip(rows, budgets, strict=True)
    )

    def token(carry, ids):
        layers, stream = list(carry[0]), carry[1]
        at = stream.position[:1]
        x, kept = model.embed(params, ids[:, None], at), []
        for i, layer in enumerate(params["layers"]):
            q, k, v = (y[:, :, 0] for y in model.qkv(layer, x, at))
            out, layers[i], stream = decode.step(q, k, v, layers[i], stream)
            x = model.finish(layer, x, out[:, :, None])
            kept.append(_members(layers[i], stream))
        logits = model.logits(params, x)[:, 0]
        return (tuple(layers), caches.advance(stream)), (logits, jnp.stack(kept))

    return lax.scan(token, (layers, stream), ids[:, prompt:].T)[1]


def test_with_room_for_all_it_is_plain_attention():
    """Against `jax.nn.dot_product_attention`, and its gradients with it."""
    batch, prompt, steps = 3, 5, 6
    data = jax.tree.map(jnp.asarray, _draw(3, batch, prompt, steps, layers=1))
    lengths = jnp.full(batch, prompt, jnp.int32)
    total = prompt + steps

    def pruned(data):
        return _decode(data, lengths, (total,), total)[1][0][:, 0]

    def plain(data):
        rows = ((data["keys"], data["k"]), (data["values"], data["v"]))
        k, v = (jnp.concatenate([jnp.moveaxis(a[0], 1, 2), b[0]], 1) for a, b in rows)
        seen = jnp.arange(total)[None] <= prompt + jnp.arange(steps)[:, None]
        out = jax.nn.dot_product_attention(data["q"][0], k, v, mask=seen[None, None])
        return jnp.moveaxis(out, 1, 0)

    np.testing.assert_allclose(pruned(data), plain(data), rtol=1e-5, atol=1e-6)
    weights = jax.random.normal(jax.random.key(0), (steps, batch, HEADS, DIM))
    ours, theirs = (
        jax.grad(lambda d, f=f: jnp.sum(weights * f(d)))(data) for f in (pruned, plain)
    )
    for name in ("keys", "values", "q", "k", "v"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
        assert np.any(theirs[name])


def test_gradients_are_those_of_the_kept_tokens():
    """By finite differences; what was pruned has none."""
    data = jax.tree.map(jnp.asarray, _draw(5, 2, 12, 3))
    lengths = jnp.full(2, 12, jnp.int32)

    @jax.jit
    def loss(data):
        _, (outs, kept, _), first = _decode(data, lengths, (8, 6, 5))
        return jnp.sum(jnp.square(outs)), (kept, first)

    grads, (kept, first) = jax.grad(loss, has_aux=True)(data)
    moved = np.abs(grads["values"]).sum((2, 4)) > 0  # (layers, batch, prompt)
    np.testing.assert_array_equal(moved, np.asarray(kept)[0][..., :12])
    assert np.any(np.asarray(first)[..., :12] & ~moved)  # given up by the first token
    for name in ("values", "q", "k"):
        way = np.sign(grads[name]) * 1e-2
        values = [loss({**data, name: data[name] + s * way}) for s in (1, -1)]
        for _, (sets, _) in values:
            np.testing.assert_array_equal(sets, kept)
        slope = (float(values[0][0]) - float(values[1][0])) / 2
        assert slope == pytest.approx(float(jnp.vdot(grads[name], way)), rel=2e-2)


def test_compaction_keeps_the_best_of_what_there_is():
    """As for the paper's first token, which reads all keys."""
    data = _draw(11, 4, 12, 6)
    lengths = jnp.full(4, 12, jnp.int32)
    carry = _begin(jax.tree.map(jnp.asarray, data), lengths, (13,) * 3)
    qkv = [jnp.asarray(data[n]) for n in "qkv"]
    carry, _ = _token(carry, [x[:, :, 0] for x in qkv])
    small = tuple(
        caches.compact(c, carry[1], n) for c, n in zip(carry[0], BUDGETS, strict=True)
    )
    stream = carry[1]
    _, (outs, kept, _) = _token((small, stream), [x[:, :, 1] for x in qkv])
    for b in range(4):
        slow = decode_oracle.Slow((13,) * 3)
        slow.prompt(data["keys"][:, b], data["values"][:, b], data["scores"][b])
        slow.step(*(data[x][:, b, 0] for x in "qkv"))
        slow.shrink(BUDGETS)
        expected = slow.step(*(data[x][:, b, 1] for x in "qkv"))
        np.testing.assert_allclose(outs[:, b], expected, rtol=1e-4, atol=1e-5)
        for i, layer in enumerate(slow.layers):
            assert set(np.flatnonzero(kept[i, b])) == set(layer)
    # A cache may grow too: more room, the same tokens.
    large = caches.compact(small[2], stream, 20)
    assert large.keys.shape == (4 * KV_HEADS, 20, DIM)
    np.testing.assert_array_equal(_members(large, stream), _members(small[2], stream))


def test_prompts_that_are_already_pruned():
    """Rows with their positions, those of padding wherever they stand."""
    rng = np.random.default_rng(0)
    keys = jnp.asarray(rng.standard_normal((1, 1, 5, 4)), jnp.float32)
    stream = caches.start(1, 9, scores=jnp.array([[5.0, 1, 4, 2, 3, 6]]))
    positions = jnp.array([[8, 0, 3, 8, 4]], jnp.int32)  # 8 is not decoded yet
    cache = caches.fill(keys, 2 * keys, stream, 4, positions=positions)
    assert cache.used.tolist() == [3]
    assert cache.positions[0, :3].tolist() == [0, 3, 4]
    np.testing.assert_array_equal(cache.keys[0, :3], keys[0, 0, [1, 2, 4]])
    np.testing.assert_array_equal(cache.values[0, :3], 2 * keys[0, 0, [1, 2, 4]])
    cache = caches.fill(keys, keys, stream, 2, positions=positions)
    assert cache.positions.tolist() == [[0, 4]]


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
    def token(carry, qkv):
        traces.append(None)
        return _token(carry, qkv)

    data = jax.tree.map(jnp.asarray, _draw(1, 2, 20, 6))
    carry = _begin(data, jnp.array([20, 3], jnp.int32))
    for t in range(6):
        carry, _ = token(carry, tuple(data[n][:, :, t] for n in "qkv"))
    assert len(traces) == 1
    donating = jax.jit(lambda c, x: _token(c, x)[0], donate_argnums=0)
    old = carry
    donating(carry, tuple(data[n][:, :, 0] for n in "qkv"))
    assert all(c.keys.is_deleted() and c.values.is_deleted() for c in old[0])


def test_under_vmap_and_remat():
    data = _draw(2, 6, 20, 4)
    lengths = np.array([20, 3, 0, 11, 8, 20], np.int32)
    *_, (outs, kept, gone), _ = _decode(data, jnp.asarray(lengths))

    def half(data, lengths):
        return jax.checkpoint(lambda d, n: _decode(d, n)[1])(data, lengths)

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


def test_a_batch_over_eight_devices():
    """The same as on one, and no key or value is sent anywhere."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    data = jax.tree.map(jnp.asarray, _draw(4, 16, 20, 1))
    qkv = tuple(data[n][:, :, 0] for n in "qkv")
    carry = _begin(data, jnp.arange(5, 21, dtype=jnp.int32))
    expected = _token(carry, qkv)
    place = NamedSharding(mesh, P("x"))
    sharded = jax.tree.map(lambda x: jax.device_put(x, place), carry)
    there = tuple(jax.device_put(x, NamedSharding(mesh, P(None, "x"))) for x in qkv)
    token = jax.jit(_token)
    found = token(sharded, there)
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    layers, stream = found[0]
    for x in jax.tree.leaves((layers, stream.scores)):
        assert x.sharding.is_equivalent_to(place, x.ndim)
    program = token.lower(sharded, there).compile().as_text()
    assert not re.findall(
        "all-gather|all-to-all|collective-permute|all-reduce", program
    )


def test_an_empty_batch():
    data = jax.tree.map(jnp.asarray, _draw(0, 0, 20, 2))
    _, (outs, kept, _), _ = _decode(data, jnp.zeros(0, jnp.int32))
    assert outs.shape == (2, 3, 0, HEADS, DIM)
    assert kept.shape == (2, 3, 0, LENGTH)


def test_what_cannot_be_meant_is_refused():
    cache, stream = caches.init(1, 2, 4, 8, dtype=jnp.float32), caches.start(1, 9)
    q, k = jnp.zeros((1, 4, 8)), jnp.zeros((1, 2, 8))
    with pytest.raises(jp.PruningError, match="4 slots do not hold 2 sinks"):
        decode.step(q, k, k, cache, stream, sinks=2, recent=3)
    with pytest.raises(jp.PruningError, match="queries"):
        decode.step(q[:, :3], k, k, cache, stream)
    with pytest.raises(jp.PruningError, match="keys"):
        decode.step(q, q, q, cache, stream)
    with pytest.raises(jp.PruningError, match="0 slots"):
        caches.init(1, 2, 0, 8, dtype=jnp.float32)
    with pytest.raises(jp.PruningError, match="a prompt of 6 tokens"):
        caches.start(1, 5, scores=jnp.zeros((1, 6)))
