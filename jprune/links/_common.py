"""Common parts of links: checks, links without state, and axes by their role."""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

from jprune import tree
from jprune._core import base


def stateless(
    score: Callable[[Any, base.Params], base.Scores], needs_grads: bool
) -> base.Pruner:
    """Makes a `score_by_*` link from a function of gradients and params.

    Args:
      score: `(grads, params) -> scores`, trees of the params' structure.
      needs_grads: whether `score` uses the gradients; if so, `update` raises without.

    Returns:
      A link without state: gradients and params -> scores. Its `init` raises for
      leaves that are not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> score = lambda grads, params: jax.tree.map(jnp.square, params)
      >>> link = stateless(score, needs_grads=False)
      >>> params = {"w": jnp.array([-2.0, 1.0])}
      >>> link.update(None, link.init(params), params)[0]
      {'w': Array([4., 1.], dtype=float32)}
    """

    def init(params: base.Params) -> optax.EmptyState:
        floating(params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        del extra
        require(updates, params, needs_grads)
        return score(updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def as_pruner(pruner: Any, name: str = "pruner") -> base.Pruner:
    """Returns a pruner that takes extra arguments; raises if it is not a transform.

    Args:
      pruner: an Optax transform, or anything with its `init` and `update`.
      name: what it is, for the message: "pruner" or "optimizer".

    Returns:
      The transform; `update` ignores keyword arguments that it does not know.

    Raises:
      PruningError: if it is something else, such as a recipe that was not called.

    Example:
      >>> import optax
      >>> callable(as_pruner(optax.identity()).update)
      True
    """
    if not is_transform(pruner):
        made = "optax.adam(0.1)" if name == "optimizer" else "recipes.magnitude(0.9)"
        raise base.PruningError(
            f"The {name} is no Optax transform, such as {made}: it is {_kind(pruner)}."
        )
    return optax.with_extra_args_support(pruner)


def is_transform(x: Any) -> bool:
    """Returns whether something has the functions of an Optax transform."""
    return all(callable(getattr(x, name, None)) for name in ("init", "update"))


def _kind(x: Any) -> str:
    if callable(getattr(x, "step", None)):
        return "an Algorithm, which has a loop of its own: call its init, step, finish"
    if isinstance(x, dict) and "pruner" in x:
        return "a dict of a pruner and what it needs: pass its entries, **method"
    if isinstance(x, str):
        return f"the string {x!r:.80}: pass what the function of that name returns"
    if callable(x) and (name := getattr(x, "__name__", "")):
        return f"the function {name!r}, which was not called: pass {name}(...)"
    return f"a value of type {type(x).__name__}"


def check_function(f: Any, name: str, form: str) -> None:
    """Raises unless an argument is a function.

    Args:
      f: the argument.
      name: its name.
      form: what is right, for the message.

    Raises:
      PruningError: if it is something else.

    Example:
      >>> check_function(jnp.sum, "reduce", "(x, axis=...), such as jnp.sum")
    """
    if not callable(f):
        kind = type(f).__name__
        raise base.PruningError(
            f"{name} is a function {form}; got {f!r:.80}, of type {kind}."
        )


def require(grads: Any, params: Any, needs_grads: bool) -> None:
    """Raises if the arguments of a link's `update` lack what its scores need.

    Args:
      grads: gradients, or None.
      params: params, or None.
      needs_grads: whether the scores need gradients.

    Raises:
      PruningError: if the params, or gradients that are needed, are None, or if these
        gradients have other paths or shapes than the params; names the first leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> require(None, {"w": jnp.ones(3)}, needs_grads=False)  # magnitudes
      >>> require(None, {"w": jnp.ones(3)}, needs_grads=True)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
          ...
      jprune._core.base.PruningError: This criterion scores by gradients and got ...
    """
    if params is None:
        raise base.PruningError(
            "A criterion needs the params: call update(grads, state, params)."
        )
    if needs_grads and grads is None:
        raise base.PruningError(
            "This criterion scores by gradients and got none: call "
            "update(grads, state, params), or prune(params, pruner, grads)."
        )
    if needs_grads:
        tree.in_tree_of(params, grads, "gradients", shapes=True)


def floating(params: base.Params) -> base.Params:
    """Returns the params; raises unless all leaves are floating point.

    Args:
      params: any pytree of arrays.

    Returns:
      The params.

    Raises:
      PruningError: if a leaf is not floating point; names the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> floating({"w": jnp.arange(3)})  # doctest: +ELLIPSIS
      Traceback (most recent call last):
          ...
      jprune._core.base.PruningError: 'w' has type int32: only floating-point ...
    """

    def leaf(path: str, w: Any) -> None:
        if not tree.is_float(path, w):
            raise base.PruningError(
                f"{path!r} has type {jnp.result_type(w)}: only floating-point leaves "
                "can be pruned. Restrict the pruner to them with jprune.select."
            )

    tree.map_with_path(leaf, params)
    return params


def axes_of_role(
    layout: tree.KernelLayout, role: Literal["input", "output"], path: str, w: Any
) -> tuple[int, ...]:
    """Returns the axes of a kernel that have a role; raises if none has.

    Args:
      layout: function `(path, leaf) -> KernelAxes`.
      role: "input" or "output".
      path: path of the leaf.
      w: the leaf.

    Returns:
      Axes, ascending.

    Raises:
      PruningError: if no axis has the role; names the leaf.
    """
    axes = getattr(layout(path, w), role)
    if not axes:
        raise base.PruningError(
            f"The layout gives no {role} axis for {path!r}, shape {np.shape(w)}: "
            "exclude the leaf with where=, or pass another layout=."
        )
    return axes
