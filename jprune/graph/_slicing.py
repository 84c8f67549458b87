"""Trees of arrays, cut by plans: slices, their shapes, and the way back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph._engine.hosting import put_like, taken
from jprune.graph._plan import Plan


def slice_tree(plan: Plan, full: Any) -> Any:
    """Cuts the arrays of a tree down to the entries that a plan keeps.

    Args:
      plan: the plan.
      full: params, or another tree whose paths equal those of the params or end in
        them: optimizer states, masks, gradients. Other leaves are unchanged.
        `jax.ShapeDtypeStruct`s are cut as the arrays that they describe would be.

    Returns:
      The tree with smaller arrays, or with their shapes.

    Raises:
      PruningError: if a leaf at a path of the plan is too small for it.

    Example:
      >>> import numpy as np
      >>> slice_tree({"w": {1: np.array([0, 2])}}, {"w": np.array([[5, 6, 7]])})
      {'w': array([[5, 7]])}
    """

    def leaf(path: str, x: Any) -> Any:
        cut = {}
        for axis, kept in _axes_for(plan, path).items():
            if np.ndim(x) <= axis or np.shape(x)[axis] <= kept[-1]:
                if np.size(x) == 1 or (np.ndim(x) > axis and np.shape(x)[axis] == 1):
                    continue  # a mask that broadcasts, or a placeholder
                raise base.PruningError(
                    f"{path} has shape {np.shape(x)}, but the plan keeps entry "
                    f"{kept[-1]} of axis {axis}."
                )
            elif np.shape(x)[axis] != 1:
                cut[axis] = kept
        return taken(x, cut) if cut else x

    found, structure = jax.tree.flatten(tree.map_with_path(leaf, full))
    return structure.unflatten(put_like(found, jax.tree.leaves(full)))


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
        axes = _axes_for(plan, path)
        if not axes or np.shape(x) == np.shape(y):
            return x
        places = [axes.get(i, np.arange(n)) for i, n in enumerate(np.shape(y))]
        return jnp.asarray(y).at[np.ix_(*places)].set(x)

    return tree.map_with_path(leaf, small, full)


def _axes_for(plan: Plan, path: str) -> dict[int, np.ndarray]:
    """Returns the axes that a plan shrinks at a path, of params or a similar tree.

    In an optimizer's state, `mu/dense/kernel` means the leaf `dense/kernel`; if the
    state was made for a part of the params only, it may mean `params/dense/kernel`.
    """
    if path in plan:
        return plan[path]
    parts = path.split("/")
    ends = ["/".join(parts[i:]) for i in range(1, len(parts))]
    for rest in ends:
        if rest in plan:
            return plan[rest]
    for rest in (path, *ends):
        if "/" not in rest:
            break
        found = [axes for name, axes in plan.items() if name.endswith(f"/{rest}")]
        if len(found) == 1:
            return found[0]
    return {}


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
