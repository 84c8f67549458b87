"""Groups: axes of params that must shrink together.

A *group* is a set of axes of params that must have the same entries, because the
function relates them entry by entry: it adds, multiplies or contracts them. Its
*entry* k, one channel or head, consists of slice k of every axis in the group, and is
kept or removed as a whole.
"""

import itertools
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jprune._core import base
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import layout, routing
from jprune.graph._engine.dims import Dim


class Member(NamedTuple):
    """An axis that contains the entries of a group.

    A group may be only a part of the axis: heads in an axis of heads times head
    dimension, or one of several concatenated layers.

    Attributes:
      path: path of the leaf of params.
      axis: index of the axis.
      dim: dimension term of the whole axis.
    """

    path: str
    axis: int
    dim: Dim

    def __str__(self) -> str:
        return f"{self.path}[{self.axis}]"


class Group(NamedTuple):
    """A set of axes of params that must shrink together.

    Attributes:
      name: path and axis of one member, such as "dense/kernel[1]".
      kind: how the program uses the group: "channel" (of a convolution), "heads",
        "head" (head dimension), "expert", "layer" (stacked layers), "table" (tokens or
        positions, as of an embedding that one-hot vectors are multiplied by) or
        "hidden".
      size: number of entries.
      members: the axes.
      dim: the dimension that they share.
      least: least number of entries that the function can do with: a router that
        chooses the best two experts needs two.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    dim: Dim
    least: int = 1

    def __str__(self) -> str:
        shown = [str(m) for m in self.members[:4]]
        shown += ["..."] if len(self.members) > 4 else []
        return f"{self.name}: {self.kind}, {self.size} entries, {', '.join(shown)}"


def find_groups(axes: dict[str, tuple[Dim, ...]]) -> dict[str, Group]:
    """Returns the groups of a recorded function by name.

    Args:
      axes: path of a leaf -> one dim for each axis.

    Returns:
      Name -> group, in the order of the params: one group for each leaf dim of more
      than one entry that is not frozen and that the function sums over.
    """
    members: dict[Dim, list[Member]] = {}
    for path, dims in axes.items():
        for axis, d in enumerate(dims):
            for one in dict.fromkeys(dims_lib.leaves_of(d)):
                if one.size > 1 and not one.frozen and "summed" in one.marks:
                    members.setdefault(one, []).append(Member(path, axis, d))
    ranks = {path: sum(d.size > 1 for d in dims) for path, dims in axes.items()}
    groups: dict[str, Group] = {}
    for one, each in members.items():
        first = max(each, key=lambda m: (ranks[m.path] > 1, m.axis))
        name = unused_name(str(first), groups)
        least = routing.least_of(one)
        groups[name] = Group(name, _kind(one), one.size, tuple(each), one, least)
    return groups


def entry_indices(group: Group, member: Member) -> list[np.ndarray]:
    """Returns which entry of a group each position of an axis belongs to.

    Args:
      group: the group.
      member: one of its members.

    Returns:
      One int array of the axis' size for each occurrence of the group in the axis:
      indices of entries, or -1 where a position does not belong to the group.

    Example:
      Two heads of three dimensions, in one axis of six entries:

      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> def heads(p, x):
      ...   x = (x @ p["in"]).reshape(-1, 2, 3)
      ...   return jnp.einsum("nhd,hd->nd", x, p["out"])
      >>> params = {"in": jnp.ones((4, 6)), "out": jnp.ones((2, 3))}
      >>> group, *_ = jg.trace(heads, params, jnp.ones((5, 4))).groups.values()
      >>> jg.entry_indices(group, group.members[0])
      [array([0, 0, 0, 1, 1, 1])]
    """
    return layout.positions(member.dim, group.dim)


def is_whole(group: Group, member: Member) -> bool:
    """Returns whether an axis consists of a group's entries, each once, in order."""
    return dims_lib.resolve(member.dim) is dims_lib.resolve(group.dim)


def check_known(groups: Mapping[str, Group], names: Iterable[str]) -> None:
    """Checks that groups of these names exist.

    Args:
      groups: groups of a recorded function by name.
      names: names to look up.

    Raises:
      PruningError: if a name is unknown; lists the known ones.

    Example:
      >>> import jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
      >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
      >>> graph = jg.trace(mlp, params, jnp.ones((5, 3)))
      >>> jg.check_known(graph.groups, ["out[0]"])
      Traceback (most recent call last):
        ...
      jprune._core.base.PruningError: There is no group 'out[0]'; there are: in[1]
    """
    for name in names:
        if name not in groups:
            raise base.PruningError(
                f"There is no group {name!r}; there are: {', '.join(groups)}"
            )


def _kind(d: Dim) -> str:
    for mark, kind in (
        ("layer", "layer"),
        ("routed", "expert"),
        ("heads", "heads"),
        ("head", "head"),
        ("parallel", "expert"),
        ("channel", "channel"),
        ("table", "table"),
    ):
        if mark in d.marks:
            return kind
    return "hidden"


def unused_name(name: str, taken: Container[str]) -> str:
    """Returns a name, with a number appended if it is taken."""
    numbered = (f"{name}.{i}" for i in itertools.count(1))
    return next(n for n in itertools.chain([name], numbered) if n not in taken)
