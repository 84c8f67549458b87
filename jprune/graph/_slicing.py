"""Trees of arrays, cut by plans: slices, their shapes, and the way back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph import _placing
from jprune.graph._engine.hosting import put_like, taken
from jprune.graph._plan import Plan


def slice_tree(plan: Plan, full: Any, params: base.Params | None = None) -> Any:
    """Cuts the arrays of a tree down to the entries that a plan keeps.

    Args:
      plan: the plan.
      full: params, or another tree whose paths equal those of the params or end in
        them: optimizer states, masks, gradients. Other leaves are unchanged.
        `jax.ShapeDtypeStruct`s are cut as the arrays that they describe would be.
      params: the full params, or their shapes. They are needed for the states of
        optimizers that hold other arrays than moments: a stack of updates (L-BFGS), or
        a vector for each axis (SM3). Adafactor's means of rows and columns are refused.

    Returns:
      The tree with smaller arrays, or with their shapes.

    Raises:
      PruningError: if a leaf at a path of the plan is too small for it; if a leaf is
        not like its param, and `params` is missing or nothing tells its axes.

    Example:
      >>> import numpy as np
      >>> slice_tree({"w": {1: np.array([0, 2])}}, {"w": np.array([[5, 6, 7]])})
      {'w': array([[5, 7]])}

      The updates that L-BFGS remembers, one after another:

      >>> import jax, jax.numpy as jnp, optax
      >>> plan, params = {"w": {1: np.array([0, 2])}}, {"w": jnp.ones((4, 3))}
      >>> state = optax.scale_by_lbfgs(memory_size=5).init(params)
      >>> slice_tree(plan, state, params).diff_updates_memory["w"].shape
      (5, 4, 2)
    """
    known = None if params is None else tree.by_path(params)
    if known is None:
        paths, leaves = tree.leaf_paths(full), jax.tree.leaves(full)
        _placing.check_alike(zip(paths, leaves, strict=True), plan)

    def leaf(path: str, x: Any) -> Any:
        name, number = _placing.owner_of(plan, path)
        cut: _placing.Cut = {} if name is None else plan[name]
        if not cut or np.size(x) == 1:  # or a mask that broadcasts, or a placeholder
            return x
        if known is not None and name is not None:
            full_shape = np.shape(known[name])
            cut = _placing.placed(path, np.shape(x), full_shape, cut, number)
        within = _within(path, np.shape(x), cut)
        return taken(x, within) if within else x

    found, structure = jax.tree.flatten(tree.map_with_path(leaf, full))
    return structure.unflatten(put_like(found, jax.tree.leaves(full)))


def _within(
    path: str, shape: tuple[int, ...], cut: _placing.Cut
) -> dict[int, np.ndarray]:
    """The axes that are cut, without those along which an array broadcasts."""
    found = {}
    for axis, kept in cut.items():
        if len(shape) > axis and shape[axis] == 1:
            continue
        if len(shape) <= axis or shape[axis] <= kept[-1]:
            raise base.PruningError(
                f"{path} has shape {shape}, but the plan keeps entry {kept[-1]} of "
                f"axis {axis}."
            )
        found[axis] = kept
    return found


def expand(plan: Plan, small: Any, full: Any) -> Any:
    """Writes small arrays back to the entries that they were cut from.

    Args:
      plan: the plan that they were cut by.
      small: tree of small arrays, as from `slice_tree`.
      full: tree that they are written into, such as zeros or the params before.

    Returns:
      The full tree with the entries of the small one.

    Example:
      >>> import numpy as np
      >>> plan, small = {"w": {0: np.array([0, 2])}}, {"w": np.array([5.0, 7.0])}
      >>> expand(plan, small, {"w": np.zeros(3, np.float32)})
      {'w': Array([5., 0., 7.], dtype=float32)}
    """

    def leaf(path: str, x: Any, y: Any) -> Any:
        name, _ = _placing.owner_of(plan, path)
        axes = {} if name is None else plan[name]
        if not axes or np.shape(x) == np.shape(y):
            return x
        places = [axes.get(i, np.arange(n)) for i, n in enumerate(np.shape(y))]
        return jnp.asarray(y).at[np.ix_(*places)].set(x)

    return tree.map_with_path(leaf, small, full)


def shapes(plan: Plan, params: Any) -> Any:
    """Returns the shapes of params after a plan.

    Args:
      plan: the plan.
      params: full arrays, or their shapes.

    Returns:
      The params' tree of `jax.ShapeDtypeStruct`s.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> shapes({"w": {1: np.array([0, 2])}}, {"w": jnp.ones((4, 3))})["w"].shape
      (4, 2)
    """

    def leaf(path: str, x: Any) -> jax.ShapeDtypeStruct:
        axes = plan.get(path, {})
        shape = [len(axes.get(i, range(n))) for i, n in enumerate(np.shape(x))]
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype)

    return tree.map_with_path(leaf, params)


def widths(plan: Plan, params: Any) -> dict[str, tuple[int, ...]]:
    """Returns the new shapes of the leaves that a plan shrinks, by path.

    They say which numbers of features or heads a module needs to take the small
    arrays as its params.

    Args:
      plan: the plan.
      params: full arrays, or their shapes.

    Returns:
      Path -> shape.

    Raises:
      PruningError: if two leaves have the same path.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> params = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
      >>> widths({"in": {1: np.array([0, 2])}, "out": {0: np.array([0, 2])}}, params)
      {'in': (3, 2), 'out': (2, 2)}
    """
    found = tree.by_path(shapes(plan, params))
    return {path: x.shape for path, x in found.items() if plan.get(path)}
