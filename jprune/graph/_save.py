"""A shrunk model on the disk, complete: its function, its arrays and its plan.

    path/manifest.json         versions, leaves and inputs, checksums of all files
    path/function.stablehlo    the function, as `jax.export` serializes it
    path/arrays.safetensors    the params by their paths
    path/plan.json             what `dumps` returns

The directory is written under a temporary name, flushed to the disk, and renamed, even
if the process is interrupted meanwhile: it is there as a whole or not at all. Nothing
is pickled, and nothing that is read runs Python code. Checksums are SHA-256; they
protect from accidents, not from forgery: restore only what you trust, as an exported
function may call whatever XLA has registered.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jprune import tree
from jprune._core import base, encoding, files, manifest, tensors
from jprune.checkpoint import CheckpointError
from jprune.graph._compress import Compressed
from jprune.graph._export import serialize
from jprune.graph._plain import from_plain, to_plain
from jprune.graph._plan import Plan, dumps, loads
from jprune.graph._shrink import check_params

_FORMAT = "jprune shrunk model"
_VERSIONS = ("jprune", "jax", "numpy", "safetensors", "flatbuffers")
_FUNCTION, _ARRAYS, _PLAN = "function.stablehlo", "arrays.safetensors", "plan.json"


class Saved(NamedTuple):
    """A shrunk model: what `save` takes and `restore` returns.

    Attributes:
      fn: `(params, *inputs) -> results`.
      params: arrays.
      plan: kept entries of each axis of the full params.
    """

    fn: Callable[..., Any]
    params: base.Params
    plan: Plan


def save(
    path: str | os.PathLike[str],
    small: Saved | Compressed,
    *inputs: Any,
    platforms: Sequence[str] | None = None,
    vjp_order: int | None = None,
) -> Path:
    """Saves a shrunk model: its function, arrays and plan, as one directory.

    Where it is restored, neither the model's code nor its framework is needed. The
    function is exported by `jax.export` for the types of the inputs, with a symbolic
    batch or length where these have one, and for one device. JAX promises to read what
    its versions of the last six months exported; the arrays and the plan do not age.

    Args:
      path: the directory to make; nothing may exist there. Its parent has to exist.
      small: the model, such as the result of `compress`, or `Saved(fn, params, plan)`.
        For trained params, or the function in evaluation mode:
        `small._replace(fn=..., params=...)`.
      *inputs: inputs of the function, or `jax.ShapeDtypeStruct`s; their shapes, which
        may be symbolic (`jax.export.symbolic_shape("b, t")`), and dtypes count.
      platforms: names of platforms to export for, such as `["cpu"]`; None for those of
        cpu, cuda, tpu and the present one for which the function can be lowered.
      vjp_order: how many times the restored function can be differentiated, >= 0. None
        for once, or not at all if exporting its gradient fails: then the manifest says
        why.

    Returns:
      The path of the directory. The manifest in it says for which platforms and how
      many times differentiable the function is, and why not for more.

    Raises:
      PruningError: if the function cannot be exported, or it changes in place an input
        other than the params.
      CheckpointError: if the path exists or is a URL, a leaf cannot be stored, or
        writing fails. Nothing is changed then.
      ImportError: if flatbuffers or safetensors is not installed.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((4, 64)), "out": jnp.ones((64, 2))}
      >>> small = jg.compress(mlp, params, jnp.ones((5, 4)))
      >>> (b,) = jax.export.symbolic_shape("b")
      >>> x = jax.ShapeDtypeStruct((b, 4), jnp.float32)
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = jg.save(f"{directory}/mlp", small, x)
      ...     saved = jg.restore(path)
      >>> [saved.fn(saved.params, jnp.ones((batch, 4))).shape for batch in (1, 7)]
      [(1, 2), (7, 2)]
    """
    safetensors = _libraries().numpy
    final = files.local_path(path)
    with files.naming(f"cannot save {final}"):
        _check_free(final)
    made = serialize(small.fn, small.params, inputs, platforms, vjp_order)
    with files.naming(f"cannot save {final}"):
        arrays, leaves = _encoded(small.params)
        body = {
            "format": _FORMAT,
            "versions": {name: manifest.version(name) for name in _VERSIONS},
            "function": made.about,
            "leaves": leaves,
        }

        def write(directory: Path) -> None:
            (directory / _FUNCTION).write_bytes(made.data)
            (directory / _PLAN).write_text(dumps(small.plan), encoding="utf-8")
            safetensors.save_file(arrays, directory / _ARRAYS)
            # safetensors creates files that only their owner can read.
            (directory / _ARRAYS).chmod((directory / _PLAN).stat().st_mode)
            manifest.flush_all(directory)
            manifest.write(directory, body)

        files.uninterrupted(lambda: _place(final, write))
    return final


def restore(path: str | os.PathLike[str], like: Any = None) -> Saved:
    """Restores a shrunk model that `save` saved, in any process, and verifies it.

    Args:
      path: directory that `save` made.
      like: tree of the structure, shapes and dtypes of the params, such as the module
        that `compress` returned or the shapes that `shrink` returns for shapes. Where
        its leaves have shardings, so do the restored ones. None for dicts, lists and
        tuples: a module, a named tuple or a state becomes a dict with its names.

    Returns:
      A `Saved`. Its function takes the params, in either structure, and inputs of the
      types it was saved for; it composes with `jax.jit` and, where it was saved with a
      gradient, `jax.grad`. Results are dicts, lists and tuples. If the function changes
      its params in place, as a module of Flax NNX in train mode does, it returns
      `(results, params)` here, with the new ones.

    Raises:
      CheckpointError: if there is no such directory, `save` did not make it, a file is
        missing, damaged or foreign, the function is of a version that JAX does not
        read, or the params are not like `like`. The message names the file.
      ImportError: if flatbuffers or safetensors is not installed.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> small = Saved(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1))}, {"w": {}})
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     saved = jg.restore(jg.save(f"{directory}/m", small, jnp.ones((3, 2))))
      >>> saved.params, saved.plan
      ({'w': Array([[1.],
             [1.]], dtype=float32)}, {'w': {}})
      >>> loss = lambda params: saved.fn(params, jnp.ones((3, 2))).sum()
      >>> jax.grad(loss)(saved.params)["w"].tolist()
      [[3.0], [3.0]]
    """
    safetensors = _libraries()
    path = files.local_path(path)
    with files.naming(f"cannot restore {path}"):
        body = _checked(path)
        exported = _deserialized(path, body)
        plan = loads(files.read_regular(path / _PLAN).decode())
        stored = safetensors.deserialize(files.read_regular(path / _ARRAYS))
        (args, _) = exported.in_tree.children()
        structure = args.children()[0]
        types = _types(structure, body["leaves"])
        wanted = types if like is None else _checked_like(like, types)
        leaves = _decoded(body["leaves"], dict(stored), wanted)
        params = structure.unflatten(leaves)
        params = params if like is None else from_plain(params, like)
    return Saved(_function(exported, types), params, plan)


def _function(exported: export.Exported, types: Any) -> Callable[..., Any]:
    """The restored function of params in any structure."""

    def fn(params: Any, *inputs: Any) -> Any:
        given = to_plain(params)
        check_params(given, types, "The params that were saved")
        return exported.call(given, *map(to_plain, inputs))

    return fn


# ---- leaves ----


def _encoded(params: base.Params) -> tuple[dict[str, Any], list[encoding.Entry]]:
    """Returns the params as tensors, and their entries in the order of the leaves."""
    arrays, entries = {}, []
    for name, leaf in files.named_leaves(to_plain(params), tree.leaf_path).items():
        with files.naming(f"leaf {name!r}"):
            tensors.check_name(name)
            if isinstance(leaf, jax.Array) and leaf.is_deleted():
                raise ValueError("it is an array that has been deleted")
            leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
            arrays[name], entry = tensors.encode(leaf)
        entries.append({"path": name, **entry})
    return arrays, entries


def _decoded(
    entries: Sequence[encoding.Entry], stored: dict[str, Any], like: Any
) -> list[Any]:
    leaves = []
    for entry, x in zip(entries, jax.tree.leaves(like), strict=True):
        with files.naming(f"leaf {entry['path']!r}"):
            leaves.append(tensors.decode(entry, stored[entry["path"]]["data"], x))
    return leaves


def _types(structure: Any, entries: Sequence[encoding.Entry]) -> Any:
    return structure.unflatten(map(tensors.struct, entries))


def _checked_like(like: Any, types: Any) -> Any:
    """Returns the plain tree of `like`, which has to have the types of the params."""
    given = jax.tree.map(_typed, to_plain(like))
    check_params(given, types, "The params that were saved")
    known = tree.by_path(given)
    for path, struct in tree.by_path(types).items():
        found = known[path].dtype
        if found != struct.dtype:
            raise ValueError(f"{path} has dtype {struct.dtype}, and {found} in `like`")
    return given


def _typed(x: Any) -> Any:
    """The type in JAX of a number or a NumPy array, which is what was saved of it."""
    known = isinstance(x, jax.Array | jax.ShapeDtypeStruct)
    return x if known else jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x))


# ---- files ----


def _checked(path: Path) -> dict[str, Any]:
    """Returns the manifest of a directory, whose files are as they were saved."""
    body = manifest.read(path)
    if body.get("format") != _FORMAT:
        raise CheckpointError(
            f"it is a {body.get('format')}, and no model that jprune.graph.save saved"
        )
    manifest.check_files(path, body["files"], "")
    foreign = set(manifest.files_of(path)) - {*body["files"], manifest.NAME}
    if foreign:
        raise CheckpointError(
            f"its files {sorted(foreign)} are foreign: not part of what was saved"
        )
    return body


def _deserialized(path: Path, body: dict[str, Any]) -> export.Exported:
    data = files.read_regular(path / _FUNCTION)
    try:
        return export.deserialize(bytearray(data))
    except Exception as error:
        raise CheckpointError(
            f"its {_FUNCTION}, of JAX {body['versions']['jax']}, cannot be read by "
            f"JAX {jax.__version__}: {type(error).__name__}: {error}"
        ) from error


def _place(final: Path, write: Callable[[Path], None]) -> None:
    """Writes a directory under a temporary name, and renames it."""
    temporary = final.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        temporary.mkdir()
        write(temporary)
        _check_free(final)
        os.rename(temporary, final)
        with contextlib.suppress(OSError):  # it is there, whatever the disk says now
            manifest.flush(final.parent)
    finally:
        files.remove_directory(temporary)


def _check_free(final: Path) -> None:
    if os.path.lexists(final):
        raise CheckpointError("it exists, and is not overwritten")


def _libraries() -> Any:
    """Imports what functions and arrays are serialized with; returns safetensors."""
    try:
        # Imported here because it is optional.
        import flatbuffers  # noqa: F401
    except ImportError as error:
        message = "jax.export needs flatbuffers: pip install 'jprune[export]'"
        raise ImportError(message) from error
    return tensors.library()
