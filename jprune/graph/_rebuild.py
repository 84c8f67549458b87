"""A module of the same class at the kept widths, whose own code runs.

Modules that hold their arrays keep their widths beside them, as attributes that are
numbers: `out_features`, `kernel_shape`, `num_heads`. An attribute follows an array if
it equals sizes of consecutive axes of it. Whether the result is right is not read from
names: it has to compute what the small function computes.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import tree
from jprune._core import base
from jprune.graph._plan import Keep, Plan, make_plan
from jprune.graph._roles import layout
from jprune.graph._shrink import shrink
from jprune.graph._slicing import slice_tree
from jprune.graph._state import children
from jprune.graph._trace import Graph

Shape = tuple[int, ...]


class _Resized(NamedTuple):
    """A leaf of the module: its path, and its shape before and after."""

    path: str
    before: Shape
    after: Shape


class _Holder(NamedTuple):
    """An object with attributes, and the leaves that lie in it.

    Attributes:
      path: its path, "" for the module itself.
      owner: the object, which has the small arrays already.
      numbers: its attributes that are numbers or tuples of numbers.
      own: leaves that lie in no object with attributes inside of it.
      below: all leaves in it.
    """

    path: str
    owner: Any
    numbers: dict[str, Any]
    own: list[_Resized]
    below: list[_Resized]


class _Change(NamedTuple):
    """New sizes of an attribute."""

    holder: _Holder
    name: str
    after: Shape


def rebuild(
    graph: Graph,
    module: Any,
    plan: Plan | None = None,
    *,
    keep: Keep | None = None,
    call: Callable[..., Any] | None = None,
) -> Any:
    """Returns a module of the same class with the small arrays, to be called itself.

    Attributes that are numbers, or tuples of numbers, follow the arrays:

    - those of an object that holds arrays, where they equal sizes of consecutive axes
      of one. If such axes become different, attributes whose names begin with `in` or
      `out` follow the input or output axes of kernels, and others stay;
    - those of objects around it, where all axes of that size in them become the same;
    - if need be, one that divides a size, such as a number of heads, in proportion.

    Then the module is called on random params and inputs, and has to compute what the
    small function computes: record a function that draws no random numbers, such as the
    module in evaluation mode. Attributes that the call does not read are not checked.

    Args:
      graph: the recorded function.
      module: the full module, for classes that hold their arrays, such as those of
        Flax NNX and Equinox: the params that were traced, or a module that has arrays
        at their paths beside other leaves.
      plan: the kept entries of leaves, as from `make_plan` or `loads`.
      keep: the kept entries of groups, as from `choose`, in place of a plan.
      call: `(module, *inputs) -> results`, what was traced in terms of the module; None
        for the traced function itself.

    Returns:
      The small module; the full one is unchanged.

    Raises:
      PruningError: if not exactly one of plan and keep is given, if it does not fit
        the graph, or if the rebuilt module fails or computes something else; names the
        attributes that may stand in the way.

    Example:
      >>> import dataclasses, functools, jax, jax.numpy as jnp
      >>> from jprune import graph as jg
      >>> @functools.partial(
      ...   jax.tree_util.register_dataclass, data_fields=["w", "v"],
      ...   meta_fields=["width"])
      ... @dataclasses.dataclass
      ... class MLP:
      ...   w: jax.Array
      ...   v: jax.Array
      ...   width: int
      ...   def __call__(self, x):
      ...     hidden = jax.nn.relu(x @ self.w).reshape(-1, self.width)
      ...     return hidden @ self.v
      >>> mlp, x = MLP(jnp.ones((3, 8)), jnp.ones((8, 2)), 8), jnp.ones((5, 3))
      >>> graph = jg.trace(lambda mlp, x: mlp(x), mlp, x)
      >>> small = jg.rebuild(graph, mlp, keep={"w[1]": [0, 2, 3]})
      >>> small.width, small(x).shape
      (3, (5, 2))
    """
    leaves = tree.by_path(module)
    missing = [path for path in graph.axes if path not in leaves]
    if missing:
        raise base.PruningError(f"The module lacks the traced leaves {missing}.")
    traced = [leaves[path] for path in graph.axes]
    params = jax.tree.unflatten(jax.tree.structure(graph.params), traced)
    small_fn, small = shrink(graph, params, plan, keep=keep)
    if plan is None:
        plan = make_plan(graph, keep or {})
    rebuilt = slice_tree(plan, module)
    holders = _holders(rebuilt, leaves)
    roles = functools.cache(lambda: layout(graph))
    agrees = _agreement(graph, small_fn, small, call or graph.fn)
    own = [x for h in holders for x in _of_own(h, roles)]
    around = [x for h in holders for x in _of_others(h)]
    scaled = [x for h in holders for x in _in_proportion(h)]
    each = [own + around, own, *(own + around + x for x in _by_attribute(scaled))]
    each.append(own + around + scaled)
    reasons = []
    for changes in each:
        _write(holders, changes)
        why = agrees(rebuilt)
        if not why:
            return rebuilt
        reasons.append(why)
    _write(holders, each[0])
    raise base.PruningError(_message(graph, holders, reasons[0]))


def _holders(small: Any, full: dict[str, Any]) -> list[_Holder]:
    """Returns the objects of a module that have attributes.

    Args:
      small: the module with small arrays.
      full: path -> leaf of the full module.
    """
    found: list[_Holder] = []

    def visit(node: Any, keys: tuple[Any, ...]) -> tuple[list[_Resized], ...]:
        level = children(node)
        if level is None:
            path = tree.leaf_path(keys)
            leaf = [_Resized(path, np.shape(full[path]), np.shape(node))]
            leaf = leaf if hasattr(node, "shape") else []
            return leaf, leaf
        own: list[_Resized] = []
        below: list[_Resized] = []
        for key, child in level:
            a, b = visit(child, (*keys, *key))
            own, below = own + a, below + b
        numbers = {n: x for n, x in _attributes(node).items() if _is_size(x)}
        box = len(level) == 1 and children(level[0][1]) is None  # as NNX's Variables
        if numbers or (hasattr(node, "__dict__") and not box):
            found.append(_Holder(tree.leaf_path(keys), node, numbers, own, below))
            own = []
        return own, below

    visit(small, ())
    return found


def _attributes(node: Any) -> dict[str, Any]:
    return getattr(node, "__dict__", {})


def _is_size(value: Any) -> bool:
    """Whether a value is a number or a tuple of numbers that could be sizes."""
    each = value if type(value) is tuple else (value,)
    return bool(each) and all(type(n) is int and n > 0 for n in each) and max(each) > 1


def _windows(value: Any, leaf: _Resized) -> Iterator[tuple[set[int], Shape]]:
    """Returns the consecutive axes that have given sizes, and their sizes after."""
    sizes = value if type(value) is tuple else (value,)
    for i in range(len(leaf.before) - len(sizes) + 1):
        window = slice(i, i + len(sizes))
        if leaf.before[window] == sizes:
            yield set(range(i, i + len(sizes))), leaf.after[window]


def _of_own(
    holder: _Holder, roles: Callable[[], tree.KernelLayout]
) -> Iterator[_Change]:
    """Yields attributes that equal sizes of arrays that an object holds itself."""
    for name, value in holder.numbers.items():
        found = [(x, *w) for x in holder.own for w in _windows(value, x)]
        options = {after for _, _, after in found}
        if len(options) > 1:
            options = {
                after
                for leaf, axes, after in found
                if axes <= _axes_of_role(name, leaf, roles)
            }
        if len(options) == 1:
            yield _Change(holder, name, *options)


def _axes_of_role(
    name: str, leaf: _Resized, roles: Callable[[], tree.KernelLayout]
) -> set[int]:
    """Returns the axes of a kernel that an attribute such as `in_features` is about."""
    side = name.split("_")[0]
    if side not in ("in", "input", "out", "output"):
        return set()
    try:
        axes = roles()(leaf.path, jax.ShapeDtypeStruct(leaf.before, jnp.float32))
    except base.PruningError:  # no product uses it, or several in different ways
        return set()
    return set(axes.input if side.startswith("in") else axes.output)


def _of_others(holder: _Holder) -> Iterator[_Change]:
    """Yields attributes that equal sizes of arrays in objects inside of this one."""
    for name, value in holder.numbers.items():
        if not any(True for x in holder.own for _ in _windows(value, x)):
            options = {after for x in holder.below for _, after in _windows(value, x)}
            if len(options) == 1:
                yield _Change(holder, name, *options)


def _in_proportion(holder: _Holder) -> Iterator[_Change]:
    """Yields attributes that divide a size, such as a number of heads or groups."""
    for name, value in holder.numbers.items():
        if type(value) is int:
            found = {
                (value * after // before,)
                for leaf in holder.below
                for before, after in zip(leaf.before, leaf.after, strict=True)
                if before > after and before % value == value * after % before == 0
            }
            if len(found) == 1:
                yield _Change(holder, name, *found)


def _by_attribute(changes: Sequence[_Change]) -> list[list[_Change]]:
    """Returns changes of the same attribute of the same class together."""
    found: dict[Any, list[_Change]] = {}
    for change in changes:
        key = type(change.holder.owner), change.name
        found.setdefault(key, []).append(change)
    return list(found.values())


def _write(holders: Sequence[_Holder], changes: Sequence[_Change]) -> None:
    """Sets the attributes of all objects as they were, but for changes."""
    for holder in holders:
        for name, value in holder.numbers.items():
            object.__setattr__(holder.owner, name, value)  # frozen dataclasses, too
    for holder, name, after in changes:
        value = after if type(holder.numbers[name]) is tuple else after[0]
        object.__setattr__(holder.owner, name, value)


def _agreement(
    graph: Graph, small_fn: Callable[..., Any], small: Any, call: Callable[..., Any]
) -> Callable[[Any], str]:
    """Returns the function that says how a module differs from the small function.

    Args:
      graph: the recorded function.
      small_fn: the small function.
      small: its params.
      call: `(module, *inputs) -> results`.

    Returns:
      `module -> why`, "" if they agree on random params and inputs.
    """
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: _drawn(rng, x), small)
    inputs = jax.tree.map(lambda x: _drawn(rng, x), graph.inputs)
    with jax.default_matmul_precision("highest"):
        wanted = jax.tree.leaves(jax.jit(small_fn)(params, *inputs))
    drawn = dict(zip(graph.axes, jax.tree.leaves(params), strict=True))

    def agrees(module: Any) -> str:
        def run(drawn: Any, inputs: Any) -> Any:
            full = tree.map_with_path(lambda path, x: drawn.get(path, x), module)
            return call(full, *inputs)

        try:
            with jax.default_matmul_precision("highest"):
                found = jax.tree.leaves(jax.jit(run)(drawn, inputs))
        except Exception as e:  # whatever the module's own code raises
            return f"it raises {type(e).__name__}: {e}"
        shapes = [[x.shape for x in each] for each in (found, wanted)]
        if shapes[0] != shapes[1]:
            return f"its results have shapes {shapes[0]}, not {shapes[1]}"
        numbers = [y for y in wanted if jnp.issubdtype(y.dtype, jnp.inexact) and y.size]
        if numbers and not any(bool(jnp.isfinite(y).any()) for y in numbers):
            return "on random numbers its results are not finite: nothing to compare"
        # A position may be another by rounding, where numbers are compared beside it.
        few = 1 if numbers else 0
        if not all(_is_near(x, y, few) for x, y in zip(found, wanted, strict=True)):
            return "it computes something else than the small function"
        return ""

    return agrees


def _drawn(rng: np.random.Generator, x: Any) -> Any:
    """Returns random values for a leaf: of kernels of a size that keeps sums small."""
    shape, dtype = np.shape(x), jax.dtypes.result_type(x)
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), shape)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(rng.integers(0, 2, shape), dtype)
    flat = len(shape) > 2 and sum(n > 1 for n in shape) < 2  # such as (channels, 1, 1)
    if len(shape) < 2 or flat:  # scales, biases, variances
        return jnp.asarray(rng.uniform(0.5, 1.5, shape), dtype)
    return jnp.asarray(rng.normal(size=shape) * np.prod(shape[:-1]) ** -0.5, dtype)


def _is_near(x: jax.Array, y: jax.Array, few: int) -> bool:
    """Returns whether results agree; of others than numbers, but for a few."""
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        return int((x != y).sum()) <= max(few, 0.01 * y.size)
    tolerance, x = max(1e-3, 4 * float(jnp.finfo(y.dtype).eps)), x.astype(y.dtype)
    finite = jnp.isfinite(y)
    size = jnp.where(finite, jnp.abs(y), 0)
    near = jnp.abs(x - y) <= tolerance * (size + size.max(initial=0))
    same = (x == y) | (jnp.isnan(x) & jnp.isnan(y))  # such as logits of masked tokens
    return bool(jnp.where(finite, near, same).all())


def _message(graph: Graph, holders: Sequence[_Holder], why: str) -> str:
    """Returns the message of a module that could not be rebuilt."""
    names = [
        f"{h.path}/{name} = {value}".lstrip("/")
        for h in holders
        for name, value in h.numbers.items()
        if any(x.before != x.after for x in h.below) and getattr(h.owner, name) == value
    ]
    kept = [str(note) for note in graph.notes if note.kind == "kept"]
    return (
        f"The module cannot be rebuilt: {why}. Attributes that do not follow: "
        f"{', '.join(names) or 'none'}."
        + (f" The small function differs: {'; '.join(kept)}." if kept else "")
    )
