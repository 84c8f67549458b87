"""Ways to damage a saved step, and what tells whether anything that counts changed."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jprune import masks


def small(seed: int = 1) -> dict:
    rng = np.random.default_rng(seed)
    kept = {"w": jnp.asarray(rng.random((40, 50)) < 0.3)}
    return {
        "w": jnp.asarray(rng.normal(size=(40, 50)), jnp.float32),
        "mask": kept["w"],
        "packed": masks.pack(kept, kept)["w"],
        "half": jnp.asarray(rng.normal(size=300), jnp.bfloat16),
        "empty": jnp.zeros((0, 2)),
        "key": jax.random.key(seed),
        "count": jnp.asarray(5 + seed, jnp.int32),
    }


def saved_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def seal(path: Path, change: Callable[[dict], object]) -> None:
    """Changes the manifest and makes its checksums, all but the leaves', right."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest()
        for name in manifest["files"]
    }
    change(manifest)
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def what_counts(path: Path) -> tuple:
    """All that a reader depends on: what the manifest says, and Orbax's files.

    White space in the manifest does not count, and files beside it do not.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        return (repr(error),)
    files = {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in saved_files(path)
        if file.is_relative_to(path / "arrays")
    }
    return manifest, files


# ---- each takes the step's path, one of its files, a step of another run, a draw ----


def flipped_bit(path, file, other, rng):
    flip(file, rng.integers(8 * file.stat().st_size))


def truncated(path, file, other, rng):
    os.truncate(file, rng.integers(file.stat().st_size))


def extended(path, file, other, rng):
    file.write_bytes(file.read_bytes() + rng.bytes(rng.integers(1, 100)))


def deleted(path, file, other, rng):
    file.unlink()


def zeroed_block(path, file, other, rng):
    """As a file system leaves where it wrote a size, and not yet the data."""
    data = bytearray(file.read_bytes())
    size = min(len(data), rng.choice([16, 512, 4096]))
    start = rng.integers(len(data) - size + 1)
    data[start : start + size] = bytes(size)
    file.write_bytes(data)


def swapped_within(path, file, other, rng):
    second = saved_files(path)[rng.integers(len(saved_files(path)))]
    first = file.read_bytes()
    file.write_bytes(second.read_bytes())
    second.write_bytes(first)


def swapped_with_another(path, file, other, rng):
    """The file that has its place in a checkpoint of the same model and step."""
    file.write_bytes(
        saved_files(other)[saved_files(path).index(file)].read_bytes()
        if len(saved_files(other)) == len(saved_files(path))
        else saved_files(other)[rng.integers(len(saved_files(other)))].read_bytes()
    )


def arrays_of_another(path, file, other, rng):
    shutil.rmtree(path / "arrays")
    shutil.copytree(other / "arrays", path / "arrays")


def manifest_of_another(path, file, other, rng):
    shutil.copy(other / "manifest.json", path)


def foreign(path, file, other, rng):
    """A file of another kind under the name."""
    contents = [b"", b"{}", b"null", rng.bytes(500), pickle.dumps({"w": 1})]
    file.write_bytes(contents[rng.integers(len(contents))])


def extra_beside(path, file, other, rng):
    (path / "notes.txt").write_bytes(rng.bytes(10))


def extra_among_arrays(path, file, other, rng):
    folders = [p for p in (path / "arrays").rglob("*") if p.is_dir()]
    folder = [path / "arrays", *folders][rng.integers(1 + len(folders))]
    names = ["manifest.ocdbt", "_METADATA", "x", "0", ".DS_Store", file.name]
    named = folder / names[rng.integers(len(names))]
    named = named if not named.exists() else folder / "another"
    named.write_bytes(rng.bytes(20))


def directory_in_its_place(path, file, other, rng):
    file.unlink()
    file.mkdir()


def dangling_link(path, file, other, rng):
    file.unlink()
    file.symlink_to(path / "nowhere")


KINDS = [flipped_bit, truncated, extended, deleted, zeroed_block, swapped_within]
KINDS += [swapped_with_another, arrays_of_another, manifest_of_another, foreign]
KINDS += [extra_beside, extra_among_arrays, directory_in_its_place, dangling_link]
