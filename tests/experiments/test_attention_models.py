"""Encoders and decoders of the studies, against float64 NumPy and published figures."""

import math
import os
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.encoder_oracle import bert64, gelu64, norm64, softmax64

from experiments.loops import decoding
from experiments.models import bert, decoder, encoder, stories, vit
from experiments.tasks import glue
from experiments.tasks.data import DataError
from jprune import attention as ja

pytestmark = pytest.mark.others_code
DATA = Path(os.environ.get("JPRUNE_DATA_DIR", "none"))
LENGTHS = np.asarray([9, 4, 7])
HEADS = 4


def drawn(init, **sizes):
    """Parameters of ordinary size, biases and scales included, without compiling."""
    shapes = jax.eval_shape(lambda key: init(key, **sizes), jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        size = 1 / math.sqrt(leaf.shape[0]) if leaf.ndim == 2 else 0.3
        one = float(getattr(path[-1], "key", None) == "scale")
        return jnp.asarray(one + rng.normal(size=leaf.shape, scale=size), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def params_of(depth=3, width=16):
    params = drawn(bert.init, vocabulary=40, length=12, width=width, depth=depth)
    head = np.random.default_rng(2).normal(size=(width, 3)).astype(np.float32)
    return {**params, "head": {"kernel": jnp.asarray(head), "bias": jnp.zeros(3)}}


def inputs_of(lengths=LENGTHS, width=9):
    rng = np.random.default_rng(3)
    valid = np.arange(width) < lengths[:, None]
    ids = np.where(valid, rng.integers(1, 40, valid.shape), 0).astype(np.int32)
    types = (np.arange(width) >= 3).astype(np.int32) * valid
    return jnp.asarray(ids), jnp.asarray(types, jnp.int32), jnp.asarray(valid)


def test_bert_is_that_of_float64_whatever_the_padding():
    params, (ids, types, valid) = params_of(), inputs_of()
    found = jax.jit(lambda p, *x: bert.encode(p, *x, heads=HEADS))(
        params, ids, types, valid
    )
    logits = bert.logits(params, found)
    for i, length in enumerate(LENGTHS):
        own = np.asarray(ids)[i, :length], np.asarray(types)[i, :length]
        x, expected = bert64(params, *own, HEADS)
        np.testing.assert_allclose(found.x[i, :length], x, atol=2e-4)
        np.testing.assert_allclose(logits[i], expected, atol=2e-4)
    assert found.counts.tokens.tolist() == [LENGTHS.tolist()] * 3


PRUNING = encoder.Pruning(
    np.asarray([1.0, 0.7, 0.5], np.float32),
    np.asarray([4, 3, 2], np.float32),
    np.asarray([1.0, 0.6, 0.6], np.float32),
)
PROGRESSIVE = encoder.Progressive(ja.Bits(6, 4, 4, 6), 0.3)


def squares(params, inputs, **options):
    """Something that all weights feel, and what the encoder did."""
    found = bert.encode(params, *inputs, heads=HEADS, **options)
    logits = bert.logits(params, found)
    return jnp.square(logits).sum(), (found, logits)


@pytest.fixture(scope="module")
def pruned():
    """Masked and moved together, with gradients."""

    def run(slots):
        of = jax.value_and_grad(
            lambda p, *x: squares(p, x, pruning=PRUNING, slots=slots), has_aux=True
        )
        return jax.jit(of)(params_of(), *inputs_of())

    return run(None), run(encoder.room(9, PRUNING.tokens))


def test_moving_survivors_together_changes_no_result(pruned):
    (masked, masked_grads), (moved, moved_grads) = pruned
    assert moved[1][0].x.shape[1] == 5 < masked[1][0].x.shape[1]
    np.testing.assert_allclose(masked[1][1], moved[1][1], atol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (masked_grads, moved_grads)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-3)
    counts = masked[1][0].counts, moved[1][0].counts
    for a, b in zip(*map(jax.tree.leaves, counts), strict=True):
        assert a.tolist() == b.tolist()
    assert (masked[1][0].alive == moved[1][0].alive).all()


def test_each_sentence_keeps_its_share_and_its_first_token(pruned):
    found = pruned[0][0][1][0]
    for layer, share in enumerate(PRUNING.tokens):
        expected = [math.ceil(round(float(share) * n, 4)) for n in LENGTHS]
        assert found.counts.after[layer].tolist() == expected
        assert found.alive[layer].sum(-1).tolist() == expected
    assert found.alive[:, :, 0].all()
    assert not (found.alive[1:] & ~found.alive[:-1]).any()  # none comes back
    assert found.counts.heads.tolist() == [[4] * 3, [3] * 3, [2] * 3]
    read = found.counts.fetched
    np.testing.assert_array_equal(read.keys, found.counts.tokens * found.counts.heads)
    assert (read.lower == 0).all()
    assert (read.values <= read.keys).all()


def test_padding_does_not_stretch_the_units_of_quantization():
    """A sentence alone is pruned and rounded as in a batch."""
    params, (ids, types, valid) = params_of(depth=2), inputs_of()
    pruning = jax.tree.map(lambda x: x[:2], PRUNING)
    run = jax.jit(
        lambda *x: squares(params, x, pruning=pruning, progressive=PROGRESSIVE)[1][0]
    )
    batch, length = run(ids, types, valid), int(LENGTHS[2])
    alone = run(ids[2:, :length], types[2:, :length], jnp.ones((1, length), bool))
    np.testing.assert_array_equal(alone.alive[:, 0], batch.alive[:, 2, :length])
    np.testing.assert_allclose(alone.x[0, 0], batch.x[2, 0], atol=1e-3)
    for a, b in zip(*map(jax.tree.leaves, (alone.counts, batch.counts)), strict=True):
        assert a[:, 0].tolist() == b[:, 2].tolist()
    assert (batch.counts.fetched.lower > 0).any()
    assert (batch.counts.unsure > 0).any()


def test_keeping_all_is_the_plain_encoder():
    params, (ids, types, valid) = params_of(depth=2), inputs_of()
    whole = encoder.Pruning(np.ones(2, np.float32), np.full(2, HEADS), np.ones(2))
    whole = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), whole)
    ours, plain = (
        jax.jit(lambda *x, w=w: squares(params, x, pruning=w)[1][0])(ids, types, valid)
        for w in (whole, None)
    )
    np.testing.assert_allclose(ours.x, plain.x, atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (ours.counts, plain.counts)), strict=True):
        assert a.tolist() == b.tolist()


