"""From scores to masks: exact counts by hand, n:m against sorting."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from support import oracles

import jprune as jp
from jprune import links


def _run(link, scores, params=None, **extra):
    params = scores if params is None else params
    return link.update(scores, link.init(params), params, **extra)[0]


def _counts(masks):
    return jax.tree.map(lambda m: int(jnp.sum(m)), masks)


TREE = {"big": jnp.arange(10.0, 20), "small": jnp.array([0.1, 0.3, 0.2, 0.0])}


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (jp.keep_top(0.5), {"big": 5, "small": 2}),
        (jp.keep_top(0.5, scope="global"), {"big": 7, "small": 0}),
        (jp.keep_top(0.5, scope="global", min_kept=2), {"big": 5, "small": 2}),
        (jp.keep_top(0.9, scope="global", min_kept=3), {"big": 3, "small": 3}),
        (jp.keep_top(0.5, scope="global", min_kept=9), {"big": 9, "small": 4}),
        (jp.keep_top(0.9, min_kept=3), {"big": 3, "small": 3}),
        (jp.keep_top(0.5, min_kept=6), {"big": 6, "small": 4}),
        (jp.keep_top(0.0), {"big": 10, "small": 4}),
        *((jp.keep_top(one), {"big": 0, "small": 0}) for one in (1.0, 1)),
        (jp.keep_top(1.0, min_kept=1), {"big": 1, "small": 1}),
        (jp.keep_top(np.float32(0.5)), {"big": 5, "small": 2}),
        (jp.keep_top(jnp.float32(0.5)), {"big": 5, "small": 2}),
        (jp.keep_top(lambda step: 0.5), {"big": 5, "small": 2}),
        (
            jp.keep_top(0.5, allocation=links.uniform(pins=[("small", 0.0)])),
            {"big": 3, "small": 4},
        ),
    ],
)
def test_counts_by_hand(link, expected):
    masks = _run(link, TREE)
    assert _counts(masks) == expected
    for key, count in expected.items():  # and they are the largest
        kept, gone = TREE[key][masks[key]], TREE[key][~masks[key]]
        assert kept.size == count
        assert kept.size == 0 or gone.size == 0 or kept.min() > gone.max()


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_jit_gives_the_same(scope):
    link = jp.keep_top(0.3, scope=scope, min_kept=3)
    eager, jitted = _run(link, TREE), jax.jit(lambda s: _run(link, s))(TREE)
    for key in TREE:
        np.testing.assert_array_equal(eager[key], jitted[key])


@pytest.mark.parametrize("scope", ["leaf", "global"])
def test_the_clock_is_the_step_or_the_own_count(scope):
    link = jp.keep_top(lambda step: step / 10, scope=scope)
    scores, state = {"w": jnp.arange(10.0)}, link.init(None)
    for t in range(4):
        masks, state = jax.jit(link.update)(scores, state, scores)
        assert int(masks["w"].sum()) == 10 - t
        assert int(state.count) == t + 1
    for step in (jnp.int32(7), 7):
        masks, state = link.update(scores, state, scores, step=step)
        assert int(masks["w"].sum()) == 3


def test_one_trace_serves_all_sparsities_and_vmap():
    traces = []

    @jax.jit
    def count(sparsity):
        traces.append(None)
        return jax.tree.map(jnp.sum, _run(jp.keep_top(sparsity), TREE))

    values = jnp.array([0.0, 0.25, 0.5, 1.0])
    alone = [count(s) for s in values]
    assert len(traces) == 1
    assert [int(sum(c.values())) for c in alone] == [14, 10, 7, 0]
    together = jax.vmap(count)(values)
    for i, counts in enumerate(alone):
        assert all(together[key][i] == counts[key] for key in counts)


@pytest.mark.parametrize("seed", [0, 1])
def test_pooled_masks_have_a_shape_that_broadcasts(seed):
    rng = np.random.default_rng(seed)
    params = {"w": jnp.zeros((4, 6, 5))}
    scores = rng.normal(size=(1, 3, 5)).astype(np.float32)
    mask = _run(jp.keep_top(7 / 15), {"w": jnp.asarray(scores)}, params)["w"]
    assert mask.shape == (1, 6, 5)
    cut = np.sort(scores.ravel())[-8]
    np.testing.assert_array_equal(mask, np.repeat(scores >= cut, 2, axis=1))


@pytest.mark.parametrize(
    ("threshold", "scores", "expected"),
    [
        (0.5, np.array([0.4, 0.5, 0.6], "f4"), [False, False, True]),
        # 0.3 lies between two bfloat16 numbers and must not be rounded to one.
        (0.3, np.array([0.298828125, 0.30078125], ml_dtypes.bfloat16), [False, True]),
        (-0.5, np.array([-1, 0, 1], "i4"), [False, True, True]),
        (0.5, np.array([0, 1], "u1"), [False, True]),
        (2.0, np.array([1, 2, 3], "i2"), [False, False, True]),
        (1, np.array([0.5, 1, 1.5], "f2"), [False, False, True]),
        (-np.inf, np.array([-np.inf, 0], "f4"), [False, True]),
        (lambda step: 2 * step, np.array([5.0, 7.0], "f4"), [False, True]),
        (jnp.float32(0.0), np.array([-0.0, 1e-30], "f4"), [False, True]),
        # Subnormal numbers, which devices flush to zero, are numbers.
        (0.0, np.array([-0.0, 1e-45, -1e-45, 1e-40], "f4"), [False, True, False, True]),
        (2e-40, np.array([1e-40, 2e-40, 3e-40], "f4"), [False, False, True]),
        (1e-40, np.array([0, 2e-40], ml_dtypes.bfloat16), [False, True]),
        # Thresholds that the scores' type does not hold.
        (-1.0, np.array([0, 1], "u1"), [True, True]),
        (-1, np.array([0, 1], "u4"), [True, True]),
        (-1e9, np.array([-128, 0], "i1"), [True, True]),
        (-np.inf, np.array([-(2**31), 0], "i4"), [True, True]),
        (np.inf, np.array([0, 2**31 - 1], "i4"), [False, False]),
        (300, np.array([44, 255], "u1"), [False, False]),
        (2.0**31, np.array([-(2**31), 2**31 - 1], "i4"), [False, False]),
        (2**40, np.array([0, 2**32 - 1], "u4"), [False, False]),
        (np.float32(2**31), np.array([0, 2**31 - 1], "i4"), [False, False]),
        (np.float16(np.inf), np.array([0, 2**31 - 1], "i4"), [False, False]),
        (np.float16(-np.inf), np.array([-(2**31), 0], "i4"), [True, True]),
        (np.array(2**31, "f4"), np.array([2**31, 2**31 + 256], "u4"), [False, True]),
        (lambda step: np.float16(2), np.array([2, 3], "u4"), [False, True]),
        # A float32 has no 2^24 + 1.
        (2**24 + 1, 2**24 + np.array([0, 1, 2], "i4"), [False, False, True]),
        (2.0**24 + 1, 2**24 + np.array([0, 1, 2], "i4"), [False, False, True]),
        (2**32 - 2, np.array([2**32 - 2, 2**32 - 1], "u4"), [False, True]),
    ],
)
def test_keep_above(threshold, scores, expected):
    scores = {"w": jnp.asarray(scores)}
    mask = _run(jp.keep_above(threshold), scores, step=jnp.int32(3))["w"]
    assert mask.tolist() == expected


@pytest.mark.parametrize("threshold", [float("nan"), np.float32("nan"), "1", None])
def test_what_is_no_threshold(threshold):
    for link in (jp.keep_above, lambda t: jp.keep_above(lambda step: t)):
        for scores in (jnp.arange(3), jnp.arange(3.0)):
            with pytest.raises(jp.PruningError, match=r"A threshold is a number .*got"):
                _run(link(threshold), {"w": scores})


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4"])
def test_integers_above_traced_thresholds(dtype):
    """Against Python's integers, at and beyond the ends of both types."""
    info = np.iinfo(dtype)
    ends = [int(info.min), int(info.max)]
    scores = np.array(sorted({*ends, ends[0] + 1, ends[1] - 1, 0, 1, 100}), dtype)
    above = jax.jit(lambda t: _run(jp.keep_above(t), {"w": jnp.asarray(scores)})["w"])
    for kind in ("i1", "u1", "i4", "u4", "f4", "f2"):
        limits = np.finfo(kind) if kind[0] == "f" else np.iinfo(kind)
        lowest, highest = np.array([limits.min, limits.max], kind).tolist()
        near = [e + d for e in (*ends, 0, 100) for d in (-1, 0, 1)]
        near = [t for t in near if lowest <= t <= highest]
        thresholds = np.array([*near, lowest, highest], kind)
        if kind[0] == "f":
            odd = np.array([-0.5, 99.5, -np.inf, np.inf, np.nan], kind)
            thresholds = np.concatenate([thresholds, odd])
        found = jax.vmap(above)(thresholds)
        for t, mask in zip(thresholds.tolist(), found, strict=True):
            # A NaN prunes nothing, as `checkify` reports it and a mask would not.
            assert mask.tolist() == [not int(x) <= t for x in scores], (kind, t)


