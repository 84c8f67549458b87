"""Paths, rules and predicates on the real layers of three frameworks."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jprune as jp
from jprune import tree

PATHS = ["inner/bias", "inner/kernel", "outer/bias", "outer/kernel"]


def _dict():
    layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    return {"inner": layer, "outer": layer}


def _linen(kernel_init=None):
    init = kernel_init or nn.initializers.ones

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(2, name="inner", kernel_init=init)(x)
            return nn.Dense(3, name="outer", kernel_init=init)(x)

    return Net().init(jax.random.key(0), jnp.ones((1, 3)))["params"]


def _nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.Linear(3, 2, rngs=rngs)
            self.outer = nnx.Linear(2, 3, rngs=rngs)

    return nnx.state(Net(nnx.Rngs(0)), nnx.Param)


def _equinox():
    class Layer(eqx.Module):
        bias: jax.Array
        kernel: jax.Array

    class Net(eqx.Module):
        inner: Layer
        outer: Layer

    return Net(*[Layer(jnp.ones(2), jnp.ones((3, 2))) for _ in range(2)])


@pytest.mark.others_code
@pytest.mark.parametrize("make", [_dict, _linen, _nnx, _equinox])
def test_paths_are_the_same_everywhere(make):
    params = make()
    assert tree.leaf_paths(params) == PATHS
    seen = []
    doubled = tree.map_with_path(lambda p, w: seen.append(p) or 2 * w, params)
    assert seen == PATHS
    assert jax.tree.structure(doubled) == jax.tree.structure(params)
    chosen = tree.flags(jp.is_kernel, params)
    assert jax.tree.leaves(chosen) == [False, True, False, True]
    hidden = tree.only(chosen, params)
    assert len(jax.tree.leaves(hidden)) == 2
    assert tree.leaf_paths(hidden) == ["inner/kernel", "outer/kernel"]
    assert tree.only(chosen, None) is None


@pytest.mark.others_code
def test_boxes_do_not_show():
    boxed = _linen(nn.with_partitioning(nn.initializers.ones, (None, "model")))
    assert isinstance(boxed["inner"]["kernel"], nn.Partitioned)
    assert tree.leaf_paths(boxed) == PATHS
    assert tree.leaf_paths(nnx.to_pure_dict(_nnx())) == PATHS
    # A layer that is called value is no box.
    attention = {"value": {"kernel": 1.0, "value": 2.0}}
    assert tree.leaf_paths(attention) == ["value/kernel", "value/value"]


def test_paths_of_lists_and_of_bare_arrays():
    assert tree.leaf_paths({"a": [1.0, (2.0, 3.0)]}) == ["a/0", "a/1/0", "a/1/1"]
    assert tree.leaf_paths(1.0) == [""]
    assert tree.leaf_paths({"a": None, "b": {}}) == []
    assert tree.leaf_paths(optax.EmptyState()) == []


class _Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Embed(8, 16, name="embed")(x)
        x = nn.LayerNorm(name="norm")(x)
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
        x = nn.Conv(4, (3,), name="conv")(x)
        x = nn.BatchNorm(use_running_average=False, name="batch_norm")(x)
        return nn.Dense(5, name="dense")(x)


class _Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(8, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.conv = nnx.Conv(16, 4, (3,), rngs=rngs)
        self.batch_norm = nnx.BatchNorm(4, rngs=rngs)
        self.dense = nnx.Linear(4, 5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)  # holds integers and a key


FLAX_KERNELS = {
    "attention/key/kernel": ((16, 2, 8), (0,), (1, 2)),
    "attention/out/kernel": ((2, 8, 16), (0, 1), (2,)),
    "attention/query/kernel": ((16, 2, 8), (0,), (1, 2)),
    "attention/value/kernel": ((16, 2, 8), (0,), (1, 2)),
    "conv/kernel": ((3, 16, 4), (1,), (2,)),
    "dense/kernel": ((4, 5), (0,), (1,)),
}


def _kernels(params):
    chosen = jax.tree.leaves(tree.flags(jp.is_kernel, params))
    found = {}
    for path, leaf, is_chosen in zip(
        tree.leaf_paths(params), jax.tree.leaves(params), chosen, strict=True
    ):
        if is_chosen:
            roles = jp.kernel_axes(path, leaf)
            found[path] = (leaf.shape, roles.input, roles.output)
    return found


@pytest.mark.others_code
def test_kernels_of_linen_layers():
    tokens = jnp.zeros((2, 6), jnp.int32)
    variables = jax.eval_shape(_Linen().init, jax.random.key(0), tokens)
    assert _kernels(variables["params"]) == FLAX_KERNELS
    everything = _kernels(variables)  # the statistics of the norm are no kernels
    assert everything == {f"params/{k}": v for k, v in FLAX_KERNELS.items()}


@pytest.mark.others_code
def test_kernels_of_nnx_layers():
    net = nnx.eval_shape(lambda: _Nnx(nnx.Rngs(0)))
    assert _kernels(nnx.state(net)) == FLAX_KERNELS
    assert _kernels(nnx.state(net, nnx.Param)) == FLAX_KERNELS


@pytest.mark.others_code
def test_kernels_of_equinox_layers():
    def layers(key):
        return {
            "embed": eqx.nn.Embedding(8, 16, key=key),
            "norm": eqx.nn.LayerNorm((16, 2)),
            "attention": eqx.nn.MultiheadAttention(2, 16, use_query_bias=True, key=key),
            "conv": eqx.nn.Conv2d(16, 4, 3, key=key),  # its bias has three axes
            "group_norm": eqx.nn.GroupNorm(2, 4),
            "dense": eqx.nn.Linear(4, 5, key=key),
        }

    net = eqx.filter_eval_shape(layers, jax.random.key(0))
    projections = ("key_proj", "output_proj", "query_proj", "value_proj")
    assert _kernels(eqx.filter(net, lambda x: hasattr(x, "dtype"))) == {
        "conv/weight": ((4, 16, 3, 3), (1,), (0,)),
        "dense/weight": ((5, 4), (1,), (0,)),
        **{f"attention/{p}/weight": ((16, 16), (1,), (0,)) for p in projections},
    }


@pytest.mark.parametrize(
    ("path", "shape", "dtype", "expected"),
    [
        ("kernel", (2, 2), "f4", True),
        ("patch_embed/kernel", (4, 4, 3, 8), "f4", True),  # a convolution
        ("w", (2, 2), "bfloat16", True),
        ("linear/w", (2, 2), "float8_e4m3fn", True),
        ("Norm_0/weight", (2, 2), "f4", False),
        ("wte", (50, 8), "f4", False),
        ("encoder/cls_token", (1, 1, 8), "f4", False),
        ("relative_position_bias", (9, 2), "f4", False),
        ("layer/b", (2, 2), "f4", False),
        ("lab/w", (2, 2), "f4", True),  # `b` is a whole name,
        ("block/w", (2, 2), "f4", True),
        ("rescale/w", (2, 2), "f4", True),  # and so is `scale`
        ("scale_0/w", (2, 2), "f4", True),
        ("kernel", (2,), "f4", False),
        ("kernel", (0, 2), "f4", False),
        ("kernel", (2, 2), "i4", False),
        ("kernel", (2, 2), "?", False),
        ("kernel", (2, 2), "c8", False),
    ],
)
def test_what_is_a_kernel(path, shape, dtype, expected):
    leaf = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    assert jp.is_kernel(path, leaf) is expected


def test_leaves_that_are_no_arrays_are_no_kernels():
    assert jp.is_float("x", 1.0)
    assert not jp.is_float("x", 1)
    assert not jp.is_float("x", jax.random.key(0))
    assert not jp.is_kernel("kernel", 1.0)


def test_axes_of_a_vector_have_no_roles():
    with pytest.raises(jp.PruningError, match=r"'norm/scale' has shape \(3,\)"):
        jp.kernel_axes("norm/scale", jnp.ones(3))
    assert jp.kernel_axes("kernel", jnp.ones((2, 3))) == ((0,), (1,))


def test_the_first_rule_that_matches_decides():
    paths = ["a/kernel", "b/kernel", "b/bias", "c/scale"]
    rules = [("b/.*", 1), (".*/kernel", 2), ("[^/]*/scale", 3)]
    assert tree.match_rules(rules, paths) == {
        "a/kernel": 2,
        "b/kernel": 1,
        "b/bias": 1,
        "c/scale": 3,
    }
    assert tree.match_rules([], paths) == {}
    # The whole path has to match.
    assert tree.match_rules([("b/bias", 0)], [*paths, "b/bias/x"]) == {"b/bias": 0}


@pytest.mark.parametrize(
    ("rules", "pattern"),
    [
        ([("kernel", 1)], "'kernel'"),  # matches a part only
        ([("a/kernal", 1), (".*", 2)], "'a/kernal'"),  # misspelt
        ([(".*", 1), ("a/kernel", 2)], "'a/kernel'"),  # shadowed
        ([("a/.*", 1), ("a/.*", 1), (".*", 1)], "'a/\\.\\*'"),  # twice
    ],
)
def test_a_rule_that_decides_nothing_is_refused(rules, pattern):
    message = rf"The rule {pattern} applies to no leaf.*Leaves: a/kernel, b/bias"
    with pytest.raises(jp.PruningError, match=message):
        tree.match_rules(rules, ["a/kernel", "b/bias"])


def test_labels_cover_all_leaves():
    params = _dict()
    labels = jp.label(params, [(".*/kernel", "sparse"), (".*", "dense")])
    assert jax.tree.leaves(labels) == ["dense", "sparse", "dense", "sparse"]
    assert labels.keys() == params.keys()
    pruner = optax.partition(
        {"all": jp.recipes.magnitude(0.5)}, lambda tree: jp.label(tree, [(".*", "all")])
    )
    weights = {"kernel": jnp.arange(8.0).reshape(2, 4)}
    with pytest.raises(jp.PruningError, match=r"got None.*zeros of the params"):
        jp.prune(weights, pruner)
    masks = jp.prune(weights, pruner, jax.tree.map(jnp.zeros_like, weights))[1]
    assert int(masks["kernel"].sum()) == 4
    with pytest.raises(jp.PruningError, match=r"leaves: inner/bias, outer/bias$"):
        jp.label(params, [(".*/kernel", "sparse")])


def test_long_lists_of_leaves_are_cut():
    params = {f"layer_{i:02}": jnp.ones(2) for i in range(30)}
    with pytest.raises(jp.PruningError, match=r"layer_19, and 10 more$"):
        jp.label(params, [])


def test_matching_and_excluding():
    params = {**_dict(), "table": jnp.arange(4), "head": {"kernel": jnp.ones((2, 2))}}

    def chosen(where):
        values = jax.tree.leaves(tree.flags(where, params))
        return {p for p, c in zip(tree.leaf_paths(params), values, strict=True) if c}

    kernels = {"inner/kernel", "outer/kernel", "head/kernel"}
    assert chosen(jp.is_kernel) == kernels
    assert chosen(jp.excluding("head/.*")) == kernels - {"head/kernel"}
    assert chosen(jp.matching(".*er/bias")) == {"inner/bias", "outer/bias"}
    assert chosen(jp.matching("inner/.*", "head/.*", among=jp.is_kernel)) == {
        "inner/kernel",
        "head/kernel",
    }
    every_float = {p for p in tree.leaf_paths(params) if p != "table"}
    assert chosen(jp.matching(".*")) == every_float
    assert chosen(lambda path, leaf: np.bool_(path == "table")) == {"table"}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (jp.matching("innre/.*", "inner/.*"), "pattern 'innre/.*' matches no leaf"),
        (jp.excluding("innre/.*"), "pattern 'innre/.*' matches no leaf"),
        (jp.matching("table"), r"selects nothing.*table int32\[4\]"),
        (lambda path, leaf: False, r"'<lambda>' selects nothing.*inner/bias float32"),
        (jp.excluding(".*/kernel"), "selects nothing"),
    ],
)
def test_a_predicate_that_selects_nothing_is_refused(where, message):
    params = {**_dict(), "table": jnp.arange(4)}
    with pytest.raises(jp.PruningError, match=message):
        tree.flags(where, params)
    with pytest.raises(jp.PruningError, match=message):
        jp.prune(params, jp.recipes.magnitude(0.5), where=where)


def test_two_leaves_of_one_path_are_refused():
    colliding = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(jp.PruningError, match="same path: a/b"):
        jp.leaf_paths(colliding)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pos_emb", False),
        ("posemb", False),
        ("cls", False),
        ("cls_token", False),
        ("token_mixer/weight", True),
        ("ensemble_member/w", True),
        ("patch_embedding/kernel", True),
        ("b", False),
    ],
)
def test_names_of_kernels(path, expected):
    assert jp.is_kernel(path, jnp.ones((4, 4))) is expected


def test_recurrent_weights_of_equinox():
    cell = eqx.nn.LSTMCell(3, 5, key=jax.random.key(0))
    assert cell.weight_ih.shape == (20, 3)
    assert jp.kernel_axes("cell/weight_ih", cell.weight_ih) == ((1,), (0,))