def test_patches_are_squares_of_the_image():
    images = jnp.arange(2 * 4 * 6 * 2).reshape(2, 4, 6, 2)
    tiles = vit.cut(images, 2).reshape(2, 6, 2, 2, 2)
    for row in range(2):
        for column in range(3):
            square = images[:, 2 * row :][:, :2, 2 * column :][:, :, :2]
            assert (tiles[:, 3 * row + column] == square).all()
    with pytest.raises(ValueError, match="do not divide"):
        vit.init(jax.random.key(0), (5, 4, 1), patch=2, width=8, depth=1)


def test_a_class_token_without_patches_is_an_own_network():
    """With one token left after the first layer only what it saw there matters."""
    params = drawn(vit.init, image_shape=(4, 4, 1), patch=2, width=8, depth=2)
    images = jnp.asarray(np.random.default_rng(3).normal(size=(3, 4, 4, 1)), "float32")
    pruning = encoder.Pruning(*map(jnp.asarray, ([0.2, 0.2], [2.0, 2.0], [1.0, 1.0])))
    found = vit.encode(params, images, heads=2, pruning=pruning, slots=(1, 1))
    assert found.x.shape == (3, 1, 8)
    assert found.counts.tokens.tolist() == [[5] * 3, [1] * 3]
    # Attention to itself alone: its own value, whatever the query.
    layer = params["layers"][1]
    first = vit.encode(
        {**params, "layers": params["layers"][:1]}, images, heads=2, pruning=None
    ).x[:, 0]
    norm = lambda n, x: norm64(jax.tree.map(np.asarray, layer[n]), x, 1e-5)  # noqa: E731
    dense = lambda n, x: x @ np.asarray(layer[n]["kernel"]) + layer[n]["bias"]  # noqa: E731
    x = np.asarray(first, np.float64)
    x = x + dense("o", dense("v", norm("norm1", x)))
    x = x + dense("down", gelu64(dense("up", norm("norm2", x))))
    np.testing.assert_allclose(found.x[:, 0], x, atol=1e-5)