def _n_of_m(x, n, m, axis):
    """By sorting: of each m along the axis the n largest, ties to the lower index."""
    x = np.moveaxis(x.astype(np.float64), axis, -1)
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // m, m)
    order = np.argsort(-groups, axis=-1, kind="stable")
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, order[..., :n], True, axis=-1)
    return np.moveaxis(mask.reshape(x.shape), -1, axis)


@pytest.mark.parametrize(
    "dtype", ["f4", ml_dtypes.bfloat16, "f2", ml_dtypes.float8_e4m3fn, "i4", "i1", "u1"]
)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 8), (1, 1), (5, 5)])
def test_n_of_m_against_sorting(n, m, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, (3, m * 4, 6)).astype(dtype)  # many ties
    if np.dtype(dtype).kind != "u":
        x[0] = -x[0]
    if np.dtype(dtype).kind == "f":
        x[1, ::2] = rng.choice([0.0, -0.0, np.inf, -np.inf, 6e-8], x[1, ::2].shape)
    link = jp.keep_n_of_m(n, m)
    scores = {"conv": jnp.asarray(x)}
    mask = np.asarray(_run(link, scores)["conv"])
    np.testing.assert_array_equal(mask, _n_of_m(x, n, m, 1))
    jitted = jax.jit(lambda s: _run(link, s))(scores)
    np.testing.assert_array_equal(jitted["conv"], mask)
    if n == m:
        assert mask.all()


