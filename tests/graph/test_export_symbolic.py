"""Shrunk functions exported with symbolic dimensions, in this and another process.

Each model is written so that its own code, on the small arrays, computes what the
shrunk function has to: that is what the exported one is compared with.
"""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import jprune as jp
from jprune import graph as jg
from jprune.graph._engine import dims
from jprune.graph._engine.rules.shapes import regroup

# The models are written as those of users are, who let ranks be promoted.
pytestmark = pytest.mark.others_code

RNG = np.random.default_rng(0)
IMAGES = ("NHWC", "HWIO", "NHWC")


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / 2, jnp.float32)


def mlp(p, x):
    return jax.nn.gelu(x @ p["in"] + p["bias"]) @ p["out"]


def layer_norm(x, scale):
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-3) * scale


def normed(p, x):
    return layer_norm(x @ p["in"], p["bias"]) @ p["out"]


def convolve(x, kernel, strides=(1, 1), padding="SAME"):
    spec = {"dimension_numbers": IMAGES}
    return lax.conv_general_dilated(x, kernel, strides, padding, **spec)


def cnn(p, x):
    h = convolve(x, p["stem"])
    h = (h - p["mean"]) * lax.rsqrt(jnp.square(p["var"]) + 1e-3) * p["scale"]
    h = lax.reduce_window(
        jax.nn.relu(h), -jnp.inf, lax.max, *[(1, 2, 2, 1)] * 2, "SAME"
    )
    h = jax.nn.relu(convolve(h, p["conv"]) + h)
    return h.mean((1, 2)) @ p["out"]


def group_normed(p, x):
    h = convolve(x, p["stem"])
    grouped = h.reshape(*h.shape[:3], 2, -1)
    over = (1, 2, 4)
    grouped = grouped - grouped.mean(over, keepdims=True)
    grouped = grouped / jnp.sqrt(grouped.var(over, keepdims=True) + 1e-3)
    return jax.nn.relu(grouped.reshape(h.shape) * p["scale"]).mean((1, 2)) @ p["out"]


def attend(p, x, mask=True):
    heads = (*x.shape[:2], 4, -1)
    q, k, v = ((x @ p[name]).reshape(heads) for name in "qkv")
    logits = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q, k) * 0.5, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)
    return mixed.reshape(*x.shape[:2], -1) @ p["o"]


def block(p, x, mask=True):
    x = x + attend(p, layer_norm(x, p["norm"]), mask)
    return x + jax.nn.gelu(x @ p["up"]) @ p["down"]