# Decoders.


def llama64(params, ids, heads, groups):
    """Llama of one text in float64, positions turned as complex numbers."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rms = lambda w, x: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w  # noqa: E731
    n, x = len(ids), p["embed"][ids]
    for layer in p["layers"]:
        y = rms(layer["norm1"], x)
        q, k, v = (y @ layer[name] for name in "qkv")
        dim = q.shape[1] // heads
        angles = np.arange(n)[:, None] / 10_000 ** (2 * np.arange(dim // 2) / dim)
        turn = np.exp(1j * angles)
        said = []
        for h in range(heads):
            g = h // (heads // groups)
            qh = q[:, h * dim : (h + 1) * dim]
            kh, vh = (z[:, g * dim : (g + 1) * dim] for z in (k, v))
            qh, kh = ((z[:, ::2] + 1j * z[:, 1::2]) * turn for z in (qh, kh))
            scores = (qh @ kh.conj().T).real / math.sqrt(dim)
            scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
            said.append(softmax64(scores) @ vh)
        x = x + np.hstack(said) @ layer["o"]
        y = rms(layer["norm2"], x)
        gate = y @ layer["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["up"])) @ layer["down"]
    return rms(p["norm"], x) @ p["embed"].T


def checkpoint(rng, width=8, hidden=12, depth=2, heads=4, groups=2, size=30, length=16):
    """A file as llama2.c writes its version 0, and what stands in it."""
    dim = width // heads
    shapes = [(size, width), (depth, width), (depth, width, width)]
    shapes += 2 * [(depth, groups * dim, width)] + [(depth, width, width)]
    shapes += [(depth, width), (depth, hidden, width), (depth, width, hidden)]
    shapes += [(depth, hidden, width), (width,), (length, dim // 2), (length, dim // 2)]
    arrays = [rng.normal(size=s, scale=0.5).astype("<f4") for s in shapes]
    header = struct.pack("<7i", width, hidden, depth, heads, groups, size, length)
    return header + b"".join(a.tobytes() for a in arrays), arrays


def test_a_llama_from_its_file_is_that_of_float64():
    content, arrays = checkpoint(np.random.default_rng(0))
    params, heads, groups, size = stories.parse_weights(content)
    assert (heads, groups, size) == (4, 2, 30)
    np.testing.assert_array_equal(params["layers"][1]["k"], arrays[3][1].T)
    np.testing.assert_array_equal(params["layers"][0]["down"], arrays[8][0].T)
    np.testing.assert_array_equal(params["layers"][0]["up"], arrays[9][0].T)
    ids = np.asarray([3, 7, 7, 1, 29, 0, 12])
    model = decoder.llama(heads, groups)
    found = decoder.forward(model, params, jnp.asarray(ids))
    np.testing.assert_allclose(found, llama64(params, ids, 4, 2), atol=1e-4)
    with pytest.raises(ValueError, match="numbers, but the header says"):
        stories.parse_weights(content[:-4])


def gpt_of():
    sizes = {"vocabulary": 20, "length": 16, "width": 16, "depth": 2}
    return decoder.gpt(4), drawn(decoder.init_gpt, **sizes)


def test_a_gpt_sees_no_later_word():
    model, params = gpt_of()
    ids = jax.random.randint(jax.random.key(1), (2, 12), 0, 20)
    found = decoder.forward(model, params, ids)
    other = decoder.forward(model, params, ids.at[:, 7].add(1) % 20)
    np.testing.assert_allclose(found[:, :7], other[:, :7], atol=1e-5)
    assert (jnp.abs(found[:, 7:] - other[:, 7:]).max(-1) > 1e-3).all()


@pytest.mark.parametrize("kind", ["llama", "gpt"])
def test_decoding_with_whole_caches_is_the_full_forward(kind):
    if kind == "gpt":
        (model, params), groups, size = gpt_of(), 4, 20
    else:
        params, heads, groups, size = stories.parse_weights(
            checkpoint(np.random.default_rng(1))[0]
        )
        model = decoder.llama(heads, groups)
    ids = jax.random.randint(jax.random.key(2), (3, 13), 0, size)
    kept = decoding.Kept(jnp.full(2, float(groups)), 1.0)
    plan = decoding.Plan((13, 13), recent=1)
    losses, read = decoding.score(model, params, ids, 5, kept, plan)
    logs = jax.nn.log_softmax(decoder.forward(model, params, ids))
    expected = -jnp.take_along_axis(logs[:, 5:-1], ids[:, 6:, None], axis=2)[..., 0]
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    # The keys of both layers: prompt, the tokens since, and the token itself.
    assert read.keys[:, 0].tolist() == [2 * groups * n for n in range(6, 13)]
    assert (read.values == read.keys).all()
    assert (read.lower == 0).all()


def test_a_pruned_cache_reads_its_budget():
    model, params = gpt_of()
    ids = jax.random.randint(jax.random.key(3), (2, 13), 0, 20)
    kept = decoding.Kept(jnp.asarray([4.0, 3.0]), 0.5, 1.1)
    plan = decoding.Plan((4, 3), ja.Bits(8, 4, 4, 8), sinks=1, recent=1)
    losses, read = decoding.score(model, params, ids, 6, kept, plan)
    assert jnp.isfinite(losses).all()
    assert (read.keys == 4 * 4 + 3 * 3).all()
    assert (read.lower == read.keys).all()  # no probability reaches 1.1
    assert (read.unsure == read.rows).all()
    assert (read.rows == 4 + 3).all()
    assert (read.values == 4 * 2 + 3 * 1).all()
    assert (read.products == 2 * read.keys + read.values).all()


def test_stories_are_drawn_from_the_model():
    """With one word far more likely than all others, it is what is told."""
    model, params = gpt_of()
    params = {**params, "embed": params["embed"].at[5].set(0)}
    params["norm"]["bias"] = 50 * jnp.ones(16)
    params["embed"] = params["embed"].at[9].set(1.0)
    draw = lambda key: decoding.generate(model, params, jnp.zeros(2, jnp.int32), 6, key)  # noqa: E731
    told = draw(jax.random.key(0))
    assert told.tolist() == [[0] + [9] * 5] * 2


def tokenizer_file(pieces):
    body = b"".join(
        struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces
    )
    return struct.pack("<i", max(len(p) for p, _ in pieces)) + body


def test_pieces_are_merged_by_score():
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    pieces += [(f"<0x{i:02X}>".encode(), 0.0) for i in range(256)]
    letters = [(c.encode(), -9.0) for c in " abc"]
    pieces += [*letters, (b"ab", -2.0), (b"bc", -1.0), (b"abc", -3.0), (b" a", -4.0)]
    words = stories.parse_vocabulary(tokenizer_file(pieces), len(pieces))
    spell = lambda text: [words.pieces[i] for i in words.encode(text)]  # noqa: E731
    # bc is dearer than ab, and abc dearer than " a".
    assert spell("abc") == [b" ", b"abc"]
    assert spell("acb") == [b" a", b"c", b"b"]
    for text in ("abc", "a b", "zürich", ""):
        assert words.decode([stories.BEGIN, *words.encode(text)]) == text
    with pytest.raises((ValueError, struct.error)):
        stories.parse_vocabulary(tokenizer_file(pieces)[:-1], len(pieces))


GREEDY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside "
    "in the park. One day, she saw a big, red ball."
)  # as llama2.c documents it


@pytest.mark.skipif(not (DATA / "stories260K").is_dir(), reason="needs JPRUNE_DATA_DIR")
def test_the_published_llama_tells_its_documented_story():
    model, params, words = stories.load(DATA)
    assert sum(x.size for x in jax.tree.leaves(params)) == 260_032
    step = jax.jit(lambda ids: decoder.forward(model, params, ids).argmax(-1))
    ids = np.zeros(64, np.int32)
    ids[0] = stories.BEGIN
    for i in range(63):
        ids[i + 1] = step(jnp.asarray(ids))[i]
    assert words.decode(ids).startswith(GREEDY)


def test_what_is_missing_is_said():
    for load in (stories.load, lambda path: glue.load("SST-2", path)):
        with pytest.raises(DataError, match="data directory"):
            load(None)