@pytest.mark.parametrize(
    ("path", "shape", "role", "axis"),
    [
        ("dense/kernel", (8, 4), "input", 0),
        ("dense/kernel", (8, 4), "output", 1),
        ("dense/weight", (4, 8), "input", 1),
        ("conv/kernel", (3, 3, 8, 4), "input", 2),
        ("conv/weight", (4, 8, 3, 3), "input", 1),
        ("query/kernel", (8, 2, 4), "input", 0),
        ("query/kernel", (8, 2, 4), "output", 2),
        ("out/kernel", (2, 4, 8), "input", 1),
    ],
)
def test_groups_run_along_the_axis_of_that_role(path, shape, role, axis):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layer, name = path.split("/")
    tree = {layer: {name: jnp.asarray(x)}}
    mask = _run(jp.keep_n_of_m(2, 4, axis=role), tree)[layer][name]
    np.testing.assert_array_equal(mask, _n_of_m(x, 2, 4, axis))


def test_an_own_layout():
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    layout = lambda path, leaf: jp.KernelAxes((1,), (0,))  # noqa: E731
    mask = _run(jp.keep_n_of_m(1, 3, layout=layout), {"w": jnp.asarray(x)})["w"]
    np.testing.assert_array_equal(mask, _n_of_m(x, 1, 3, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jp.keep_top(1.1), r"in \[0, 1\]; got 1.1"),
        (lambda: jp.keep_top(float("nan")), r"in \[0, 1\]; got nan"),
        (lambda: jp.keep_top(0.5, scope="layer"), "'leaf' or 'global'; got 'layer'"),
        (
            lambda: jp.keep_top(0.5, scope="global", allocation=links.uniform()),
            "no meaning with scope='global'",
        ),
        (lambda: jp.keep_top(0.5, min_kept=-1), "min_kept is a number >= 0; got -1"),
        (lambda: jp.keep_n_of_m(3, 2), "1 <= n <= m; got 3:2"),
        (lambda: jp.keep_n_of_m(0, 4), "1 <= n <= m; got 0:4"),
        (lambda: jp.keep_n_of_m(2, 4, axis="in"), "'input' or 'output'; got 'in'"),
    ],
)
def test_misuse_is_refused_at_construction(make, message):
    with pytest.raises(jp.PruningError, match=message):
        make()