def vit(p, x):
    x = convolve(x, p["patch"], (4, 4), "VALID")
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    token = jnp.broadcast_to(p["token"], (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([token, x], axis=1) + p["places"]
    return layer_norm(block(p["block"], x), p["norm"])[:, 0] @ p["out"]


def causal(count):
    return jnp.arange(count)[:, None] >= jnp.arange(count)


def decoder(p, tokens):
    count = tokens.shape[1]
    x = p["embed"][tokens] + p["places"][:count]
    return layer_norm(block(p["block"], x, causal(count)), p["norm"]) @ p["embed"].T


def stacked(p, x):
    mask = causal(x.shape[1])
    x = lax.scan(lambda x, q: (block(q, x, mask), None), x @ p["in"], p["layers"])[0]
    return layer_norm(x, p["norm"]) @ p["out"]


def recurrent(p, x):
    def turn(h, x):
        h = jnp.tanh(x @ p["in"] + h @ p["again"])
        return h, h

    start = jnp.zeros((x.shape[0], p["again"].shape[0]))
    return lax.scan(turn, start, jnp.moveaxis(x, 1, 0))[1] @ p["out"]


def cached(p, x, keys, values, at):
    def written(cache, name):
        new = (x @ p[name]).reshape(x.shape[0], 1, *cache.shape[2:])
        return lax.dynamic_update_slice(cache, new, (0, at, 0, 0))

    keys, values = written(keys, "k"), written(values, "v")
    q = (x @ p["q"]).reshape(x.shape[0], *keys.shape[2:])
    logits = jnp.einsum("bhd,bkhd->bhk", q, keys)
    logits = jnp.where(jnp.arange(keys.shape[1]) <= at, logits, -1e9)
    mixed = jnp.einsum("bhk,bkhd->bhd", jax.nn.softmax(logits), values)
    flat = mixed.reshape(x.shape[0], -1)
    return jax.nn.relu(flat @ p["up"]) @ p["out"], keys, values


def flattened(p, x):
    """Hidden entries in one axis with symbolic ones; a mean over both kinds."""
    batch, count, _ = x.shape
    h = jax.nn.relu(x @ p["in"]).reshape(-1)
    h = h + jax.nn.relu(x.reshape(batch * count, -1) @ p["other"]).reshape(-1)
    h = h.reshape(batch, count, -1)
    h = h - h.mean((1, 2), keepdims=True)
    h = h / (jnp.sqrt(jnp.square(h).sum((1, 2)) / (count * h.shape[-1])))[:, None, None]
    return h @ p["out"]


def prefixed(p, x):
    """A prefix that loses entries, and causal attention over it and the tokens."""
    prefix = jnp.broadcast_to(p["prefix"], (x.shape[0], *p["prefix"].shape))
    x = jnp.concatenate([prefix, x], axis=1)
    mask = causal(x.shape[1])
    logits = jnp.where(mask, jnp.einsum("bqd,bkd->bqk", x @ p["q"], x), -1e9)
    return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(logits), x @ p["v"]).mean(1)


def last(p, x, cut=np.s_[:]):
    """Attention over a prefix and tokens, of which it returns the tokens."""
    prefix = jnp.broadcast_to(p["prefix"], (x.shape[0], *p["prefix"].shape))
    x = jnp.concatenate([prefix, x], axis=1)
    weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x @ p["q"], x))
    mixed = jnp.einsum("bqk,bkd->bqd", weights, x @ p["v"])
    return mixed[:, p["prefix"].shape[0] :, cut] + mixed[:, :1, cut]


def tabled(p, t):
    """One-hot tokens and places, and sums over t of what was scaled."""
    places = jax.nn.one_hot(jnp.arange(t.shape[1]), 12)
    x = jax.nn.one_hot(t, 10) @ p["embed"] + (places @ p["places"])[None]
    h = jax.nn.relu(x @ p["in"])
    weights = jax.nn.softmax(h.sum(-1)) / 3
    pooled = jnp.einsum("bt,bth->bh", weights, h)
    return (pooled + (h / t.shape[1]).sum(1)) @ p["out"]


def of_block(*layers):
    shapes = dict.fromkeys("qkvo", (16, 16))
    shapes |= {"norm": (16,), "up": (16, 24), "down": (24, 16)}
    return {name: normal(*layers, *shape) for name, shape in shapes.items()}


DENSE = {"in": normal(3, 8), "bias": normal(8), "out": normal(8, 2)}
CNN = {"stem": normal(3, 3, 3, 8), "conv": normal(3, 3, 8, 8), "out": normal(8, 2)}
CNN |= {name: normal(8) for name in ("mean", "var", "scale")}
GROUPED = {name: CNN[name] for name in ("stem", "scale", "out")}
ENDS = {"norm": normal(16), "out": normal(16, 3)}
VIT = {"patch": normal(4, 4, 3, 16), "token": normal(1, 1, 16), "block": of_block()}
VIT |= {"places": normal(1, 5, 16), **ENDS}
DECODER = {"embed": normal(10, 16), "places": normal(12, 16), "norm": normal(16)}
DECODER |= {"block": of_block()}
STACKED = {"in": normal(5, 16), "layers": of_block(3), **ENDS}
RECURRENT = {"in": normal(5, 8), "again": normal(8, 8), "out": normal(8, 3)}
CACHED = {name: normal(5, 12) for name in "qkv"}
CACHED |= {"up": normal(12, 8), "out": normal(8, 2)}
FLATTENED = {"in": normal(5, 8), "other": normal(5, 8), "out": normal(8, 2)}
PREFIXED = {"prefix": normal(4, 5), "q": normal(5, 5), "v": normal(5, 3)}
TABLES = {"embed": normal(10, 5), "places": normal(12, 5), "in": normal(5, 8)}
TABLES |= {"out": normal(8, 2)}
BATCHES = [{"b": 1}, {"b": 3}, {"b": 8}]
LENGTHS = [{"b": 1, "t": 4}, {"b": 3, "t": 1}, {"b": 8, "t": 12}]
CACHE = ("b", "t", 4, 3)

