"""The roles of a kernel's axes, by the conventions of frameworks."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jprune._core import base
from jprune.tree._paths import leaf_path, listing


class KernelAxes(NamedTuple):
    """The roles of a kernel's axes.

    Axes with neither role are spatial, or stack the kernels of layers or experts.

    Attributes:
      input: axes that the product contracts (sums over), ascending.
      output: axes of output features, ascending.
    """

    input: tuple[int, ...]
    output: tuple[int, ...]


KernelLayout = Callable[[str, Any], KernelAxes]
"""`(path, leaf) -> KernelAxes`, such as `kernel_axes`."""


# Layers of GPT-2 whose kernels have either order under the same name: (in, out) as
# `weight` in Hugging Face's PyTorch and in Flax ports of nanoGPT, (out, in) as `kernel`
# in Hugging Face's Flax and as `weight` in nanoGPT.
_EITHER_ORDER = ("c_attn", "c_fc", "c_proj", "q_attn")

# Modules that hold the kernels of several layers in one array, with an axis for them
# that may stand anywhere, unless an index follows, as in `layers/0`.
_STACKED = re.compile(r".*(layers|blocks|experts)|(scan|vmap).*", re.IGNORECASE)

_TORCH = re.compile(r"weight(_.*)?|(in|q|k|v)_proj_weight")  # weight_ih of an LSTM


def kernel_axes(path: str, leaf: Any) -> KernelAxes:
    """Returns the roles of a kernel's axes, where a naming convention settles them.

    | leaf | axes | convention |
    |---|---|---|
    | `weight`, 2 axes | (out, in) | Equinox, PyTorch |
    | `weight`, 4 or 5 axes; 3 in a convolution | `(out, in, *spatial)` | the same |
    | other names, 2 axes | (in, out) | JAX, Flax, Haiku |
    | other names, 3 to 5 axes in a convolution | `(*spatial, in, out)` | the same |
    | other names, 3 axes in `query`, `key`, `value` | (in, heads, dim) | Flax |
    | other names, 3 axes in `out` | (heads, dim, out) | Flax |

    A leaf is in a convolution if its name, or that of the layer that holds it, contains
    `conv`. Names may be joined by dots, as in the flat dicts of Hugging Face:
    `model.layers.0.self_attn.q_proj.weight` is a `weight`.

    All other kernels of three axes or more are refused, among them those of
    `DenseGeneral` (`q_proj/kernel`), stacks of layers or experts (`layers/mlp/kernel`,
    without an index after `layers`), and transposed convolutions of PyTorch. So are
    `c_attn`, `c_fc`, `c_proj` and `q_attn` of GPT-2, of which implementations in both
    orders exist. The roles of these come from `jprune.graph.layout` or
    `layout_from_names`.

    Args:
      path: path of the leaf, joined by `/` or by dots.
      leaf: array of two axes or more, or its `jax.ShapeDtypeStruct`.

    Returns:
      The axes of each role.

    Raises:
      PruningError: if the leaf has fewer than two axes, or no convention settles the
        roles of its axes.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel_axes("conv/kernel", jnp.ones((3, 3, 16, 32)))
      KernelAxes(input=(2,), output=(3,))
      >>> kernel_axes("conv/weight", jnp.ones((32, 16, 3, 3)))
      KernelAxes(input=(1,), output=(0,))
      >>> kernel_axes("model.layers.0.mlp.up_proj.weight", jnp.ones((32, 16)))
      KernelAxes(input=(1,), output=(0,))
    """
    shape = np.shape(leaf)
    if len(shape) < 2:
        raise base.PruningError(f"{path!r} has shape {shape}: fewer than two axes.")
    *parents, name = re.split("[/.]", path)
    layer = next((p for p in reversed(parents) if not p.isdigit()), "")
    find = _torch_axes if _TORCH.fullmatch(name) else _flax_axes
    roles = find(layer, name, len(shape))
    stacked = len(shape) > 2 and _may_be_stacked(parents, name)
    if roles is None or stacked:
        raise base.PruningError(
            f"No naming convention settles which axes of {path!r}, shape {shape}, are "
            "inputs and outputs. Pass layout=jprune.graph.layout(graph), which reads "
            "them from a trace; layout=jprune.tree.layout_from_names(names), which "
            "takes logical axis names; or a function of your own, "
            "layout=lambda path, leaf: KernelAxes(input=..., output=...)."
        )
    return roles


def layout_from_names(
    names: Any,
    *,
    neither: Sequence[str] = (),
    joint: Sequence[Sequence[str]] = (),
) -> KernelLayout:
    """Returns the input and output axes of kernels, by logical names of their axes.

    Logical axis names are what `nn.with_logical_partitioning` and MaxText annotate
    params with, such as ("embed", "layers", "mlp"). Layers of Flax and MaxText have
    the axes of their inputs before those of their outputs. So, without the axes named
    in `neither`, a kernel has two parts: its first axis is the input and its second
    one the output. Where the input or the output has several axes, as heads and head
    dimensions do, `joint` says which names form one part.

    A name alone has no role: "embed" is the input of ("embed", "mlp") and the output of
    ("mlp", "embed").

    Args:
      names: the params' tree with a tuple of names, or a `PartitionSpec`, for each
        leaf, as `nn.get_partition_spec(variables)["params"]` returns; or a dict from
        path to names. Names may be None.
      neither: names of axes that are neither inputs nor outputs: stacks of layers or
        experts, windows of convolutions.
      joint: groups of names that together are one input or output.

    Returns:
      `(path, leaf) -> KernelAxes`, for `layout=` of links and recipes.

    Raises:
      PruningError: when the result is called, for a leaf that has no names, or not one
        per axis, and for one that does not have two parts.

    Example:
      >>> import jax.numpy as jnp
      >>> layout = layout_from_names(
      ...     {
      ...         "mlp/wo/kernel": ("mlp", "layers", "embed"),
      ...         "attention/query/kernel": ("embed", "layers", "q_heads", "kv"),
      ...     },
      ...     neither=("layers",),
      ...     joint=[("q_heads", "kv")],
      ... )
      >>> layout("mlp/wo/kernel", jnp.ones((32, 3, 16)))
      KernelAxes(input=(0,), output=(2,))
      >>> layout("attention/query/kernel", jnp.ones((16, 3, 4, 8)))
      KernelAxes(input=(0,), output=(2, 3))
    """
    found = {
        leaf_path(keys): tuple(each)
        for keys, each in jax.tree_util.tree_leaves_with_path(names, is_leaf=_are_names)
        if _are_names(each)
    }

    def layout(path: str, leaf: Any) -> KernelAxes:
        shape = np.shape(leaf)
        if path not in found:
            raise base.PruningError(
                f"There are no axis names for {path!r}. Leaves with names: "
                f"{listing(list(found))}"
            )
        own = found[path]
        if len(own) != len(shape):
            raise base.PruningError(
                f"{path!r} has shape {shape}, but {len(own)} axis names: {own}."
            )
        axes = [i for i, name in enumerate(own) if name not in neither]
        parts = _parts(axes, own, joint)
        if len(parts) != 2:
            said = ", ".join(str(tuple(own[i] for i in part)) for part in parts)
            raise base.PruningError(
                f"{path!r} has to have two parts, the input and the output; its axis "
                f"names {own} have {len(parts)}: {said}. Name axes without a role in "
                "neither=, and the names of one input or output in joint=."
            )
        return KernelAxes(*parts)

    return layout


def _torch_axes(layer: str, name: str, ndim: int) -> KernelAxes | None:
    """Roles in (out, in, *spatial), or None."""
    transposed = re.search("transpose|deconv|upconv", layer, re.IGNORECASE)
    if layer in _EITHER_ORDER or (ndim > 2 and transposed):
        return None
    # A kernel of 3 axes that is not a convolution's is a stack: MoE experts, vmapped.
    settled = ndim in (2, 4, 5) or (ndim == 3 and _is_convolution(layer, name))
    return KernelAxes((1,), (0,)) if settled else None


def _flax_axes(layer: str, name: str, ndim: int) -> KernelAxes | None:
    """Roles in (*spatial, in, out), or in an attention projection, or None."""
    if name == "kernel" and layer in _EITHER_ORDER:
        return None
    if ndim == 3 and layer in ("query", "key", "value"):
        return KernelAxes((0,), (1, 2))
    if ndim == 3 and layer == "out":
        return KernelAxes((0, 1), (2,))
    settled = ndim == 2 or (ndim <= 5 and _is_convolution(layer, name))
    return KernelAxes((ndim - 2,), (ndim - 1,)) if settled else None


def _is_convolution(layer: str, name: str) -> bool:
    return "conv" in f"{layer} {name}".lower()


def _may_be_stacked(parents: Sequence[str], name: str) -> bool:
    return any(
        _STACKED.fullmatch(part) is not None and not after.isdigit()
        for part, after in itertools.pairwise([*parents, name])
    )


def _parts(
    axes: Sequence[int], names: Sequence[str | None], joint: Sequence[Sequence[str]]
) -> list[tuple[int, ...]]:
    """Splits axes into runs whose names belong together."""
    parts: list[tuple[int, ...]] = []
    for i in axes:
        last = parts[-1][-1] if parts else None
        if last is not None and any({names[last], names[i]} <= {*g} for g in joint):
            parts[-1] = (*parts[-1], i)
        else:
            parts.append((i,))
    return parts


def _are_names(x: Any) -> bool:
    if isinstance(x, PartitionSpec):
        return True
    return isinstance(x, tuple) and all(n is None or isinstance(n, str) for n in x)
