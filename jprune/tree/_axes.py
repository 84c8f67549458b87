"""The roles of a kernel's axes, by the conventions of frameworks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jprune._core import base


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


def kernel_axes(path: str, leaf: Any) -> KernelAxes:
    """Returns the roles of a kernel's axes, by the conventions of frameworks.

    JAX, Flax and Haiku store `(*spatial, in, out)`; Equinox and PyTorch, whose
    kernels are called `weight`, store `(out, in, *spatial)`. Flax's attention
    projections of three axes are `(in, heads, dim)` under `query`, `key` and
    `value` and `(heads, dim, out)` under `out`.

    Args:
      path: `/`-joined path of the leaf.
      leaf: array of two axes or more.

    Returns:
      The axes of each role.

    Raises:
      PruningError: if the leaf has fewer than two axes.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel_axes("conv/kernel", jnp.ones((3, 3, 16, 32)))
      KernelAxes(input=(2,), output=(3,))
      >>> kernel_axes("conv/weight", jnp.ones((32, 16, 3, 3)))
      KernelAxes(input=(1,), output=(0,))
    """
    ndim = np.ndim(leaf)
    if ndim < 2:
        shape = np.shape(leaf)
        raise base.PruningError(f"{path!r} has shape {shape}: fewer than two axes.")
    *parents, name = path.split("/")
    layer = parents[-1] if parents else ""
    if name == "weight" or name.startswith("weight_"):  # weight_ih of an LSTM
        return KernelAxes((1,), (0,))
    if ndim == 3 and layer in ("query", "key", "value"):
        return KernelAxes((0,), (1, 2))
    if ndim == 3 and layer == "out":
        return KernelAxes((0, 1), (2,))
    return KernelAxes((ndim - 2,), (ndim - 1,))