def test_misuse_is_refused_at_use():
    tree = {"layer": {"kernel": jnp.ones((6, 4))}}
    message = r"4 does not divide axis 0 \(input\) of 'layer/kernel', shape \(6, 4\)"
    with pytest.raises(jp.PruningError, match=message):
        _run(jp.keep_n_of_m(2, 4), tree)
    with pytest.raises(jp.PruningError, match=r"'b' has shape \(4,\)"):
        _run(jp.keep_n_of_m(2, 4), {"b": jnp.ones(4)})
    for link in (jp.keep_top(0.5), jp.keep_above(0.0), jp.keep_n_of_m(2, 4)):
        state = link.init(tree)
        with pytest.raises(jp.PruningError, match="link needs scores and params"):
            link.update(tree, state)
        with pytest.raises(jp.PruningError, match="link needs scores and params"):
            link.update(None, state, tree)
    late = jp.keep_top(lambda step: 1.5)
    with pytest.raises(jp.PruningError, match=r"got 1\.5"):
        _run(late, tree)
    bad = {"layer": {"kernel": jnp.ones((6, 4)).at[0, 0].set(jnp.nan)}}
    with pytest.raises(jp.NonFiniteScoreError, match=r"'layer/kernel' \(1 of 24\)"):
        _run(jp.keep_n_of_m(2, 3), bad)


def _kept_within(params, link):
    return link.update(params, link.init(params), params)[0]


def test_keep_within_budget_counts_bytes():
    params = {
        "wide": jnp.array([4.0, 3.0, 2.0, 1.0], jnp.float32),
        "half": jnp.array([1.9, 1.4, 0.9, 0.4], jnp.bfloat16),
    }
    # Value for money: wide 1, .75, .5, .25; half .95, .7, .45, .2.
    masks = _kept_within(params, jp.keep_within_budget(13))
    assert masks["wide"].tolist() == [True, True, False, False]  # 8 bytes
    assert masks["half"].tolist() == [True, True, False, False]  # 4 bytes; 1 is left


def test_keep_within_budget_charges_channels_for_their_weights():
    params = {"kernel": jnp.array([[3.0, 1.0], [3.0, 2.0]]), "bias": jnp.ones(2)}
    pruner = optax.chain(
        jp.pool_over_axes(jnp.sum, keep="output"),
        jp.keep_within_budget(3, lambda path, w: 1),
    )
    chosen = jp.select(pruner, jp.is_kernel)
    masks = chosen.update(params, chosen.init(params), params)[0]
    assert masks["kernel"].tolist() == [[True, False]]  # a channel costs 2 of the 3


def test_keep_within_budget_follows_a_schedule_and_keeps_a_minimum():
    params = {"a": jnp.array([4.0, 3.0]), "b": jnp.array([2.0, 1.0])}
    schedule = optax.linear_schedule(4, 1, 3)
    link = jp.keep_within_budget(schedule, lambda path, w: 1)
    state = link.init(params)
    update = jax.jit(lambda step: link.update(params, state, params, step=step)[0])
    kept = [sum(int(m.sum()) for m in update(step).values()) for step in range(5)]
    assert kept == [4, 3, 2, 1, 1]
    link = jp.keep_within_budget(2, lambda path, w: 1, min_kept=1)
    masks = _kept_within(params, link)
    assert jax.tree.map(lambda m: m.tolist(), masks) == {
        "a": [True, False],
        "b": [True, False],
    }


