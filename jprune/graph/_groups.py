"""Groups: which axes of which leaves lose the same entries."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jprune._core import base
from jprune.graph._engine import dims as dims_lib
from jprune.graph._engine import layout
from jprune.graph._engine.dims import Dim


class Member(NamedTuple):
    """An axis that a group is a part of.

    Attributes:
      path: of a leaf of params.
      axis: of that leaf.
      dim: the whole axis.
    """

    path: str
    axis: int
    dim: Dim

    def __str__(self) -> str:
        return f"{self.path}[{self.axis}]"


class Group(NamedTuple):
    """Axes of params that must shrink together.

    Attributes:
      name: the path and axis of one of them.
      kind: "channel", "heads", "head", "expert", "layer" or "hidden", as the
        program uses it.
      size: how many entries can go.
      members: the axes.
      dim: the leaf that they share.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    dim: Dim

    def __str__(self) -> str:
        shown = [str(m) for m in self.members[:4]]
        shown += ["..."] if len(self.members) > 4 else []
        return f"{self.name}: {self.kind}, {self.size} entries, {', '.join(shown)}"


def find_groups(axes: dict[str, tuple[Dim, ...]]) -> dict[str, Group]:
    """Returns the groups of a recorded function by name.

    Args:
      axes: path of a leaf -> a dim for each axis.

    Returns:
      One group for each leaf dim that may shrink and that the function sums over, in
      the order of the params.
    """
    members: dict[int, list[Member]] = {}
    found: dict[int, Dim] = {}
    for path, dims in axes.items():
        for axis, d in enumerate(dims):
            for one in dict.fromkeys(dims_lib.leaves_of(d)):
                if one.size > 1 and not one.frozen and "summed" in one.marks:
                    found[id(one)] = one
                    members.setdefault(id(one), []).append(Member(path, axis, d))
    ranks = {path: sum(d.size > 1 for d in dims) for path, dims in axes.items()}
    groups: dict[str, Group] = {}
    for key, one in found.items():
        each = tuple(members[key])
        first = max(each, key=lambda m: (ranks[m.path] > 1, m.axis))
        name = _unused(str(first), groups)
        groups[name] = Group(name, _kind(one), one.size, each, one)
    return groups


def places(group: Group, member: Member) -> list[np.ndarray]:
    """Returns which entry of a group each place of an axis belongs to.

    Args:
      group: the group.
      member: one of its members.

    Returns:
      For each time that the group occurs in the axis an int array of the axis' size,
      -1 where a place does not belong to the group.
    """
    return layout.positions(member.dim, group.dim)


def is_whole(group: Group, member: Member) -> bool:
    """Returns whether a group is the whole of an axis, entry by entry."""
    return dims_lib.resolve(member.dim) is dims_lib.resolve(group.dim)


def check_known(groups: Mapping[str, Group], names: Iterable[str]) -> None:
    """Checks that names are those of groups.

    Args:
      groups: of a recorded function, by name.
      names: what was asked for.

    Raises:
      PruningError: if there is no such group; says which there are.
    """
    for name in names:
        if name not in groups:
            raise base.PruningError(
                f"There is no group {name!r}; there are: {', '.join(groups)}"
            )


def _kind(d: Dim) -> str:
    for mark, kind in (
        ("layer", "layer"),
        ("heads", "heads"),
        ("head", "head"),
        ("parallel", "expert"),
        ("channel", "channel"),
    ):
        if mark in d.marks:
            return kind
    return "hidden"


def _unused(name: str, groups: dict[str, Group]) -> str:
    return next(n for n in _numbered(name) if n not in groups)


def _numbered(name: str) -> Iterator[str]:
    yield name
    i = 1
    while True:
        yield f"{name}.{i}"
        i += 1