# name -> function, params, shape and dtype of each input, sizes, groups that stay.
CASES = {
    "mlp": (mlp, DENSE, [("b", 3)], BATCHES, ()),
    "layer norm": (normed, DENSE, [("b", 3)], BATCHES, ()),
    "cnn": (cnn, CNN, [("b", 8, 8, 3)], BATCHES, ()),
    "group norm": (group_normed, GROUPED, [("b", "t", 6, 3)], LENGTHS, ("stem[3]",)),
    "vit": (vit, VIT, [("b", 8, 8, 3)], BATCHES, ("block/k[1]",)),
    "decoder": (decoder, DECODER, [("b", "t", int)], LENGTHS, ("block/k[1]",)),
    "scan": (stacked, STACKED, [("b", "t", 5)], LENGTHS, ("layers/k[2]",)),
    "recurrent": (recurrent, RECURRENT, [("b", "t", 5)], LENGTHS, ()),
    "cache": (cached, CACHED, [("b", 5), CACHE, CACHE, (int,)], LENGTHS, ()),
    "flattened": (flattened, FLATTENED, [("b", "t", 5)], LENGTHS, ()),
    "prefix": (prefixed, PREFIXED, [("b", "t", 5)], LENGTHS, ()),
    "last": (last, PREFIXED, [("b", "t", 5)], LENGTHS, ()),
    "tables": (tabled, TABLES, [("b", "t", int)], LENGTHS, ("embed[0]", "places[0]")),
}


def draw(shape, sizes):
    """An input at given sizes: integers below 2 if its shape ends with int."""
    found = tuple(sizes.get(n, n) for n in shape if n is not int)
    if int in shape:
        return jnp.asarray(RNG.integers(0, 2, size=found), jnp.int32)
    return normal(*found)


def struct(shape, symbols):
    found = tuple(symbols.get(n, n) for n in shape if n is not int)
    return jax.ShapeDtypeStruct(found, jnp.int32 if int in shape else jnp.float32)


def shrunk(name):
    """The shrunk function of a case: half of the entries of each group are left."""
    fn, params, shapes, _, whole = CASES[name]
    inputs = [draw(shape, {"b": 2, "t": 6}) for shape in shapes]
    graph = jg.trace(fn, params, *inputs)
    assert set(whole) <= set(graph.groups)
    keep = {n: range(0, g.size, 2) for n, g in graph.groups.items() if n not in whole}
    assert keep
    return jg.shrink(graph, params, keep=keep)


def exported(name, small, params, bound=False):
    shapes, sizes = CASES[name][2:4]
    names = tuple(sizes[0])
    limit = ("t <= 12",) if "t" in names else ()
    each = export.symbolic_shape(", ".join(names), constraints=limit)
    structs = [struct(s, dict(zip(names, each, strict=True))) for s in shapes]
    platforms = ("cpu", "cuda", "tpu")
    if bound:
        run = jax.jit(lambda *inputs: small(params, *inputs))
        return export.export(run, platforms=platforms)(*structs)
    return export.export(jax.jit(small), platforms=platforms)(params, *structs)


def near(found, expected):
    each = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for x, y in each:
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_exported_function_equals_the_models_code_on_small_arrays(name):
    fn, params, shapes, sizes, _ = CASES[name]
    small, p = shrunk(name)
    assert jax.tree.map(jnp.shape, p) != jax.tree.map(jnp.shape, params)
    made = exported(name, small, p)
    for each in sizes:
        inputs = [draw(shape, each) for shape in shapes]
        near(made.call(p, *inputs), jax.jit(fn)(p, *inputs))


OTHER = """
import sys

import jax
import numpy as np
from jax import export

folder = sys.argv[1]
for name in sys.argv[2:]:
    made = export.deserialize(bytearray(open(f"{folder}/{name}", "rb").read()))
    given = np.load(f"{folder}/{name}.npz")
    found = {at: made.call(given[at]) for at in given.files}
    np.savez(f"{folder}/{name}-found.npz", **found)
assert "jprune" not in sys.modules
"""


