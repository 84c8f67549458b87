"""What a selection must keep, by sorting in float64; and trees to try it on."""

from typing import Any

import jax
import ml_dtypes
import numpy as np

BF16 = ml_dtypes.bfloat16

# Every new shape costs a compilation, so the trees are a few and the values many.
TREES = {
    "f32": {"a": ((), "f4"), "b": ((7,), "f4"), "c": ((0,), "f4"), "d": ((3, 4), "f4")},
    "bf16": {"a": ((3, 4), BF16), "b": ((2, 0, 2), BF16), "c": ((7,), BF16)},
    "f16": {"a": ((40,), "f2")},
    "i32": {"a": ((7,), "i4"), "b": ((), "i4")},
    "u16": {"a": ((2, 3, 2), "u2")},
    "floats": {"a": ((7,), "f2"), "b": ((3, 4), BF16), "c": ((), "f4")},
    "ints": {"a": ((7,), "i1"), "b": ((3, 4), "u1"), "c": ((2,), "?"), "d": ((), "i2")},
    "u32": {"a": ((40,), "u4")},
    "empty": {"a": ((0,), "f4")},
}
FAMILIES = ("bits", "normal", "special", "tied", "constant", "top")


def special(dtype) -> np.ndarray:
    """The values at which an order of floats goes wrong first."""
    info = ml_dtypes.finfo(dtype)
    tiny = info.smallest_subnormal
    normal, most = info.smallest_normal, info.max
    values = [0, -0.0, np.inf, -np.inf, tiny, -tiny, 2 * tiny, normal, -normal]
    return np.array([*values, most, info.min, 1, -1], dtype)


def is_nan(patterns: np.ndarray, dtype) -> np.ndarray:
    """From the bits: NumPy warns when it looks at a signalling NaN."""
    infinity = np.array(np.inf, dtype).view(patterns.dtype)
    magnitude = patterns & ~np.array(-0.0, dtype).view(patterns.dtype)
    return magnitude > infinity


def _draw_integers(rng, shape, dtype, family) -> np.ndarray:
    info = np.iinfo(dtype)
    if family in ("tied", "constant"):
        return np.full(shape, 1, dtype) * rng.integers(0, 2, shape).astype(dtype)
    if family == "special":
        ends = [info.min, info.min + 1, 0, info.max]
        return rng.choice(ends, shape).astype(dtype)
    least = info.max - 3 if family == "top" else info.min
    return rng.integers(least, info.max, shape, dtype, endpoint=True)


def draw(rng, shape, dtype, family) -> np.ndarray:
    """Values without a NaN."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return _draw_integers(rng, shape, dtype, family)
    if family == "bits":
        raw = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, np.uint64)
        raw = raw.astype(f"u{dtype.itemsize}")
        return np.where(is_nan(raw, dtype), np.zeros_like(raw), raw).view(dtype)
    if family == "special":
        return rng.choice(special(dtype), shape).astype(dtype)
    if family == "tied":
        return rng.choice([-0.5, 0, -0.0, 0.5, 1], shape).astype(dtype)
    if family == "constant":
        return np.full(shape, rng.normal(), dtype)
    if family == "top":
        return rng.choice([np.inf, float(ml_dtypes.finfo(dtype).max)], shape).astype(
            dtype
        )
    return np.asarray(rng.normal(size=shape)).astype(dtype)


def make_tree(name: str, seed: int, family: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        key: np.asarray(draw(rng, shape, dtype, family))
        for key, (shape, dtype) in TREES[name].items()
    }


def values_of(tree: Any) -> np.ndarray:
    """All scores of a tree in float64, which holds every dtype here exactly."""
    leaves = [np.ravel(np.asarray(x)) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.astype(np.float64) for x in leaves])


def flat(masks: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(m)) for m in jax.tree.leaves(masks)])


def top_k(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest, by a stable sort: ties to the lower index."""
    kept = np.zeros(values.shape, bool)
    kept[np.argsort(-values, kind="stable")[: max(k, 0)]] = True
    return kept


def per_leaf(tree: Any, counts: Any) -> np.ndarray:
    return np.concatenate(
        [
            top_k(np.ravel(np.asarray(x)).astype(np.float64), int(n))
            for x, n in zip(jax.tree.leaves(tree), jax.tree.leaves(counts), strict=True)
        ]
    )


def with_floors(tree: Any, k: int, floors: Any) -> np.ndarray:
    first = per_leaf(tree, floors)
    order = np.argsort(-values_of(tree), kind="stable")
    rest = order[~first[order]]
    first[rest[: max(k - int(first.sum()), 0)]] = True
    return first


def within_budget(
    tree: Any, costs: Any, budget: int, floors: Any = None
) -> tuple[np.ndarray, int]:
    """The greedy choice in Python integers, and what it costs."""
    leaves = jax.tree.leaves(tree)
    each = [int(c) for c in jax.tree.leaves(costs)]
    unit = int(np.gcd.reduce(each))
    price = np.concatenate(
        [np.full(np.size(x), c, object) for x, c in zip(leaves, each, strict=True)]
    )
    rate = np.concatenate(
        [
            np.ravel(np.asarray(x)).astype(np.float32) * (1 / np.float32(c // unit))
            for x, c in zip(leaves, each, strict=True)
        ]
    )
    none = jax.tree.map(lambda _: 0, tree)
    kept = per_leaf(tree, none if floors is None else floors)
    paid = sum(price[kept].tolist())
    for i in np.argsort(-rate, kind="stable"):
        if kept[i]:
            continue
        if paid + price[i] > budget:
            break
        kept[i], paid = True, paid + price[i]
    return kept, paid