def test_a_budget_of_empty_leaves():
    params = {"a": jnp.zeros((0, 2)), "b": jnp.arange(4.0), "c": jnp.zeros(0)}
    link = jp.keep_within_budget(8)  # bytes: two weights
    masks = _kept_within(params, link)
    assert masks["a"].shape == (0, 2)
    assert masks["b"].tolist() == [False, False, True, True]
    assert _kept_within({"c": params["c"]}, link)["c"].shape == (0,)
    channels = {"w": jnp.ones((1, 3))}  # of no weights
    assert _run(link, channels, {"w": jnp.ones((0, 3))})["w"].shape == (1, 3)


def _priced(budget, cost):
    """How many of 100 weights a budget keeps at a step."""
    params = {"w": jnp.arange(100.0)}
    link = jp.keep_within_budget(budget, lambda path, w: cost)
    masks = lambda step: link.update(params, link.init(params), params, step=step)[0]  # noqa: E731
    return lambda step: masks(step)["w"].sum(dtype=jnp.int32)


def test_budgets_beyond_int32_are_exact_however_they_come():
    """Picojoules: 83 of 100 weights fit into 5e9, and 35 into 2^31 - 1."""
    price = 60_000_007
    for budget in (
        5_000_000_000,
        5e9,
        np.float64(5e9),
        np.int64(5_000_000_000),
        np.array(5_000_000_000),
        np.array(5e9),
        lambda step: 5_000_000_000,
        optax.constant_schedule(5e9),
    ):
        assert _priced(budget, price)(jnp.int32(2)) == 5_000_000_000 // price == 83
    climb = jax.jit(_priced(optax.linear_schedule(0, 1e10, 4), price))
    assert [int(climb(jnp.int32(step))) for step in range(3)] == [0, 41, 83]


@pytest.mark.parametrize("cost", [(2**40 + 2**17) // 64, 2**31 + 3])
def test_traced_budgets_pay_to_the_unit(cost):
    kept = jax.jit(lambda budget: _priced(budget, cost)(jnp.int32(0)))
    for count in (1, 50, 63, 64):
        above = np.float32(count * cost)  # the nearest float32, and those beside it
        for budget in (above, np.nextafter(above, 0), np.nextafter(above, np.inf)):
            assert int(kept(np.float32(budget))) == min(int(budget) // cost, 100)


def test_large_budgets_under_different_costs():
    rng = np.random.default_rng(0)
    params = {"a": rng.random(40).astype("f4"), "b": rng.random(60).astype("f4")}
    costs = {"a": 3_000_000_000, "b": 16_000_000_000}

    @jax.jit
    def masks(budget):
        return _run(jp.keep_within_budget(budget, lambda path, w: costs[path]), params)

    for budget in np.float32([1.2e11, 3.6e11, 9e11]):
        expected, paid = oracles.within_budget(params, costs, int(budget))
        np.testing.assert_array_equal(oracles.flat(masks(budget)), expected)
        assert 0 < paid <= budget


def test_keep_within_budget_refuses():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    for budget in (-1, -0.5, float("nan"), float("inf"), "3", None):
        with pytest.raises(jp.PruningError, match=rf"number >= 0; got {budget!r}"):
            jp.keep_within_budget(budget)
    with pytest.raises(jp.PruningError, match="min_kept is a number >= 0; got -1"):
        jp.keep_within_budget(1, min_kept=-1)
    for cost, message in (
        (lambda path, w: 0, "positive; that of 'a' is 0"),
        (lambda path, w: 0.5, "known integer, not a tracer; that of 'a' is 0.5"),
        (lambda path, w: 1 if path == "a" else 70_000, "'b' is 70000 times"),
    ):
        with pytest.raises(jp.PruningError, match=message):
            _kept_within(params, jp.keep_within_budget(1, cost))
    # A common divisor does not count.
    masks = _kept_within(params, jp.keep_within_budget(70_000, lambda path, w: 70_000))
    assert masks["a"].tolist() == [True, False]
