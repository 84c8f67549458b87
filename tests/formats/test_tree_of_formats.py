"""Whole models packed: each leaf by its rule, nothing lost, bytes counted."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.exact import assert_same
from support.format_cases import RULES, model

import jprune as jp
from jprune import checkpoint, formats


def test_each_leaf_by_its_rule_and_back():
    params, masks = model()
    packed = formats.pack_tree(params, masks, RULES)
    found = formats.packed_sizes(packed)["leaves"]
    assert {path: row["format"] for path, row in found.items()} == {
        "pattern/kernel": "NOfM",
        "blocks/kernel": "Blocks",
        "bits/kernel": "BitMask",
        "channels/kernel": "BitMask",
        "norm/scale": "Dense",
        "norm/steps": "Dense",
        "empty": "Dense",
        "lost": "BitMask",
    }
    assert_same(formats.unpack_tree(packed), (jp.apply(params, masks), masks))
    unpacked = jax.jit(formats.unpack_tree)(packed)
    assert_same(unpacked, (jp.apply(params, masks), masks))


def test_bytes_by_hand():
    sizes = formats.packed_sizes(formats.pack_tree(*model(), RULES))
    leaves = sizes["leaves"]
    packed = {path: row["bytes_packed"] for path, row in leaves.items()}
    kept = int(model()[1]["bits"]["kernel"].sum())
    assert packed == {
        "pattern/kernel": 32 * 2 + 32 * 2 // 8,
        "blocks/kernel": 2 * (16 * 4 + 8),
        "bits/kernel": kept * 4 + 288 // 8,
        "channels/kernel": 16 * 3 * 2 + 1,
        "norm/scale": 8 * 4,
        "norm/steps": 4,
        "empty": 0,
        "lost": 100 // 8 + 1,
    }
    assert leaves["bits/kernel"]["bytes_dense"] == 288 * 4
    assert leaves["pattern/kernel"]["dtype"] == "bfloat16"
    assert leaves["pattern/kernel"]["shape"] == [16, 8]
    total = 256 + 512 + 1152 + 256 + 32 + 4 + 400
    assert sizes["total"] == {
        "bytes_dense": total,
        "bytes_packed": sum(packed.values()),
    }


def test_bit_masks_take_what_the_summary_says():
    params, masks = model()
    packed = formats.packed_sizes(formats.pack_tree(params, masks))
    summary = jp.summary(params, masks)
    assert packed["total"]["bytes_packed"] == summary["total"]["bytes_sparse"]
    for path, row in summary["leaves"].items():
        assert packed["leaves"][path]["bytes_packed"] == row["bytes_sparse"]


def test_what_does_not_fit_or_save_goes_dense_and_keeps_its_mask():
    params = {"w": jnp.arange(12.0).reshape(4, 3), "v": jnp.ones((4, 4))}
    masks = {"w": params["w"] != 5, "v": ~jnp.eye(4, dtype=bool)}
    rules = (("w", formats.pack_n_of_m(2, 4)), ("v", formats.pack_blocks(1, 1)))
    packed = formats.pack_tree(params, masks, rules)  # 12 blocks of 12 bytes
    assert [type(x) for x in packed.values()] == [formats.Dense, formats.Dense]
    assert_same(formats.unpack_tree(packed), (jp.apply(params, masks), masks))
    assert packed["w"].values[1, 2] == 0
    # Without a rule as well.
    packed = formats.pack_tree(params, masks, [("w", formats.pack_bits)])
    assert type(packed["v"]) is formats.Dense
    assert type(packed["w"]) is formats.BitMask  # 11 values and 12 bits
    assert_same(formats.unpack_tree(packed), (jp.apply(params, masks), masks))


NAMED = {  # name -> shape, and the input axis that keep_n_of_m groups
    "model.layers.0.mlp.up_proj.weight": ((12, 8), 1),
    "model.conv.weight": ((3, 8, 2, 2), 1),
    "dense/kernel": ((8, 12), 0),
    "conv/kernel": ((2, 2, 8, 3), 2),
    "out/kernel": ((2, 4, 12), 1),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("layout", [None, jp.kernel_axes])
def test_two_of_four_is_packed_along_the_axis_that_it_was_made_along(name, layout):
    """Against the mask, of which every four entries along the inputs keep two."""
    shape, axis = NAMED[name]
    draw = np.random.default_rng(0).normal
    params = {name: jnp.asarray(draw(size=shape), jnp.float32)}
    pruned, masks = jp.prune(params, jp.recipes.n_of_m(2, 4), where=".*")
    fours = np.moveaxis(np.asarray(masks[name]), axis, -1).reshape(-1, 4)
    assert (fours.sum(-1) == 2).all()
    pack = formats.pack_n_of_m(2, 4, layout=layout)
    packed = formats.pack_tree(pruned, masks, [(".*", pack)])
    assert type(packed[name]) is formats.NOfM
    assert packed[name].axis == axis
    assert_same(formats.unpack_tree(packed), (pruned, masks))


def test_a_layout_from_a_trace_packs_what_it_pruned():
    """A (out, in) kernel whose name says (in, out), and a bias that stays whole."""

    def linear(p, x):
        return x @ p["proj"].T + p["bias"][None]

    draw = np.random.default_rng(0).normal
    params = {
        "proj": jnp.asarray(draw(size=(12, 8)), jnp.float32),
        "bias": jnp.ones(12),
    }
    layout = jp.graph.layout(jp.graph.trace(linear, params, jnp.ones((2, 8))))
    pruned, masks = jp.prune(params, jp.recipes.n_of_m(2, 4, layout=layout))
    rules = [(".*", formats.pack_n_of_m(2, 4, layout=layout))]
    packed = formats.pack_tree(pruned, masks, rules)
    assert packed["proj"].axis == 1
    assert type(packed["bias"]) is formats.Dense
    by_name = formats.pack_tree(pruned, masks, [(".*", formats.pack_n_of_m(2, 4))])
    assert type(by_name["proj"]) is formats.Dense
    other = jp.tree.layout_from_names({"else": ("in", "out")})
    with pytest.raises(jp.PruningError, match="'proj': There are no axis names"):
        formats.pack_tree(
            pruned, masks, [(".*", formats.pack_n_of_m(2, 4, layout=other))]
        )
    alone = formats.pack_n_of_m(2, 4, layout=layout)(
        pruned["proj"], masks["proj"], path="proj"
    )
    assert_same(alone, packed["proj"])


def test_mistakes_name_the_leaf():
    params, masks = {"a": {"w": np.ones(3)}}, {"a": {"w": np.ones(3, bool)}}
    with pytest.raises(jp.PruningError, match="'a/w': JAX would cast float64"):
        formats.pack_tree(params, masks)
    with pytest.raises(jp.PruningError, match=r"'\.\*/kernel' applies to no leaf"):
        formats.pack_tree(params, masks, [(".*/kernel", formats.pack_bits)])
    with pytest.raises(jp.PruningError, match="masks have no leaf 'a/w'"):
        formats.pack_tree(params, {"b": np.ones(3, bool)})


@pytest.mark.others_code
def test_boxes_around_arrays_do_not_show():
    """Flax NNX keeps an array in a Variable; the paths are those of the arrays."""
    layer = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    params = nnx.state(layer, nnx.Param)
    params, masks = jp.prune(params, jp.recipes.magnitude(0.75))
    packed = formats.pack_tree(params, masks, [("kernel", formats.pack_bits)])
    sizes = formats.packed_sizes(packed)["leaves"]
    assert {path: row["format"] for path, row in sizes.items()} == {
        "bias": "Dense",
        "kernel": "BitMask",
    }
    found, found_masks = formats.unpack_tree(packed)
    assert_same(jax.tree.leaves(found), jax.tree.leaves(params))
    assert_same(jax.tree.leaves(found_masks), jax.tree.leaves(masks))
    nnx.update(layer, found)
    assert (layer.kernel[...] == 0).sum() == 24


@pytest.mark.parametrize("of", [lambda x: x, lambda x: jax.eval_shape(lambda: x)])
def test_packed_trees_are_saved_as_any_state_is(of, tmp_path):
    """Through Orbax: arrays to the bit, and what is static from the structure."""
    params, masks = model()
    packed = formats.pack_tree(params, masks, RULES)
    checkpoint.save(tmp_path, 7, {"model": packed, "step": jnp.asarray(7)})
    like = of({"model": packed, "step": jnp.asarray(0)})
    found = checkpoint.restore(tmp_path, like)
    assert_same(found["model"], packed)
    unpacked = formats.unpack_tree(found["model"])
    assert_same(unpacked, (jp.apply(params, masks), masks))
