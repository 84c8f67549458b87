"""State that a function changes in place, inside the objects that it is given.

A module of Flax NNX holds its running statistics, its counters of random numbers and
its caches, and changes them as it is called. While a function is traced, such a change
shows: another tracer lies where the argument's own one was. The new values then become
results of the recorded program, and every run writes them into the caller's object.

What a function does to a dict or a list that it is given is its own matter, as under
`jax.jit`, which hands it a copy.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import tree_util

from jprune._core import base
from jprune.tree import leaf_path

_MEND = (
    "Return the new state beside the outputs instead. For a module of Flax NNX: "
    "graphdef, state = nnx.split(module), then trace `def fn(state, x): module = "
    "nnx.merge(graphdef, state); return module(x), nnx.state(module)`, with "
    "shrinking=... for the new state."
)


class Place(NamedTuple):
    """Where a leaf lies: under a key of an object, which may replace it.

    Attributes:
      keys: keys from the root.
      owner: the object that holds the leaf.
      leaf: the leaf.
    """

    keys: tuple[Any, ...]
    owner: Any
    leaf: Any

    @property
    def path(self) -> str:
        """Path within its argument."""
        return leaf_path(self.keys[1:])


def holds_objects(tree: Any) -> bool:
    """Returns whether a tree has nodes that a function could change in place.

    Args:
      tree: any pytree. Its dicts, lists and tuples do not count.
    """

    def within(structure: Any) -> bool:
        kind = structure.node_data()  # None for a leaf, and for None
        if kind is not None and not issubclass(kind[0], dict | list | tuple):
            return True
        return any(map(within, structure.children()))

    return within(jax.tree.structure(tree))


def watched(
    fn: Callable[..., Any],
) -> tuple[Callable[..., tuple[Any, list[Any]]], list[int]]:
    """Returns a function that also returns what it changes in place.

    Args:
      fn: `(params, *inputs) -> results`.

    Returns:
      `(params, *inputs) -> (results, new state)`, and a list that tracing it fills: the
      numbers of the leaves of `(params, *inputs)` that the new state replaces.

    Raises:
      PruningError: when the function is traced, if it changes the structure of its
        arguments in place; says what to write instead.
    """
    found: list[int] = []

    def with_state(*args: Any) -> tuple[Any, list[Any]]:
        before, structure = tree_util.tree_flatten_with_path(args)
        results = fn(*args)
        changed = _changed(before, structure, args)
        found[:] = changed
        return results, list(changed.values())

    return with_state, found


def check(given: Any, state: Sequence[int], new: Sequence[Any]) -> tuple[int, ...]:
    """Checks that new state can be written back.

    Args:
      given: `(params, *inputs)` as the caller gave them.
      state: numbers of the leaves that change.
      new: shapes of the new state.

    Returns:
      The numbers.

    Raises:
      PruningError: if it cannot be written back; says what to write instead.
    """
    known = list(places(given)) if state else []
    for i, struct in zip(state, new, strict=True):
        _check(known, i, struct)
    return tuple(state)


def places(tree: Any, keys: tuple[Any, ...] = (), owner: Any = None) -> Iterator[Place]:
    """Returns the places of the leaves of a tree, in the order of its leaves.

    Args:
      tree: any pytree.
      keys: keys that lead to it.
      owner: the object that it lies in.
    """
    level = children(tree)
    if level is None:
        yield Place(keys, owner, tree)
        return
    for below, child in level:
        yield from places(child, (*keys, *below), tree)


def children(node: Any) -> Sequence[tuple[Any, Any]] | None:
    """Returns the keys and the children of a node of a tree, None if it is a leaf.

    A node that has none any more has no children: Equinox's State, once a new one was
    made of it, raises a ValueError. So do the keys of a dict that cannot be sorted, and
    that error is the caller's.

    Args:
      node: a pytree.
    """
    try:
        level, structure = tree_util.tree_flatten_with_path(
            node, is_leaf=lambda x: x is not node
        )
    except ValueError:
        if isinstance(node, dict | list | tuple):
            raise
        return []
    is_leaf = structure.num_nodes == structure.num_leaves == 1
    return None if is_leaf else level


def write(args: Any, state: Sequence[int], values: Sequence[Any]) -> None:
    """Writes new state into the objects that hold it.

    Args:
      args: `(params, *inputs)`, with the structure of the traced ones.
      state: numbers of the leaves that change.
      values: their new values.
    """
    if not state:
        return
    known = list(places(args))
    for i, value in zip(state, values, strict=True):
        _set(known[i].owner, known[i].keys[-1].name, value)


def _changed(
    before: Sequence[tuple[Any, Any]], structure: Any, args: Any
) -> dict[int, Any]:
    """Returns the leaves that are others after the call, by their number before."""
    known = {keys: (i, leaf) for i, (keys, leaf) in enumerate(before)}
    after = {x.keys: x for x in places(args)}
    inside = [x for x in after.values() if not _is_plain(x)]
    added = [x.path for x in inside if x.keys not in known]
    if added:
        raise base.PruningError(
            f"The function adds {', '.join(added)} to its argument in place, which a "
            f"recorded function cannot do. {_MEND}"
        )
    if after.keys() == known.keys() and jax.tree.structure(args) != structure:
        raise base.PruningError(
            "The function changes in place what its argument holds beside arrays, such "
            "as an attribute that is a number or a flag. A recorded function cannot do "
            "that: make it an array."
        )
    each = [(*known[x.keys], x.leaf) for x in inside if x.keys in known]
    return {i: new for i, old, new in each if new is not old}


def _is_plain(place: Place) -> bool:
    """Whether a leaf lies in a dict or a list, which a function may use as its own."""
    return isinstance(place.owner, dict | list)


def _check(known: list[Place], number: int, struct: Any) -> None:
    """Checks that new state can be written back."""
    place = known[number]
    if not isinstance(place.keys[-1], tree_util.GetAttrKey):
        raise base.PruningError(
            f"The function changes {place.path} of its argument in place, where "
            f"jprune cannot write it back: {type(place.owner).__name__} does not name "
            f"its leaves as attributes. {_MEND}"
        )
    if np.shape(place.leaf) != struct.shape:
        raise base.PruningError(
            f"The function changes the shape of {place.path} in place from "
            f"{np.shape(place.leaf)} to {struct.shape}. {_MEND}"
        )
    shared = [
        x.path
        for x in known
        if x.owner is place.owner and x.keys[-1] == place.keys[-1] and x is not place
    ]
    if shared:
        raise base.PruningError(
            f"The function changes {place.path} in place, and {', '.join(shared)} is "
            f"the same object, which a tree of arrays holds twice. {_MEND}"
        )


def _set(owner: Any, name: str, value: Any) -> None:
    """Replaces the leaf that an object holds under a name.

    A box of one array, such as a Variable of Flax, has a method for it. The raw one
    spares hooks, which ran when the function was traced.
    """
    for method in ("set_raw_value", "set_value"):
        if name == "value" and hasattr(type(owner), method):
            getattr(owner, method)(value)
            return
    setattr(owner, name, value)
