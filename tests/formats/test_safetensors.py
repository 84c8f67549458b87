"""One file for a pruned model: back to the bit, or refused by name."""

import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
from jax import experimental
from support.exact import DTYPES, assert_same, bits, files_of, random_bits
from support.export_cases import packed_model, refuses, small
from support.format_cases import WIDE, model

import jprune as jp
from jprune import checkpoint, formats
from jprune.formats import _safetensors

ERROR = checkpoint.CheckpointError
TYPES = [dtype for dtype in DTYPES if dtype.name not in WIDE]


# ---- back to the bit ----


def test_a_model_comes_back_to_the_bit(tmp_path):
    params, masks = model()
    packed = packed_model()
    path = formats.save_packed(tmp_path / "model.safetensors", packed)
    assert_same(formats.load_packed(path, like=params), packed)
    assert_same(formats.load_packed(path, like=jax.eval_shape(lambda: params)), packed)
    unpacked = formats.unpack_tree(formats.load_packed(path, like=params))
    assert_same(unpacked, (jp.apply(params, masks), masks))
    flat = formats.load_packed(path)
    assert list(flat) == jp.leaf_paths(params)
    assert_same(flat["blocks/kernel"], packed["blocks"]["kernel"])
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_the_file_is_as_small_as_was_said(tmp_path):
    """A matrix of a million weights: what is not data is a thousandth of it."""
    mask = np.arange(2**20).reshape(1024, 1024) % 10 == 0
    tree = {"w": formats.pack_bits(np.ones((1024, 1024), np.float32), mask)}
    path = formats.save_packed(tmp_path / "model", tree)
    said = formats.packed_sizes(tree)["total"]["bytes_packed"]
    assert said <= path.stat().st_size <= 1.005 * said


def test_all_types_come_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    kept = rng.random((6, 4)) < 0.5
    tree = {}
    for dtype in TYPES:
        pack = formats.pack_dense if "int2" in str(dtype) else formats.pack_bits
        tree[str(dtype)] = pack(random_bits(rng, dtype, (6, 4)), kept)
    path = formats.save_packed(tmp_path / "model", tree)
    assert_same(formats.load_packed(path), tree)


def test_wide_types_come_back_where_jax_has_them(tmp_path):
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64
    rng = np.random.default_rng(0)
    kept = rng.random((6, 4)) < 0.5
    path = tmp_path / "m"
    with enable(True):
        leaves = {name: random_bits(rng, np.dtype(name), (6, 4)) for name in WIDE}
        tree = {name: formats.pack_bits(w, kept) for name, w in leaves.items()}
        formats.save_packed(path, tree)
        found = formats.load_packed(path)
        assert_same(found, tree)
        for name, w in leaves.items():
            weight = np.asarray(found[name].unpack()[0])
            assert weight[kept].tobytes() == w[kept].tobytes()
            assert not weight[~kept].view(np.uint8).any()
        path = formats.save_packed(tmp_path / "int64", {"w": tree["int64"]})
    refuses(path, "JAX would cast int64 to int32; set jax_enable_x64")


def test_other_tools_see_the_arrays(tmp_path):
    path = formats.save_packed(tmp_path / "model", packed_model())
    arrays = safetensors.flax.load_file(path)
    kernel = packed_model()["pattern"]["kernel"]
    assert bits(arrays["pattern/kernel/values"]) == bits(kernel.values)
    assert bits(arrays["pattern/kernel/positions"]) == bits(kernel.positions)


def test_no_leaves_and_a_bare_one(tmp_path):
    path = formats.save_packed(tmp_path / "none", {})
    assert formats.load_packed(path, like={}) == {}
    bare = formats.pack_dense(jnp.ones(3), True)
    path = formats.save_packed(tmp_path / "bare", bare)
    assert_same(formats.load_packed(path, like=jnp.ones(3)), bare)


def test_names_of_any_kind(tmp_path):
    leaf = formats.pack_dense(jnp.ones(3), True)
    tree = {
        "__metadata__": leaf,
        'a "b" \\ \n': [leaf, {"ключ": leaf}],
        "x": {"": leaf},
    }
    path = formats.save_packed(tmp_path / "model", tree)
    like = jax.tree.map(lambda _: jnp.ones(3), tree, is_leaf=formats.is_packed)
    assert_same(formats.load_packed(path, like=like), tree)


# ---- another model ----


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lost": jnp.ones(99)}, r"leaf 'lost'.*\[100\].*\[99\]"),
        ({"lost": jnp.ones(100, jnp.bfloat16)}, "leaf 'lost'.*float32.*bfloat16"),
        ({"lost": "text"}, "leaf 'lost': it is a str"),
        ({"more": jnp.ones(1)}, r"that it lacks: \['more'\]; .*\[\]"),
        ({"empty": None}, r"that `like` lacks: \['empty'\]"),
    ],
)
def test_another_model_is_refused_leaf_by_leaf(change, match, tmp_path):
    path = formats.save_packed(tmp_path / "m", packed_model())
    refuses(path, match, like={**model()[0], **change})


