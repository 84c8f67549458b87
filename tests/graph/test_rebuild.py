"""Rebuilt modules: the class's own code on small arrays, with the new widths."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import graph as jg

nnx = pytest.importorskip("flax.nnx")

pytestmark = pytest.mark.others_code

X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def forward(module, x):
    return module(x)


def images(dtype=np.float32):
    return np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(dtype)


# A method of modules before Flax 0.12.
iter_modules = getattr(nnx, "iter_modules", None) or nnx.Module.iter_modules


def attributes(module):
    """Path -> attributes that are numbers or tuples, of all modules inside."""
    return {
        jp.tree.leaf_path(tuple(map(jax.tree_util.DictKey, path))): {
            name: value
            for name, value in vars(node).items()
            if isinstance(value, int | tuple)
        }
        for path, node in iter_modules(module)
    }


class Convolutions(nnx.Module):
    """Each width once as an input and once as an output of one kernel."""

    def __init__(self, first, second, dtype=jnp.float32):
        kinds = {"rngs": nnx.Rngs(0), "dtype": dtype, "param_dtype": dtype}
        self.stem = nnx.Conv(3, first, (3, 3), **kinds)
        self.norm = nnx.BatchNorm(first, use_running_average=True, **kinds)
        self.mix = nnx.Conv(first, second, (3, 3), **kinds)
        self.depthwise = nnx.Conv(
            second, second, (3, 3), feature_group_count=second, **kinds
        )
        self.scale = nnx.LayerNorm(second, **kinds)
        self.out = nnx.Linear(second, 5, **kinds)

    def __call__(self, x):
        x = self.mix(nnx.relu(self.norm(self.stem(x))))
        return self.out(self.scale(self.depthwise(nnx.relu(x))).mean(axis=(1, 2)))


def test_an_nnx_module_has_the_attributes_of_a_narrow_one():
    with X64(True):
        net, x = Convolutions(8, 8, jnp.float64), images(float)
        graph = jg.trace(forward, net, x)
        keep = {}
        for name, group in graph.groups.items():
            first = any(m.path == "stem/kernel" for m in group.members)
            keep[name] = np.arange(group.size) < (5 if first else 4)
        small = jg.rebuild(graph, net, keep=keep)
        assert attributes(small) == attributes(Convolutions(5, 4))
        assert attributes(net) == attributes(Convolutions(8, 8))
        wanted = jg.without_entries(graph, keep)(net, x)
        np.testing.assert_allclose(small(x), wanted, rtol=1e-6)  # Flax's own float32
        found = jg.rebuild(graph, net, jg.make_plan(graph, keep))(x)
        np.testing.assert_array_equal(found, small(x))


class Attention(nnx.Module):
    def __init__(self, width, heads, size):
        self.stem = nnx.Linear(3, width, rngs=nnx.Rngs(0))
        self.attend = nnx.MultiHeadAttention(
            heads, width, heads * size, decode=False, rngs=nnx.Rngs(1)
        )
        self.out = nnx.Linear(width, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        x = self.stem(x)
        return self.out(x + self.attend(x))


def test_heads_and_the_stream_of_nnx_attention():
    """`in_features` and `num_heads` lie in the module around the arrays."""
    net, x = Attention(16, 4, 3), images()[0]
    graph = jg.trace(forward, net, x)
    kinds = {g.kind: name for name, g in graph.groups.items()}
    keep = {kinds["heads"]: [0, 2], kinds["hidden"]: range(10)}
    small = jg.rebuild(graph, net, keep=keep)
    small_fn, params = jg.shrink(graph, net, keep=keep)
    np.testing.assert_allclose(small(x), small_fn(params, x), 1e-4, 1e-5)
    found = vars(small.attend)
    assert (found["num_heads"], found["in_features"], found["out_features"]) == (
        (2, 10, 10)
    )
    assert small.attend.query.out_features == (2, 3)


def test_a_scale_that_the_small_function_keeps_is_an_error():
    """The module computes 1 / sqrt(d) of the new d: right if the function does so."""
    net, x = Attention(16, 2, 8), images()[0]
    keep = {f"attend/{name}/kernel[2]": range(4) for name in ("key", "value")}
    with pytest.raises(jp.PruningError, match=r'attention_scale is "keep"'):
        jg.rebuild(jg.trace(forward, net, x), net, keep=keep)
    options = jg.Options(attention_scale="rescale")
    graph = jg.trace(forward, net, x, options=options)
    small_fn, params = jg.shrink(graph, net, keep=keep)
    found = jg.rebuild(graph, net, keep=keep)(x)
    np.testing.assert_allclose(found, small_fn(params, x), 1e-4, 1e-5)


class Grouped(nnx.Module):
    def __init__(self, fixed=False):
        self.stem = nnx.Linear(3, 16, rngs=nnx.Rngs(0))
        self.norm = nnx.GroupNorm(16, num_groups=4, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(16, 2, rngs=nnx.Rngs(0))
        self.parts, self.fixed = 2, fixed

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        if self.fixed:  # the code says 8 where no attribute does
            x = x.reshape(*x.shape[:-1], self.parts, 8).reshape(*x.shape)
        return self.out(x)


def test_groups_of_a_normalization_follow_in_proportion():
    """Whole groups go, or channels of every group: only the numbers tell them apart."""
    net, x = Grouped(), images()
    graph = jg.trace(forward, net, x)
    for name, wanted in zip(graph.groups, [(2, 4), (4, 2)], strict=True):
        small = jg.rebuild(graph, net, keep={name: [1, 3]})
        assert (small.norm.num_groups, small.norm.group_size) == wanted
        small_fn, params = jg.shrink(graph, net, keep={name: [1, 3]})
        np.testing.assert_allclose(small(x), small_fn(params, x), 1e-4, 1e-5)


def test_an_attribute_in_the_way_is_named():
    net = Grouped(fixed=True)
    graph = jg.trace(forward, net, images())
    name = next(name for name, g in graph.groups.items() if g.size == 4)
    with pytest.raises(
        jp.PruningError, match=r"it raises TypeError.*num_groups = 4.*parts"
    ):
        jg.rebuild(graph, net, keep={name: [1, 3]})


class Mixed(eqx.Module):
    """Equinox: frozen dataclasses, with functions and numbers among the leaves."""

    conv: eqx.nn.Conv1d
    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP
    attend: eqx.nn.MultiheadAttention
    drop: eqx.nn.Dropout

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.conv = eqx.nn.Conv1d(3, 12, 3, key=keys[0])
        self.norm = eqx.nn.LayerNorm(12)
        self.mlp = eqx.nn.MLP(12, 6, 10, 1, key=keys[1])
        self.attend = eqx.nn.MultiheadAttention(3, 6, key=keys[2])
        self.drop = eqx.nn.Dropout(0.5, inference=True)

    def __call__(self, x):
        x = jax.nn.relu(self.conv(x)).T
        x = jax.vmap(self.mlp)(jax.vmap(self.norm)(x))
        return self.drop(self.attend(x, x, x))


def test_an_equinox_module():
    net, x = Mixed(), images()[0, 0].T
    arrays, static = eqx.partition(net, eqx.is_inexact_array)
    graph = jg.trace(lambda p, x: eqx.combine(p, static)(x), arrays, x)
    kinds = {g.kind: name for name, g in graph.groups.items()}
    keep = {
        "mlp/layers/0/weight[1]": range(9),
        "mlp/layers/1/weight[1]": range(7),
        kinds["heads"]: [0, 2],
    }
    small = jg.rebuild(graph, net, keep=keep, call=forward)
    assert isinstance(small, Mixed)
    assert (small.conv.out_channels, small.norm.shape) == (9, (9,))
    assert (small.mlp.in_size, small.mlp.width_size, small.mlp.out_size) == (9, 7, 6)
    assert small.mlp.layers[0].in_features == 9
    assert (small.attend.num_heads, small.attend.qk_size) == (2, 2)
    assert (net.attend.num_heads, net.conv.out_channels) == (3, 12)
    small_fn, params = jg.shrink(graph, arrays, keep=keep)
    np.testing.assert_allclose(small(x), small_fn(params, x), 1e-4, 1e-5)
    with pytest.raises(jp.PruningError, match="cannot be rebuilt"):
        jg.rebuild(graph, arrays, keep=keep)  # the function holds the old widths


def test_a_module_without_the_traced_leaves_is_an_error():
    net = Grouped()
    graph = jg.trace(forward, net, images())
    with pytest.raises(jp.PruningError, match=r"lacks the traced leaves .*norm/bias"):
        jg.rebuild(graph, net.stem, keep={})


class Chooses(eqx.Module):
    """Masked logits, and the number of the best; `width` is used in one of two ways."""

    up: jax.Array
    down: jax.Array
    width: int = eqx.field(static=True)
    right: bool = eqx.field(static=True)

    def __call__(self, x):
        hidden = jax.nn.relu(x @ self.up).reshape(-1, self.width)
        logits = hidden @ self.down if self.right else -(hidden @ self.down)
        seen = jnp.arange(4) < 3
        return jnp.argmax(logits, axis=-1), jnp.where(seen, logits, -jnp.inf)


def test_positions_and_infinite_results_are_compared():
    rng = np.random.default_rng(0)
    up, down = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 8), (8, 4)))
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    right, wrong = (Chooses(up, down, 8, side) for side in (True, False))
    arrays = {"up": up, "down": down}

    def fn(p, x):
        return Chooses(p["up"], p["down"], p["up"].shape[1], True)(x)

    graph, keep = jg.trace(fn, arrays, x), {"up[1]": [0, 2, 3]}
    call = lambda module, x: module(x)  # noqa: E731
    small = jg.rebuild(graph, right, keep=keep, call=call)
    assert small.width == 3
    with pytest.raises(jp.PruningError, match="computes something else"):
        jg.rebuild(graph, wrong, keep=keep, call=call)
    best = jg.trace(lambda p, x: fn(p, x)[0], arrays, x)
    with pytest.raises(jp.PruningError, match="computes something else"):
        jg.rebuild(best, wrong, keep=keep, call=lambda module, x: module(x)[0])


class Counts(eqx.Module):
    """Two numbers that divide widths, of heads and of groups."""

    up: jax.Array
    mid: jax.Array
    out: jax.Array
    num_heads: int = eqx.field(static=True)
    num_groups: int = eqx.field(static=True)

    def __call__(self, x):
        h = (x @ self.up).reshape(x.shape[0], self.num_heads, 6)
        h = jnp.tanh(h).reshape(x.shape[0], -1) @ self.mid
        h = h.reshape(x.shape[0], self.num_groups, 3)
        return jnp.tanh(h).reshape(x.shape[0], -1) @ self.out


def test_two_numbers_follow_in_proportion():
    draw = lambda *s: jnp.asarray(np.random.default_rng(s).normal(size=s), jnp.float32)  # noqa: E731
    net = Counts(draw(5, 24), draw(24, 12), draw(12, 2), 4, 4)
    graph = jg.trace(lambda net, x: net(x), net, draw(6, 5))
    keep = {name: [0, 1] for name, group in graph.groups.items() if group.size == 4}
    assert len(keep) == 2
    small = jg.rebuild(graph, net, keep=keep)
    assert (small.num_heads, small.num_groups) == (2, 2)
