"""Selections inside a trace: alone, mapped one by one, and in a `vmap`."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles
from support.oracles import FAMILIES, flat, make_tree, values_of

from jprune import selection

TREES_OF_EACH = 24


def _cases(name):
    """Trees of all families with a k and floors each, along a first axis."""
    rng, cases = np.random.default_rng(3), []
    for i in range(TREES_OF_EACH):
        for family in FAMILIES:
            tree = make_tree(name, 1000 * i + len(cases), family)
            n = values_of(tree).size
            share = rng.choice([0.0, 0.1, 0.5, 1.0])
            floors = {
                key: np.int32(rng.integers(0, int(share * x.size) + 1))
                for key, x in tree.items()
            }
            k = rng.choice([0, n, n + 1, rng.integers(0, n + 1), rng.integers(0, n)])
            cases.append((tree, np.int32(k), floors))
    return cases


def _all(case):
    tree, k, floors = case
    return {
        "global": selection.top_k(tree, k),
        "leaf": selection.top_k_per_leaf(tree, floors),
        "floors": selection.top_k_with_floors(tree, k, floors),
        "counts": selection.count_top_k(tree, k),
    }


def _check(found, case, seen):
    tree, k, floors = case
    k = min(int(k), values_of(tree).size)
    expected = oracles.top_k(values_of(tree), k)
    np.testing.assert_array_equal(flat(found["global"]), expected)
    counts = [int(np.sum(m)) for m in jax.tree.leaves(found["global"])]
    assert [int(c) for c in jax.tree.leaves(found["counts"])] == counts
    np.testing.assert_array_equal(flat(found["leaf"]), oracles.per_leaf(tree, floors))
    with_floors = oracles.with_floors(tree, k, floors)
    np.testing.assert_array_equal(flat(found["floors"]), with_floors)
    bind = np.any(with_floors != expected)
    seen["exceed" if sum(floors.values()) > k else "bind" if bind else ""] += 1


@pytest.mark.parametrize(
    ("name", "mapped"),
    [
        ("bf16", jax.lax.map),
        ("ints", jax.lax.map),
        ("i32", jax.lax.map),
        ("floats", lambda f, x: jax.vmap(f)(x)),
    ],
)
def test_inside_a_trace(name, mapped):
    cases, seen = _cases(name), collections.Counter()
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *cases)
    found = jax.device_get(jax.jit(lambda x: mapped(_all, x))(stacked))
    for i, case in enumerate(cases):
        _check(jax.tree.map(lambda x, i=i: x[i], found), case, seen)
    assert min(seen[kind] for kind in ("exceed", "bind", "")) >= 1, seen


def test_known_scores_inside_a_trace():
    scores = make_tree("f32", 1, "normal")
    found = jax.jit(lambda: selection.top_k(scores, 5))()
    np.testing.assert_array_equal(flat(found), oracles.top_k(values_of(scores), 5))


def test_in_a_scan():
    scores = make_tree("f32", 1, "tied")
    _, found = jax.lax.scan(
        lambda k, _: (k + 1, selection.top_k(scores, k)), jnp.int32(0), length=21
    )
    for k in range(21):
        masks = jax.tree.map(lambda m, k=k: m[k], found)
        np.testing.assert_array_equal(flat(masks), oracles.top_k(values_of(scores), k))


@pytest.mark.optimized
def test_what_a_trace_holds_at_a_time_and_that_nothing_is_sorted():
    """Kernels read the scores where they lie: no copy of keys, ranks or pivots."""
    shapes = {"a": (1000, 1000), "b": (2**20,), "c": (64, 128, 128)}
    dtypes = {"a": jnp.float32, "b": jnp.float32, "c": jnp.bfloat16}
    scores = {k: jax.ShapeDtypeStruct(s, dtypes[k]) for k, s in shapes.items()}
    weights = sum(int(np.prod(s)) for s in shapes.values())
    floors, costs = {"a": 10, "b": 20, "c": 0}, {"a": 3, "b": 1, "c": 2}
    for select in (
        selection.top_k,
        lambda s, k: selection.top_k_per_leaf(s, {"a": k, "b": 5, "c": k}),
        lambda s, k: selection.top_k_with_floors(s, k, floors),
        lambda s, k: selection.top_within_budget(s, costs, k, floors=floors),
    ):
        compiled = jax.jit(select).lower(scores, np.int32(5)).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= 0.6 * weights
        program = compiled.as_text()
        assert "reduce(" in program  # so that these would be seen:
        for line in program.splitlines():
            name = line.partition(" = ")[2].partition("(")[0].split(" ")[-1]
            assert name != "sort", line
            if name in ("concatenate", "gather", "scatter"):
                shape = line.partition("[")[2].partition("]")[0]
                assert np.prod([int(d) for d in shape.split(",") if d]) < 1000, line


def _different_kernels(leaves):
    """How many different fused computations a program has, names aside."""
    scores = {f"w{i:03d}": jnp.full((5, 7), i, jnp.float32) for i in range(leaves)}
    select = jax.jit(lambda scores: selection.top_k(scores, 40))
    text = select.lower(scores).compile().as_text()
    bodies = re.findall(r"^%fused_computation\S* \(.*?\{\n(.*?)^\}", text, re.M | re.S)
    assert len(bodies) > leaves
    # Without metadata, and with each name as its kind of instruction.
    plain = [re.sub(r", metadata=\{.*?\}", "", body) for body in bodies]
    return len({re.sub(r"%([a-z_-]+)[\w.-]*", r"%\1", body) for body in plain})


@pytest.mark.optimized
def test_leaves_of_one_shape_compile_to_the_same_kernels():
    """XLA compiles equal kernels once: thousands of leaves need a few."""
    few, many = _different_kernels(24), _different_kernels(48)
    assert many <= few + 4, (few, many)