# ---- writing ----


@pytest.mark.parametrize("save", [formats.save_packed, formats.save_dense])
def test_nothing_is_overwritten_unless_asked(save, tmp_path):
    tree = small() if save is formats.save_packed else {"w": jnp.ones(2)}
    path = tmp_path / "m"
    path.write_text("precious")
    name = "packed" if save is formats.save_packed else "params"
    refuses(path, "it exists", save, **{name: tree})
    save(path, tree, overwrite=True)
    written = path.read_bytes()
    assert written != b"precious"
    # A link to nowhere is something too.
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ERROR, match="it exists"):
        save(link, tree)
    assert sorted(os.listdir(tmp_path)) == ["link", "m"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_fails_leaves_nothing_behind(overwrite, tmp_path):
    with pytest.raises(ERROR, match=f"{tmp_path}/no/m.*"):
        formats.save_packed(tmp_path / "no" / "m", small())
    path = formats.save_packed(tmp_path / "m", small())
    before = files_of(tmp_path)
    wrong = [
        ({**small(), "w": jnp.ones(3)}, "leaf 'w': it is a .*, not a packed weight"),
        ({"a": {"b": small()["bias"]}, "a.b": small()["bias"]}, "collide"),
        ({"a": {"b": small()["bias"]}, "a/b": small()["bias"]}, "collide"),
    ]
    for tree, match in wrong:
        target = path if overwrite else tmp_path / "other"
        with pytest.raises(ERROR, match=match):
            formats.save_packed(target, tree, overwrite=overwrite)
        assert files_of(tmp_path) == before


def test_who_may_read_it_is_as_for_any_new_file(tmp_path):
    (tmp_path / "any").write_text("")
    path = formats.save_packed(tmp_path / "m", small())
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
    path.chmod(0o640)
    formats.save_packed(path, small(), overwrite=True)
    assert path.stat().st_mode & 0o777 == 0o640


def test_one_that_was_written_meanwhile_stays(tmp_path):
    final = tmp_path / "m"

    def write(temporary):
        temporary.write_text("ours")
        final.write_text("theirs")

    with pytest.raises(ERROR, match="another process created it"):
        _safetensors._place(final, False, write)
    assert final.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["m"]


# ---- for any tool ----


def test_dense_weights_are_there_for_anyone(tmp_path):
    params, masks = model()
    path = formats.save_dense(tmp_path / "model.safetensors", params, masks)
    leaves = jax.tree.leaves(jp.apply(params, masks))
    expected = dict(zip(jp.leaf_paths(params), leaves, strict=True))
    assert_same(safetensors.flax.load_file(path), expected)
    refuses(path, "no manifest")  # and it does not pass for more
    path = formats.save_dense(tmp_path / "masked", jp.apply(params, masks))
    assert_same(safetensors.flax.load_file(path), expected)


def test_types_are_those_of_safetensors(tmp_path):
    named = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bfloat16": "BF16"}
    tree = {name: jnp.arange(3).astype(name) for name in named} | {"wide": np.ones(3)}
    path = formats.save_dense(tmp_path / "m", tree)
    with safetensors.safe_open(path, framework="numpy") as file:
        found = {name: file.get_slice(name).get_dtype() for name in tree}
    assert found == named | {"wide": "F64"}
    stored = dict(safetensors.deserialize(path.read_bytes()))
    for name in named:
        assert bytes(stored[name]["data"]) == np.asarray(tree[name]).tobytes()


@pytest.mark.parametrize(
    ("leaf", "match"),
    [
        (jnp.ones(3, ml_dtypes.int4), "leaf 'a/w': .*no name for the type int4"),
        (jax.random.key(0), "leaf 'a/w': .*key<fry>"),
        (1.0, "leaf 'a/w': .*Python float"),
        ("text", "leaf 'a/w': it is a str"),
    ],
)
def test_what_safetensors_has_no_name_for(leaf, match, tmp_path):
    refuses(tmp_path / "m", match, formats.save_dense, params={"a": {"w": leaf}})
    assert not os.listdir(tmp_path)


def test_names_that_collide_or_are_taken(tmp_path):
    tree = {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)}
    refuses(tmp_path / "m", "collide", formats.save_dense, params=tree)
    tree = {"__metadata__": jnp.ones(1)}
    refuses(tmp_path / "m", "reserves this name", formats.save_dense, params=tree)
    with pytest.raises(jp.PruningError, match="masks have no leaf"):
        formats.save_dense(tmp_path / "m", {"a": jnp.ones(1)}, {})
