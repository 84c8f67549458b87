"""The best value for its cost, against Python's integers."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles
from support.oracles import flat

import jprune as jp
from jprune import selection
from jprune._core import counting

SHAPES = {"a": (7,), "b": (), "c": (0,), "d": (3, 4), "e": (40,)}
DTYPES = {
    "f32": dict.fromkeys(SHAPES, "f4"),
    "mixed": {**dict.fromkeys(SHAPES, "f4"), "a": oracles.BF16, "d": "f2"},
    "ints": {**dict.fromkeys(SHAPES, "i2"), "a": "u1", "d": "i4"},
}
FAMILIES = ("tied", "normal", "constant", "zeros", "wide")


def _scores(name, family, seed):
    """Not negative; in "tied" and "wide" many are the same after the division."""
    rng, tree = np.random.default_rng(seed), {}
    for key, shape in SHAPES.items():
        x = {
            "tied": rng.choice([0, 1, 2, 3, 4, 6, 12], shape),
            "normal": 40 * np.abs(rng.normal(size=shape)),
            "constant": np.full(shape, 3),
            "zeros": np.where(rng.random(shape) < 0.8, 0, rng.integers(1, 99, shape)),
            "wide": rng.choice([1, 2, 3], shape) * 2 ** rng.integers(0, 6, shape),
        }[family]
        tree[key] = np.asarray(x).astype(DTYPES[name][key])
    return tree


def _costs(rng):
    most = rng.choice([1, 3, 12, 1000, 2**16])
    unit = int(rng.choice([1, 1, 5]))
    costs = {key: int(rng.integers(1, most, endpoint=True)) for key in SHAPES}
    if rng.random() < 0.5:
        costs["b"] = 1
    divisor = int(np.gcd.reduce(list(costs.values())))
    return {key: unit * c // divisor for key, c in costs.items()}


def _total(scores, costs):
    return sum(np.size(x) * costs[key] for key, x in scores.items())


@pytest.mark.parametrize("trees", [150, pytest.param(3_000, marks=pytest.mark.slow)])
def test_random_trees_equal_the_greedy_choice(trees):
    seen = collections.Counter()
    for seed in range(trees):
        rng = np.random.default_rng(seed)
        name, family = rng.choice(list(DTYPES)), rng.choice(FAMILIES)
        scores, costs, floors = _scores(name, family, seed), _costs(rng), None
        total = _total(scores, costs)
        budget = int(rng.choice([-1, 0, total, total + 1, *rng.integers(0, total, 8)]))
        if seed % 2:
            floors = {
                k: int(rng.integers(0, x.size + 1) // 3) for k, x in scores.items()
            }
        expected, paid = oracles.within_budget(scores, costs, budget, floors)
        found = selection.top_within_budget(scores, costs, budget, floors=floors)
        np.testing.assert_array_equal(flat(found), expected)
        whole = min(max(budget, 0), total)
        seen["exact" if paid == whole else "over" if paid > whole else "under"] += 1
    assert min(seen[kind] for kind in ("exact", "over", "under")) >= 10, seen


def test_inside_a_trace_the_budget_and_the_floors_may_be_traced():
    costs = {"a": 12, "b": 1, "c": 5, "d": 4, "e": 65_536}
    cases = []
    for i in range(60):
        rng = np.random.default_rng(i)
        scores = _scores("f32", FAMILIES[i % len(FAMILIES)], i)
        budget = np.int32(rng.integers(0, _total(scores, costs) + 2))
        floors = {k: np.int32(rng.integers(0, x.size + 1)) for k, x in scores.items()}
        cases.append((scores, budget, floors))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *cases)

    def masks(case):
        scores, budget, floors = case
        return (
            selection.top_within_budget(scores, costs, budget, floors=floors),
            selection.top_within_budget(scores, costs, budget),
        )

    found = jax.device_get(jax.jit(lambda x: jax.lax.map(masks, x))(stacked))
    for i, (scores, budget, floors) in enumerate(cases):
        kept, free = jax.tree.map(lambda m, i=i: m[i], found)
        expected, _ = oracles.within_budget(scores, costs, int(budget), floors)
        np.testing.assert_array_equal(flat(kept), expected)
        expected, _ = oracles.within_budget(scores, costs, int(budget))
        np.testing.assert_array_equal(flat(free), expected)


def _top_within(costs):
    return lambda scores, budget: selection.top_within_budget(scores, costs, budget)


def test_equal_scores_of_equal_cost_tie_whatever_their_shapes():
    """Divided by 7, a float is another one if XLA multiplies by 1 / 7 instead."""
    scores = {
        "a": np.float32(3),
        "b": np.full((40,), 3, "f4"),
        "c": np.full(1, 3, "f4"),
    }
    costs = {"a": 7, "b": 7, "c": 7, "d": 1}
    scores["d"] = np.zeros(3, "f4")
    for select in (_top_within(costs), jax.jit(_top_within(costs))):
        for k in (1, 2, 41):
            found = select(scores, 7 * k)
            assert flat(found).tolist() == [True] * k + [False] * (45 - k)


@pytest.mark.parametrize("cost", [1, 65_537, 3 * 2**40])
def test_equal_costs_are_a_top_k(cost):
    scores = _scores("mixed", "tied", 0)
    for k in (0, 1, 30, 60):
        budget = k * cost + cost // 2
        found = selection.top_within_budget(scores, dict.fromkeys(scores, cost), budget)
        np.testing.assert_array_equal(flat(found), flat(selection.top_k(scores, k)))


def test_a_larger_budget_keeps_what_a_smaller_one_does():
    scores, costs = _scores("f32", "wide", 1), {"a": 9, "b": 2, "c": 1, "d": 4, "e": 6}
    floors = {"a": 1, "b": 0, "c": 0, "d": 3, "e": 2}
    for kept_anyway in (None, floors):
        before = np.zeros(60, bool)
        for budget in range(0, _total(scores, costs) + 7, 7):
            masks = selection.top_within_budget(
                scores, costs, budget, floors=kept_anyway
            )
            assert not np.any(before & ~flat(masks))
            before = flat(masks)
        assert before.all()


@pytest.mark.parametrize(
    "family", [pytest.param("normal", marks=pytest.mark.slow), "tied"]
)
def test_budgets_beyond_2_32(family):
    rng = np.random.default_rng(0)
    scores = {
        "a": oracles.draw(rng, (300, 400), "f4", family),
        "b": oracles.draw(rng, (90_000,), oracles.BF16, family),
        "c": oracles.draw(rng, (13, 17), "f4", family),
    }
    scores = jax.tree.map(np.abs, scores)
    costs = {"a": 65_536, "b": 40_961, "c": 1}
    total = _total(scores, costs)
    assert total > 2**33
    traced = jax.jit(_top_within(costs))
    for budget in (2**32, 2**32 - 1, 2**31 + 1, 2**33 + 12_345, total - 1, total):
        expected, paid = oracles.within_budget(scores, costs, budget)
        assert paid <= budget
        found = selection.top_within_budget(scores, costs, budget)
        np.testing.assert_array_equal(flat(found), expected)
        found = traced(scores, counting.total(budget))
        np.testing.assert_array_equal(flat(found), expected)


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-36, 8e-34, 1e38])
def test_scores_whose_quotients_leave_the_range_of_float32(size):
    """Ranked in float64: the least quotient here is 2^-165, 16 orders below a float32.

    Small integers times the size, so that float32 and the quotients are exact.
    """
    rng = np.random.default_rng(0)
    unit = np.float32(size) if size < 1 else np.float32(2.0**123)
    scores = {
        "a": rng.integers(0, 9, 40).astype("f4") * unit,
        "b": rng.integers(0, 9, (3, 7)).astype("f4") * unit,
        "c": rng.integers(0, 9, 30).astype("f4") * unit,
    }
    costs = {"a": 65_536, "b": 1, "c": 256}  # powers of two: no quotient is rounded
    quotient = np.concatenate(
        [np.ravel(x).astype("f8") / costs[key] for key, x in scores.items()]
    )
    price = np.concatenate([np.full(x.size, costs[key]) for key, x in scores.items()])
    order = np.argsort(-quotient, kind="stable")
    paid = np.cumsum(price[order])
    for budget in (1, 20, 3_000, 500_000, 2_000_000):
        expected = np.zeros(91, bool)
        expected[order[paid <= budget]] = True
        for select in (_top_within(costs), jax.jit(_top_within(costs))):
            np.testing.assert_array_equal(flat(select(scores, budget)), expected)


def test_with_equal_costs_nothing_is_rounded_or_flushed():
    scores = {
        "small": np.float32([1e-40, 3e-40, -2e-40, 2e-40]),
        "more": np.float32([1e-45, -1.0, 1e-39]),
    }
    wide = {"a": np.int32([2**24 + 1, 2**24, 2**24 + 2]), "b": np.int32([2**31 - 1])}
    for tree in (scores, wide):
        for cost in (1, 4):
            for k in range(8):
                found = _top_within(dict.fromkeys(tree, cost))(
                    tree, cost * k + cost - 1
                )
                np.testing.assert_array_equal(
                    flat(found), flat(selection.top_k(tree, k))
                )


@pytest.mark.parametrize("unit", [1, 1_000, 70_001, 3 * 2**33])
def test_budgets_of_two_words_are_divided_by_what_all_costs_share(unit):
    scores, costs = _scores("f32", "wide", 1), {"a": 9, "b": 2, "c": 1, "d": 4, "e": 6}
    priced = {key: unit * cost for key, cost in costs.items()}
    traced = jax.jit(_top_within(priced))
    for budget in (0, 17, 100, 209, 10_000):
        expected, _ = oracles.within_budget(scores, costs, budget)
        for rest in (0, unit - 1):
            most = unit * budget + rest
            for given in (most, counting.total(min(most, 2**47 - 1))):
                if most < 2**47 or given is most:
                    found = selection.top_within_budget(scores, priced, given)
                    np.testing.assert_array_equal(flat(found), expected)
            if most < 2**47:
                found = traced(scores, counting.total(most))
                np.testing.assert_array_equal(flat(found), expected)


def test_what_is_no_cost_is_refused_by_path():
    scores = {"x": {"w": jnp.ones(3)}, "y": jnp.ones(2)}

    def select(cost):
        return selection.top_within_budget(scores, {"x": {"w": cost}, "y": 1}, 2)

    for cost in (0, -3, 1.5, True, 70_000, 2**70, "2", None, np.array([1, 2])):
        with pytest.raises(jp.PruningError, match="'x/w' is"):
            select(cost)
    with pytest.raises(jp.PruningError, match="'x/w' is"):
        jax.jit(select)(3)
    for cost in (1, np.int64(1), np.uint8(1), jnp.int32(1)):
        assert flat(select(cost)).sum() == 2


@pytest.mark.parametrize("budget", [2.5, True, "3", None, np.float32(2)])
def test_what_is_no_budget(budget):
    with pytest.raises(jp.PruningError, match=r"A budget is an integer; got"):
        selection.top_within_budget({"a": jnp.ones(3)}, {"a": 2}, budget)


def test_a_nan_is_named():
    scores = {"a": jnp.ones(3), "b": jnp.array([1.0, jnp.nan])}
    with pytest.raises(jp.NonFiniteScoreError, match=r"NaN scores in 'b' \(1 of 2\)"):
        selection.top_within_budget(scores, {"a": 3, "b": 2}, 5)
