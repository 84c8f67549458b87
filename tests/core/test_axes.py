"""Roles of kernel axes by names, against the products that contract them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jprune as jp
from jprune import tree


def normal(*shape):
    draw = np.random.default_rng(shape).normal
    return jnp.asarray(draw(size=shape), jnp.float32)


def check_two_of_four(fn, params, x, **options):
    """Asserts that each sum of a linear function has two zeros in every four terms.

    The derivative of a result by the inputs is what its dot product multiplies them by.
    """
    sparse, _ = jp.prune(params, jp.recipes.n_of_m(2, 4, **options))
    each = np.asarray(jax.jacobian(fn, argnums=1)(sparse, x))
    fours = each.reshape(-1, x.size // 4, 4)
    np.testing.assert_array_equal((fours != 0).sum(-1), 2)


def test_two_of_four_in_a_tree_of_hugging_face():
    name = "model.layers.0.self_attn.q_proj.weight"
    p = {name: normal(4, 8), "lm_head.weight": normal(4, 8)}
    check_two_of_four(lambda p, x: p[name] @ x, p, normal(8))

    in_proj = {"self_attn.in_proj_weight": normal(12, 8)}
    check_two_of_four(
        lambda p, x: p["self_attn.in_proj_weight"] @ x, in_proj, normal(8)
    )


class _Block(nn.Module):
    """Kernels as MaxText has them: heads, and logical names of the axes."""

    @nn.compact
    def __call__(self, x, _):
        def dense(name, features, axis, names):
            init = nn.with_logical_partitioning(nn.initializers.normal(), names)
            return nn.DenseGeneral(
                features, axis, use_bias=False, kernel_init=init, name=name
            )

        query = dense("query", (2, 4), -1, ("embed", "q_heads", "kv"))(x)
        out = dense("out", 8, (-2, -1), ("q_heads", "kv", "embed"))(query)
        wi = dense("wi_0", 12, -1, ("embed", "mlp"))(x)
        wo = dense("wo", 8, -1, ("mlp", "embed"))(wi)
        return x + out + wo, None


class _Decoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            _Block,
            variable_axes={"params": 1},  # MaxText's param_scan_axis
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(name="layers")(x, None)[0]


@pytest.mark.others_code
def test_two_of_four_in_a_tree_of_maxtext():
    x = normal(1, 8)
    boxed = _Decoder().init(jax.random.key(0), x)
    names = nn.get_partition_spec(boxed)["params"]
    params = nn.unbox(boxed)["params"]
    kernel = params["layers"]["query"]["kernel"]
    assert kernel.shape == (8, 3, 2, 4)
    assert names["layers"]["query"]["kernel"] == PartitionSpec(
        "embed", "layers", "q_heads", "kv"
    )

    layout = tree.layout_from_names(
        names, neither=("layers",), joint=[("q_heads", "kv")]
    )
    found = {p: layout(p, w) for p, w in tree.by_path(params).items()}
    assert found == {
        "layers/query/kernel": ((0,), (2, 3)),
        "layers/out/kernel": ((0, 2), (3,)),
        "layers/wi_0/kernel": ((0,), (2,)),
        "layers/wo/kernel": ((0,), (2,)),
    }
    # The trace says the same, without names.
    graph = jp.graph.trace(lambda p, x: _Decoder().apply({"params": p}, x), params, x)
    roles = jp.graph.layout(graph)
    assert found == {p: roles(p, w) for p, w in tree.by_path(params).items()}

    def sums(name):
        """Applies the kernel of the second layer alone."""
        return lambda p, x: jnp.tensordot(x, p["layers"][name]["kernel"][:, 1], 1)

    check_two_of_four(sums("query"), params, normal(8), layout=layout)
    check_two_of_four(sums("wi_0"), params, normal(8), layout=layout)
    check_two_of_four(sums("wo"), params, normal(12), layout=layout)


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("transformer.h.0.mlp.dense.weight", (4, 8), ((1,), (0,))),
        ("vit.patch_embed.proj.weight", (8, 3, 4, 4), ((1,), (0,))),
        ("mixer.conv1d.weight", (8, 1, 4), ((1,), (0,))),
        ("layers/0/weight", (8, 3, 5, 5), ((1,), (0,))),  # eqx.nn.Sequential
        ("self_attn.k_proj_weight", (8, 4), ((1,), (0,))),
        ("convs/0/kernel", (3, 4, 8), ((1,), (2,))),  # a list of nnx.Conv
        ("Conv_0/kernel", (3, 3, 3, 4, 8), ((3,), (4,))),
        ("conv2_d/w", (3, 3, 4, 8), ((2,), (3,))),  # Haiku
        ("conv", (3, 3, 4, 8), ((2,), (3,))),
        ("blocks/0/query/kernel", (8, 2, 4), ((0,), (1, 2))),
        ("decoder/layers/mlp/wi/kernel", (4, 8), ((0,), (1,))),  # two axes: no stack
        ("w", (4, 8), ((0,), (1,))),
    ],
)
def test_names_that_conventions_settle(path, shape, expected):
    assert jp.kernel_axes(path, jax.ShapeDtypeStruct(shape, jnp.float32)) == expected


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("q_proj/kernel", (8, 2, 4)),  # DenseGeneral
        ("decoder/layers/mlp/wi_0/kernel", (8, 3, 16)),  # MaxText
        ("decoder/layers/self_attention/query/kernel", (64, 4, 8, 16)),
        ("decoder/layers/mamba/conv1d/kernel", (4, 3, 1, 8)),
        ("decoder/dense_layers/query/kernel", (8, 3, 16)),
        ("ScanBlock_0/query/kernel", (3, 8, 16)),  # nn.scan of nn.Dense
        ("blocks/linear/weight", (3, 16, 8)),  # eqx.filter_vmap of layers
        ("blocks/conv/weight", (3, 16, 8, 5)),
        ("mlp.experts.weight", (4, 16, 8)),
        ("mlp.experts.gate_up_proj", (4, 8, 16)),
        ("decoder.conv_transpose.weight", (8, 16, 2, 2)),  # (in, out, ...)
        ("stem/kernel", (3, 3, 4, 8)),
        ("w", (3, 3, 4, 8)),
        ("conv/kernel", (3, 3, 3, 3, 4, 8)),
        ("transformer.h.0.attn.c_attn.weight", (8, 24)),  # GPT-2
        ("transformer/h/0/mlp/c_fc/kernel", (32, 8)),
    ],
)
def test_names_that_no_convention_settles_are_refused(path, shape):
    w = jax.ShapeDtypeStruct(shape, jnp.float32)
    with pytest.raises(jp.PruningError) as error:
        jp.kernel_axes(path, w)
    for said in (repr(path), f"shape {shape}", "jprune.graph.layout(graph)"):
        assert said in str(error.value)
    if jp.is_kernel(path, w):
        with pytest.raises(jp.PruningError, match="layout_from_names"):
            jp.prune({path: jnp.ones(shape)}, jp.recipes.n_of_m(2, 4))


def test_methods_with_units_take_a_layout():
    """DenseGeneral's kernel (in, heads, dim), and one gate or score per input."""
    p = {"q_proj": {"kernel": normal(8, 2, 4)}}
    options = {"layout": lambda path, leaf: jp.KernelAxes((0,), (1, 2))}
    loss = lambda p, x: jnp.sum((x @ p["q_proj"]["kernel"].reshape(8, 8)) ** 2)  # noqa: E731
    sgd, key = optax.sgd(0.1), jax.random.key(0)
    gated = jp.learned.gated(
        jp.gates.hard_concrete,
        logit=3.0,
        units="input",
        final=jp.keep_top(0.5, scope="global"),
        **options,
    )
    method = jp.learned.learn_masks(loss, gated, weights=sgd, scores=sgd)
    masks = jax.eval_shape(lambda: method.finish(method.init(p, key))[1])
    assert masks["q_proj"]["kernel"].shape == (8, 1, 1)
    for method in (  # they have no layout, and refuse what names do not settle
        jp.recipes.l0(loss, 0.5, sgd, steps=1, units="input"),
        jp.recipes.consensus(loss, 0.5, sgd, units="input"),
    ):
        with pytest.raises(jp.PruningError, match="'q_proj/kernel'"):
            jax.eval_shape(method.init, p, key)
    method = jp.recipes.bip(loss, 0.5, steps=1, units="input", **options)
    masks = jax.eval_shape(lambda: method.finish(method.init(p))[1])
    assert masks["q_proj"]["kernel"].shape == (8, 1, 1)
    for recipe in (jp.recipes.hydra, jp.recipes.edge_popup, jp.recipes.sign_supermask):
        jax.eval_shape(recipe(loss, 0.5, steps=1, **options).init, p, key)
        with pytest.raises(jp.PruningError, match="'q_proj/kernel'"):
            jax.eval_shape(recipe(loss, 0.5, steps=1).init, p, key)


