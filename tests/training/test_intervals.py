"""When `sparsify` refreshes: from the begin to the end of the pruner's schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp

PARAMS = {"kernel": jnp.arange(1.0, 41).reshape(8, 5), "bias": jnp.ones(5)}
SGD = optax.sgd(0.1)


def _refreshes(tx, steps=40):
    """The steps at which the masks are refreshed, by the count of the keep link."""

    def step(state, _):
        _, state = tx.update(PARAMS, state, PARAMS)
        counts = jax.tree.leaves(state.pruner)
        return state, counts[0]

    state, counts = jax.lax.scan(step, tx.init(PARAMS), None, length=steps)
    return np.flatnonzero(np.diff(counts, prepend=0)).tolist(), state


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ({"every": 7}, [10, 17, 24, 30]),
        ({"every": 7, "begin": 3}, [3, 10, 17, 24, 30]),
        ({"every": 7, "begin": 20}, [20, 27, 30]),
        ({"every": 7, "begin": 35}, [35]),
        ({"every": 10, "end": 38}, [10, 20, 30, 38]),
        ({"every": None}, []),
        ({"every": None, "end": 15}, []),
    ],
)
def test_begin_and_end_are_those_of_the_schedule(events, expected):
    pruner = jp.recipes.gradual_magnitude(0.8, begin=10, steps=20)
    found, state = _refreshes(jp.sparsify(SGD, pruner, **events))
    assert found == expected
    if expected:
        assert int(jp.masks_of(state)["kernel"].sum()) == 8  # the target


def test_a_schedule_of_optax_has_no_interval():
    ramp = optax.linear_schedule(0.0, 0.8, 20, 10)
    pruner = jp.recipes.magnitude(ramp)
    assert _refreshes(jp.sparsify(SGD, pruner, every=20))[0] == [0, 20]
    known = jp.recipes.magnitude(jp.links.Ramp(10, 30, ramp))
    assert _refreshes(jp.sparsify(SGD, known, every=20))[0] == [10, 30]


def test_an_end_before_the_target_is_refused():
    pruner = jp.recipes.gradual_magnitude(0.8, begin=10, steps=20)
    for tx in (
        jp.sparsify(SGD, pruner, begin=0, end=15),
        jp.sparsify(SGD, jp.select(pruner, "kernel"), end=29),
        jp.sparsify(SGD, optax.chain(pruner, optax.identity()), begin=5, end=5),
    ):
        with pytest.raises(jp.PruningError, match="target at step 30, after the last"):
            tx.init(PARAMS)
    jp.sparsify(SGD, pruner, begin=0, end=30).init(PARAMS)


def test_the_interval_contains_those_of_all_schedules():
    early = jp.recipes.gradual_magnitude(0.5, begin=2, steps=4)
    late = jp.keep_within_budget(jp.links.Ramp(6, 9, lambda step: 40.0), lambda *_: 1)

    def both(params, state, grads, **extra):
        one, first = early.update(grads, state[0], params, **extra)
        two, second = late.update(params, state[1], params, **extra)
        return jp.masks.intersect(one, two), (first, second)

    pruner = jp.Pruner(
        lambda params: (early.init(params), late.init(params)),
        lambda grads, state, params, **extra: both(params, state, grads, **extra),
    )
    assert _refreshes(jp.sparsify(SGD, pruner, every=3))[0] == [2, 5, 8, 9]


def test_the_state_has_no_more_arrays_and_survives_a_jit():
    pruner = jp.recipes.gradual_magnitude(0.8, begin=1, steps=2)
    state = jax.jit(pruner.init)(PARAMS)
    assert len(jax.tree.leaves(state)) == 1
    assert state[1].interval == (1, 3)
