"""Exported files that were damaged, are foreign, or say something else."""

import dataclasses
import hashlib
import json
import pickle
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from support.damage import flip
from support.exact import assert_same
from support.export_cases import packed_model, refuses, small

from jprune import checkpoint, formats

ERROR = checkpoint.CheckpointError


def flip_and_load(path, tree, bit):
    """True if the flip was refused; anything but the same bits is a failure."""
    flip(path, bit)
    try:
        found = formats.load_packed(path)
    except ERROR:
        return True
    finally:
        flip(path, bit)
    assert_same(found, tree)
    return False


def flips(path, count, seed):
    """Half of them in the header, half anywhere."""
    rng = np.random.default_rng(seed)
    size = path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    yield from rng.choice(8 * header, count // 2, replace=False)
    yield from rng.choice(8 * size, count - count // 2, replace=False)


@pytest.mark.parametrize(("make", "count"), [(small, 40), (packed_model, 40)])
def test_one_flipped_bit_is_never_silent(make, count, tmp_path):
    tree = make()
    tree = formats.load_packed(formats.save_packed(tmp_path / "m", tree))
    path = tmp_path / "m"
    refused = [flip_and_load(path, tree, bit) for bit in flips(path, count, 0)]
    assert sum(refused) >= 0.8 * count
    assert_same(formats.load_packed(path), tree)


def test_every_bit_of_the_data_counts(tmp_path):
    tree = formats.load_packed(formats.save_packed(tmp_path / "m", small()))
    path = tmp_path / "m"
    size = path.stat().st_size
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    draw = np.random.default_rng(1).choice(8 * (size - header), 40, replace=False)
    assert all(flip_and_load(path, tree, 8 * header + bit) for bit in draw)


@pytest.mark.slow
def test_many_flipped_bits_and_all_of_a_small_file(tmp_path):
    tree = formats.load_packed(formats.save_packed(tmp_path / "m", packed_model()))
    path = tmp_path / "m"
    refused = [flip_and_load(path, tree, bit) for bit in flips(path, 400, 2)]
    assert sum(refused) >= 0.8 * len(refused)
    tree = {"w": formats.pack_bits(np.ones(3, np.int8), np.arange(3) > 0)}
    path = formats.save_packed(tmp_path / "tiny", tree)
    tree = formats.load_packed(path)
    for bit in range(8 * path.stat().st_size):
        flip_and_load(path, tree, bit)


def test_truncated_and_extended(tmp_path):
    path = formats.save_packed(tmp_path / "m", small())
    data = path.read_bytes()
    rng = np.random.default_rng(3)
    for length in [0, 1, 7, 8, 9, len(data) - 1, *rng.integers(len(data), size=10)]:
        path.write_bytes(data[:length])
        refuses(path, "cannot load")
    path.write_bytes(data + b"\0")
    refuses(path, "cannot load")


def reseal(path, change):
    """Changes the manifest and makes its checksum right."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["jprune"])
    change(manifest)
    text = json.dumps(manifest)
    digest = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"] = {"jprune": text, "jprune.sha256": digest}
    packed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + length :])


def test_what_is_sealed_again_loads(tmp_path):
    """So that the tests below fail for their own reason."""
    path = formats.save_packed(tmp_path / "m", small())
    reseal(path, lambda manifest: None)
    assert_same(formats.load_packed(path), small())


def newer(manifest):
    manifest["schema"] = 2


def schema_true(manifest):
    manifest["schema"] = True  # equal to 1


def other_sum(manifest):
    manifest["leaves"][0]["fields"]["values"]["sha256"] = "0" * 64


def other_shape(manifest):
    manifest["leaves"][0]["fields"]["values"]["stored_shape"] = [1]


def other_kind(manifest):
    manifest["leaves"][0]["format"] = "Ellpack"


def one_less(manifest):
    manifest["leaves"].pop()


def one_more(manifest):
    manifest["leaves"].append(manifest["leaves"][0] | {"path": "more"})


def no_leaves(manifest):
    del manifest["leaves"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (newer, "schema is 2; this version reads 1"),
        (schema_true, "schema is True; this version reads 1"),
        (other_sum, "leaf 'bias': array 'values': it does not match its checksum"),
        (other_shape, "leaf 'bias': .*reshape"),
        (other_kind, "leaf 'bias': KeyError: 'Ellpack'"),
        (one_less, "that its manifest lacks: .*pattern/values"),
        (one_more, "arrays that it lacks: .*more/values"),
        (no_leaves, "KeyError: 'leaves'"),
    ],
)
def test_files_that_say_something_else(change, match, tmp_path):
    path = formats.save_packed(tmp_path / "m", small())
    reseal(path, change)
    refuses(path, match)


# Leaf, a key of what its manifest says, another value, and what contradicts it.
FORGED = [
    ("bias", "mask_shape", [4], r"mask_shape \(4,\) does not broadcast"),
    ("bias", "mask_shape", "3", "mask_shape is '3'"),
    ("bias", "mask_shape", [-3], r"mask_shape is \(-3,\)"),
    ("bits", "shape", [3, 4], r"mask_shape \(4, 3\) does not broadcast"),
    ("bits", "shape", [12], "does not broadcast"),
    ("bits", "shape", [4, True], "shape is"),
    ("bits", "mask_shape", [1, 3], "type and shape of bits"),
    ("bits", "mask_shape", [], "type and shape of bits"),
    ("pattern", "n", 2, "shape of values"),
    ("pattern", "n", 0, "n:m is 0:2"),
    ("pattern", "n", True, "n, m, axis are"),
    ("pattern", "m", 4, "shape of values"),
    ("pattern", "m", 3, "3 does not divide axis 0"),
    ("pattern", "axis", 1, "2 does not divide axis 1"),
    ("pattern", "axis", -2, "axis -2 is not in shape"),
    ("pattern", "shape", [3, 4], "does not broadcast"),
    ("blocks", "block", [1, 3], "shape of values"),
    ("blocks", "block", [0, 3], "block is"),
    ("blocks", "block", [3, 2], "do not divide"),
    ("blocks", "shape", [12], "does not broadcast"),
    ("blocks", "shape", [4, 6], "does not broadcast"),
]


@pytest.mark.parametrize(("leaf", "key", "value", "match"), FORGED)
def test_what_is_static_does_not_contradict_the_rest(leaf, key, value, match, tmp_path):
    """Even where the shape that `like` is compared with is forged likewise."""

    def forge(manifest):
        (entry,) = (e for e in manifest["leaves"] if e["path"] == leaf)
        assert key in entry["static"]
        entry["static"][key] = value
        if key == "shape":
            entry["shape"] = value

    path = formats.save_packed(tmp_path / "m", small())
    reseal(path, forge)
    refuses(path, f"leaf '{leaf}': its parts contradict each other: .*{match}")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("shape", [3, 4], r"the shape is \[4, 3\], .* \[3, 4\]"),
        ("dtype", "int8", "dtype"),
    ],
)
def test_what_like_is_compared_with_is_what_is_loaded(key, value, match, tmp_path):
    def forge(manifest):
        for entry in manifest["leaves"][1:]:
            entry[key] = value

    path = formats.save_packed(tmp_path / "m", small())
    reseal(path, forge)
    refuses(path, f"leaf 'bits': .*{match}")


def test_there_are_as_many_values_as_the_mask_keeps(tmp_path):
    bits = small()["bits"]
    less = dataclasses.replace(bits, values=bits.values[1:])
    path = formats.save_packed(tmp_path / "m", {"w": less})
    refuses(path, r"shape of values is \(8,\), but its other parts say \(9,\)")


def test_positions_of_blocks_are_in_the_grid_and_in_order(tmp_path):
    blocks = small()["blocks"]
    for rows, match in ((5, r"rows are not in \[0, 2\)"), (-1, "rows are not in")):
        path = tmp_path / f"{rows}"
        moved = dataclasses.replace(blocks, rows=blocks.rows + rows)
        formats.save_packed(path, {"w": moved})
        refuses(path, match)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), blocks)
    formats.save_packed(tmp_path / "twice", {"w": twice})
    refuses(tmp_path / "twice", "rows and columns are not in order")


def test_the_manifest_is_held_against_its_own_checksum(tmp_path):
    """What no array tells: what is static, such as the axis of a pattern."""
    path = formats.save_packed(tmp_path / "m", small())
    data = path.read_bytes()
    for old, new in (
        (b'\\"axis\\": 0', b'\\"axis\\": 1'),
        (b'\\"m\\": 2', b'\\"m\\": 4'),
    ):
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        refuses(path, "its manifest does not match its own checksum")


def test_foreign_files_are_named(tmp_path):
    path = tmp_path / "m"
    refuses(path, "FileNotFoundError")
    for data in (b"", b"{}", pickle.dumps({"w": 1}), bytes(1000), b"\xff" * 1000):
        path.write_bytes(data)
        refuses(path, "not safetensors")
    for metadata in (None, {"format": "pt"}, {"jprune": "{}"}):
        safetensors.numpy.save_file({"w": np.ones(3)}, path, metadata)
        refuses(path, "no manifest; did save_packed write it")
    for text in ("[1]", "{", "{}", "[" * 100_000):
        metadata = {"jprune": text, "jprune.sha256": ""}
        safetensors.numpy.save_file({"w": np.ones(3)}, path, metadata)
        refuses(path, "damaged|RecursionError")
    path.unlink()
    path.mkdir()
    refuses(path, "m is a directory, not a regular file")


def test_arrays_of_another_file_are_refused(tmp_path):
    """Two files of the same model: the header of one, the data of the other."""
    first = formats.save_packed(tmp_path / "1", small())
    other = jax.tree.map(lambda x: x + 1 if x.dtype == jnp.float32 else x, small())
    second = formats.save_packed(tmp_path / "2", other)
    data = first.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    first.write_bytes(data[:header] + second.read_bytes()[header:])
    refuses(first, "does not match its checksum")
