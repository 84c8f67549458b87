"""Schedules against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp


@pytest.mark.parametrize(
    ("final", "begin", "steps", "initial"),
    [(0.8, 10, 100, 0.0), (0.95, 0, 7, 0.5), (0.2, 3, 1, 0.9), (1.0, 0, 50, 0.0)],
)
def test_cubic_is_the_formula(final, begin, steps, initial):
    schedule = jp.cubic(final, begin=begin, steps=steps, initial=initial)
    for t in range(begin + steps + 5):
        share = np.clip((t - begin) / steps, 0, 1)
        expected = final + (initial - final) * (1 - share) ** 3
        for step in (t, jnp.int32(t), np.int64(t)):
            assert float(schedule(step)) == pytest.approx(expected, abs=1e-6)
    for t in range(begin + 1):
        assert float(schedule(t)) == np.float32(initial)
    for t in (begin + steps, begin + steps + 1, 10**9):
        assert float(schedule(t)) == np.float32(final)


def test_cubic_with_a_traced_target():
    def at(final, step):
        return jp.cubic(final, begin=10, steps=100)(step)

    found = jax.vmap(jax.jit(at), (0, None))(jnp.array([0.5, 0.8]), jnp.int32(60))
    np.testing.assert_allclose(found, [0.5 * 7 / 8, 0.8 * 7 / 8], rtol=1e-6)


def test_each_round_keeps_four_fifths_of_the_survivors():
    rounds, steps = 5, 100
    schedule = jp.geometric(1 - 0.8**5, begin=7, steps=steps, rounds=rounds)
    table = {0: 0, 6: 0, 7: 0.2, 26: 0.2, 27: 0.36, 46: 0.36, 47: 0.488, 66: 0.488}
    table |= {67: 0.5904, 86: 0.5904, 87: 0.67232, 107: 0.67232, 10_000: 0.67232}
    for t, expected in table.items():
        assert float(schedule(t)) == pytest.approx(expected, abs=1e-6), t
        assert float(jax.jit(schedule)(jnp.int32(t))) == float(schedule(t))
    assert float(schedule(87)) == np.float32(1 - 0.8**5)


@pytest.mark.parametrize("rounds", [1, 3, 7, 20])
@pytest.mark.parametrize("length", [1, 10, 997, 10_000])
def test_stairs_begin_exactly_where_they_should(rounds, length):
    schedule = jax.vmap(
        jp.geometric(0.9, begin=5, steps=rounds * length, rounds=rounds)
    )
    starts = 5 + length * np.arange(rounds)
    expected = 1 - 0.1 ** ((1 + np.arange(rounds)) / rounds)
    np.testing.assert_allclose(schedule(starts), expected, rtol=1e-5)
    np.testing.assert_array_equal(schedule(starts), schedule(starts + length - 1))


def test_the_smooth_curve():
    schedule = jp.geometric(0.99, begin=10, steps=100)
    for t in (0, 5, 10, 11, 35, 60, 109, 110, 500):
        expected = 1 - 0.01 ** np.clip((t - 10) / 100, 0, 1)
        assert float(schedule(t)) == pytest.approx(expected, abs=1e-6)
    assert float(schedule(110)) == np.float32(0.99)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jp.cubic(1.2, begin=0, steps=1), "got 1.2"),
        (lambda: jp.cubic(0.5, begin=0, steps=1, initial=-0.1), "got -0.1"),
        (lambda: jp.cubic(0.5, begin=-1, steps=1), "got -1 and 1"),
        (lambda: jp.cubic(0.5, begin=0, steps=0), "got 0 and 0"),
        (lambda: jp.geometric(-0.5, steps=1), "got -0.5"),
        (lambda: jp.geometric(1.0, steps=1), "never reaches sparsity 1"),
        (lambda: jp.geometric(0.5, steps=0), "got 0, 0, None"),
        (lambda: jp.geometric(0.5, begin=-2, steps=4), "got -2, 4, None"),
        (lambda: jp.geometric(0.5, steps=4, rounds=0), "got 0, 4, 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(jp.PruningError, match=message):
        make()


def test_stairs_that_do_not_divide_the_steps_start_rounded_up():
    schedule = jp.geometric(0.9, begin=0, steps=10, rounds=4)
    values = [round(float(schedule(t)), 4) for t in range(10)]
    starts = [t for t in range(1, 10) if values[t] != values[t - 1]]
    assert starts == [3, 5, 8]  # 2.5, 5 and 7.5, rounded up
    with pytest.raises(jp.PruningError, match="rounds <= steps"):
        jp.geometric(0.9, steps=3, rounds=4)


@pytest.mark.parametrize(
    "schedule",
    [
        jp.cubic(0.8, begin=3, steps=10),
        jp.geometric(0.8, begin=3, steps=10),
        jp.geometric(0.8, begin=3, steps=10, rounds=1),
        jp.geometric(0.8, begin=3, steps=10, rounds=3),
        jp.geometric(0.8, begin=0, steps=10, rounds=10),
    ],
)
def test_the_interval_of_a_schedule(schedule):
    values = [float(schedule(t)) for t in range(20)]
    final = np.float32(0.8)
    assert schedule.end == next(t for t, s in enumerate(values) if s == final)
    assert all(s == final for s in values[schedule.end :])
    assert all(s == values[0] for s in values[: schedule.begin])
