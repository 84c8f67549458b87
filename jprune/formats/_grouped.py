"""Packing of N:M patterns, along an axis or along the input axis of a layout."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.formats import _bits
from jprune.formats._formats import FormatError, in_full, movable, on_device
from jprune.formats._packed import NOfM


class ByPath(NamedTuple):
    """The format of an N:M pattern, which may depend on the path of a leaf.

    Attributes:
      n: number of entries that the mask keeps per group.
      m: size of a group.
      axis: axis of the groups, or None.
      layout: `(path, leaf) -> KernelAxes`, or None.
    """

    n: int
    m: int
    axis: int | None
    layout: tree.KernelLayout | None

    def __call__(self, weight: Any, mask: Any, path: str = "") -> NOfM:
        """Returns the packed weight."""
        w, m = movable(weight, mask)
        kept = in_full(w, m)  # before the layout, which may not know unpruned leaves
        return _packed(w, m, kept, self.n, self.m, self._axis_of(path, w))

    def _axis_of(self, path: str, w: np.ndarray) -> int:
        if self.axis is not None:
            return self.axis
        if self.layout is None:
            return _axis_by_name(path, w)
        axes = self.layout(path, w).input
        if not axes:
            raise FormatError(f"The layout has no input axis for {path!r}.")
        return axes[-1]


def pack_n_of_m(
    n: int,
    m: int,
    axis: int | None = None,
    *,
    layout: tree.KernelLayout | None = None,
) -> ByPath:
    """Returns the N:M format: n of every m consecutive weights along an axis.

    Takes (width + ceil(log2 m)) * n / m bits per weight. For bfloat16, 2:4 takes 9
    instead of 16, as a bit mask does; 1:4 takes 4.5, where a bit mask takes 5.

    Args:
      n: number of entries that the mask keeps per group, in [1, m].
      m: size of a group, at most 256; has to divide the axis.
      axis: axis of the groups; None for the input axis, of several the last one, as
        `jprune.keep_n_of_m` groups them.
      layout: function `(path, leaf) -> KernelAxes`, which says what the input axis is:
        the one that the mask was made with. None for `jprune.kernel_axes`, by the path
        that `pack_tree` knows; the last axis but one where no name settles it.

    Returns:
      A function `(weight, mask, path="") -> packed`, which raises `FormatError` unless
      the mask keeps exactly n of every m entries.

    Raises:
      PruningError: if not 1 <= n <= m <= 256, or both an axis and a layout are given.

    Example:
      >>> from jprune import formats
      >>> mask = jnp.array([[False], [True], [True], [False]])
      >>> packed = pack_n_of_m(2, 4)(jnp.arange(4.0)[:, None], mask)
      >>> packed.values[:, 0], packed.positions  # 01 10 and four zeros
      (Array([1., 2.], dtype=float32), Array([96], dtype=uint8))

      In a tree, weights that are stored as (out, in) are found by their names:

      >>> tree = {"proj.weight": jnp.arange(4.0)[None]}, {"proj.weight": mask.T}
      >>> packed = formats.pack_tree(*tree, [(".*", pack_n_of_m(2, 4))])
      >>> packed["proj.weight"].axis
      1

    References:
      Mishra et al., Accelerating Sparse Deep Neural Networks, 2021,
      arXiv:2104.08378.
    """
    if not 1 <= n <= m <= 256:
        raise base.PruningError(f"n:m needs 1 <= n <= m <= 256; got {n}:{m}.")
    if axis is not None and layout is not None:
        raise base.PruningError(
            f"pack_n_of_m takes an axis or a layout; got axis={axis} and {layout}."
        )
    return ByPath(int(n), int(m), None if axis is None else int(axis), layout)


def _axis_by_name(path: str, w: np.ndarray) -> int:
    try:
        return tree.kernel_axes(path, w).input[-1]
    except base.PruningError:  # no convention: the mask tells whether it fits this axis
        return -2


def _packed(
    w: np.ndarray, mask: np.ndarray, kept: np.ndarray, n: int, m: int, axis: int
) -> NOfM:
    if not -w.ndim <= axis < w.ndim or w.shape[axis] % m:
        raise FormatError(f"{m} does not divide axis {axis} of shape {w.shape}.")
    axis %= w.ndim
    shape, groups = w.shape, w.shape[axis] // m
    grouped = (math.prod(shape[:axis]), groups, m, math.prod(shape[axis + 1 :]))
    kept = kept.reshape(grouped)
    if (kept.sum(2) != n).any():
        raise FormatError(
            f"The mask does not keep {n} of every {m} along axis {axis}: pass the "
            "axis= or layout= that it was made with, or the leaf's path."
        )
    # With the axis of a group last, `nonzero` lists positions group by group.
    position = np.nonzero(kept.swapaxes(2, 3))[-1]
    position = position.reshape(*kept.shape[:2], kept.shape[3], n).swapaxes(2, 3)
    values = np.take_along_axis(w.reshape(grouped), position, axis=2)
    values = values.reshape(*shape[:axis], groups * n, *shape[axis + 1 :])
    packed = jnp.asarray(_bits.of_numbers(position, m))
    return NOfM(on_device(values), packed, shape, mask.shape, n, m, axis)