def test_logical_names_that_do_not_give_two_parts_are_refused():
    names = {
        "scale": ("norm",),
        "query": ("embed", "q_heads", "kv"),
        "stack": {"wi": ("embed", "layers", "mlp")},
        "none": (None, "layers", None),
    }
    layout = tree.layout_from_names(names, neither=["layers"])
    assert layout("stack/wi", jnp.ones((4, 2, 8))) == jp.KernelAxes((0,), (2,))
    assert layout("none", jnp.ones((4, 2, 8))) == jp.KernelAxes((0,), (2,))
    for path, shape, message in (
        ("query", (4, 2, 8), r"'query' has to .* have 3: \('embed',\), \('q_heads',\)"),
        ("scale", (4,), r"have 1: \('norm',\)"),
        ("stack/wi", (4, 8), r"'stack/wi' has shape \(4, 8\), but 3 axis names"),
        ("wi", (4, 8), r"no axis names for 'wi'.*none, query, scale, stack/wi"),
    ):
        with pytest.raises(jp.PruningError, match=message):
            layout(path, jnp.ones(shape))
    forgotten = tree.layout_from_names(names, joint=[("q_heads", "kv")])
    assert forgotten("query", jnp.ones((4, 2, 8))) == jp.KernelAxes((0,), (1, 2))
    with pytest.raises(jp.PruningError, match=r"neither=.*joint="):
        forgotten("stack/wi", jnp.ones((4, 2, 8)))


@pytest.mark.parametrize(
    "path",
    [
        "lm_head.weight",
        "lm_head/kernel",
        "model.lm_head.weight",
        "decoder/logits_dense/kernel",
        "model.embed_tokens.weight",
        "transformer.wte.weight",
        "freqs_cis",
        "rope/cos",
        "rope_cache",
        "layers/0/rotary/table",
        "layers.0.self_attn.rotary_emb.cos_cached",
    ],
)
def test_heads_and_tables_are_left_out_and_listed(path):
    params = {path: normal(8, 4), "up": {"kernel": normal(4, 8)}}
    assert not jp.is_kernel(path, params[path])
    pruned, masks = jp.prune(params, jp.recipes.magnitude(0.5))
    np.testing.assert_array_equal(pruned[path], params[path])
    found = jp.summary(params, masks)
    assert found["left_out"] == [path]
    assert "name" in found["leaves"][path]["why_not"]


@pytest.mark.parametrize(
    "path",
    ["attn/wk_rope", "property/w", "freq/w", "rotary/kernel", "mlm.dense.weight"],
)
def test_names_that_contain_those_of_tables_are_kernels(path):
    assert jp.is_kernel(path, jnp.ones((8, 4)))
