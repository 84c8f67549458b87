"""Decoding with a pruned cache against the paper's algorithm and against all keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support import decode_oracle
from support.decode_cases import (
    BUDGETS,
    DIM,
    HEADS,
    KV_HEADS,
    begin,
    decoded,
    draw,
    members,
    token,
)

from experiments.models import decoder as decoders
from jprune import attention as ja
from jprune.attention import cache as caches
from jprune.attention import decode


@pytest.mark.parametrize(
    ("protected", "batch"), [({}, 96), ({"sinks": 2, "recent": 3}, 32)]
)
def test_decoding_is_that_of_the_paper(protected, batch):
    """Prompts of 0 to 20 tokens: outputs, kept sets, evictions, importance."""
    prompt, steps, seed = 20, 16, batch
    data = draw(seed, batch, prompt, steps)
    lengths = np.random.default_rng(seed).integers(0, prompt + 1, batch)
    run = jax.jit(lambda d, n: decoded(d, n, **protected))
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
    data = draw(7, 32, 20, 20)
    lengths = jnp.full(32, 20, jnp.int32)
    _, (_, kept, _), first = jax.jit(lambda d: decoded(d, lengths, **protected))(data)
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

    def one(carry, ids):
        layers, stream = list(carry[0]), carry[1]
        at = stream.position[:1]
        x, kept = model.embed(params, ids[:, None], at), []
        for i, layer in enumerate(params["layers"]):
            q, k, v = (y[:, :, 0] for y in model.qkv(layer, x, at))
            out, layers[i], stream = decode.step(q, k, v, layers[i], stream)
            x = model.finish(layer, x, out[:, :, None])
            kept.append(members(layers[i], stream))
        logits = model.logits(params, x)[:, 0]
        return (tuple(layers), caches.advance(stream)), (logits, jnp.stack(kept))

    return lax.scan(one, (layers, stream), ids[:, prompt:].T)[1]


def test_with_room_for_all_it_is_plain_attention():
    """Against `jax.nn.dot_product_attention`, and its gradients with it."""
    batch, prompt, steps = 3, 5, 6
    data = jax.tree.map(jnp.asarray, draw(3, batch, prompt, steps, layers=1))
    lengths = jnp.full(batch, prompt, jnp.int32)
    total = prompt + steps

    def pruned(data):
        return decoded(data, lengths, (total,), total)[1][0][:, 0]

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
    data = jax.tree.map(jnp.asarray, draw(5, 2, 12, 3))
    lengths = jnp.full(2, 12, jnp.int32)

    @jax.jit
    def loss(data):
        _, (outs, kept, _), first = decoded(data, lengths, (8, 6, 5))
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
    data = draw(11, 4, 12, 6)
    lengths = jnp.full(4, 12, jnp.int32)
    carry = begin(jax.tree.map(jnp.asarray, data), lengths, (13,) * 3)
    qkv = [jnp.asarray(data[n]) for n in "qkv"]
    carry, _ = token(carry, [x[:, :, 0] for x in qkv])
    small = tuple(
        caches.compact(c, carry[1], n) for c, n in zip(carry[0], BUDGETS, strict=True)
    )
    stream = carry[1]
    _, (outs, kept, _) = token((small, stream), [x[:, :, 1] for x in qkv])
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
    assert large.keys.shape == (4 * KV_HEADS, DIM, 20)
    np.testing.assert_array_equal(members(large, stream), members(small[2], stream))


def test_prompts_that_are_already_pruned():
    """Rows with their positions, those of padding wherever they stand."""
    rng = np.random.default_rng(0)
    keys = jnp.asarray(rng.standard_normal((1, 1, 5, 4)), jnp.float32)
    stream = caches.start(1, 9, scores=jnp.array([[5.0, 1, 4, 2, 3, 6]]))
    positions = jnp.array([[8, 0, 3, 8, 4]], jnp.int32)  # 8 is not decoded yet
    cache = caches.fill(keys, 2 * keys, stream, 4, positions=positions)
    assert cache.used.tolist() == [3]
    assert cache.positions[0, :3].tolist() == [0, 3, 4]
    np.testing.assert_array_equal(cache.keys[0, :, :3].T, keys[0, 0, [1, 2, 4]])
    np.testing.assert_array_equal(cache.values[0, :3], 2 * keys[0, 0, [1, 2, 4]])
    cache = caches.fill(keys, keys, stream, 2, positions=positions)
    assert cache.positions.tolist() == [[0, 4]]