def test_another_process_runs_what_was_serialized(tmp_path):
    """It has neither jprune nor the model's code; the weights are constants."""
    inputs, names = {}, ("vit", "decoder")
    smalls = {name: shrunk(name) for name in names}
    for name, (small, p) in smalls.items():
        made = exported(name, small, p, bound=True)
        (tmp_path / name).write_bytes(made.serialize())
        (shape,), sizes = CASES[name][2:4]
        inputs[name] = {str(i): draw(shape, each) for i, each in enumerate(sizes)}
        np.savez(tmp_path / f"{name}.npz", **inputs[name])
    subprocess.run([sys.executable, "-c", OTHER, tmp_path, *names], check=True)
    for name, (small, p) in smalls.items():
        found = np.load(tmp_path / f"{name}-found.npz")
        for at, x in inputs[name].items():
            near(found[at], small(p, x))


def test_symbols_of_one_name_may_come_from_two_scopes():
    small, p = shrunk("prefix")
    x = draw(("b", "t", 5), {"b": 2, "t": 3})
    first, second = (exported("prefix", small, p) for _ in range(2))
    near(first.call(p, x), prefixed(p, x))
    near(second.call(p, x), prefixed(p, x))


def test_what_only_symbols_cut_differently_is_named():
    """Here JAX gathers at two computed positions, where known sizes are a slice."""
    last_of_two = functools.partial(last, cut=np.s_[1:])
    graph = jg.trace(last_of_two, PREFIXED, normal(2, 6, 5))
    small, p = jg.shrink(graph, PREFIXED, keep={"prefix[0]": [0, 2]})
    x = normal(2, 3, 5)
    assert small(p, x).shape == (2, 3, 2)
    with pytest.raises(jp.PruningError, match=r"of prefix\[0\].*computed position"):
        exported("prefix", small, p)


# The algebra of dims, with sizes whose order is not known.


def test_a_reshape_matches_the_runs_that_have_the_same_count():
    b, t = export.symbolic_shape("b, t")
    axes = [dims.leaf(n) for n in (b, t, 8, 4, 1, 3)]
    found = regroup(axes, (b * t, 32, 3, 1))
    assert [d.size for d in found] == [b * t, 32, 3, 1]
    assert list(dims.leaves_of(found[0])) == axes[:2]
    assert list(dims.leaves_of(found[1])) == axes[2:4]
    assert found[2] is axes[5]


def test_a_product_of_symbols_and_numbers_is_factored():
    b, t = export.symbolic_shape("b, t")
    axes = [dims.leaf(n) for n in (b, t, 12)]
    rest, heads, each = dims.factor(dims.product(axes), [b * t, 3, 4])
    assert list(dims.leaves_of(rest)) == axes[:2]
    assert dims.factors_of(axes[2]) == [heads, each]
    assert not any(dims.why_fixed(d) for d in axes)


def test_pieces_in_an_unknown_order_are_frozen():
    (t,) = export.symbolic_shape("t")
    table, tokens = dims.leaf(4), dims.leaf(t)
    both = dims.concatenation([table, tokens])
    assert both.size == t + 4
    assert dims.split(both, [4, t]) == [table, tokens]
    assert not dims.why_fixed(table)
    assert [d.size for d in dims.split(both, [t, 4])] == [t, 4]
    assert "used both as 4 + t and as t + 4" in dims.why_fixed(table)


def test_a_known_size_in_symbolic_parts_is_frozen():
    """So leaves of params have known sizes, and a plan can list their entries."""
    (t,) = export.symbolic_shape("t", constraints=["t <= 12"])
    places = dims.leaf(12)
    assert [d.size for d in dims.split(places, [t, 12 - t])] == [t, 12 - t]
    assert dims.why_fixed(places)
    table = dims.leaf(4)
    padded = dims.concatenation([table, dims.leaf(t), dims.leaf(12 - t)])
    assert padded.form == "leaf"
    assert padded.size == 16
    assert dims.why_fixed(padded)
    assert dims.why_fixed(table)
