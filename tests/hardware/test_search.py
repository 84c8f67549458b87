"""Search: fronts against a plain loop, grids, descent against the best of a grid."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jprune as jp
from jprune import hardware as hw
from jprune.hardware import machines, networks, search


def beats(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


@hypothesis.given(seed=st.integers(0, 2**31), points=st.integers(1, 40))
@hypothesis.settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # on a busy machine
)
def test_a_front_is_what_nothing_beats(seed, points):
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 6, (points, 3)).astype(np.float32)
    padded = np.full((40, 3), np.inf, np.float32)  # one shape for all: they never stay
    padded[:points] = costs
    found = FRONT(padded)
    expected = [not any(beats(b, a) for b in costs) for a in costs]
    assert found[:points].tolist() == expected
    assert not found[points:].any()


FRONT = jax.jit(jp.search.pareto)


def build(design):
    net = networks.bert_base(128)
    machine = machines.tpu_v1()._replace(dataflows=np.ones(3, np.float32), **design)
    return net, machine


def test_a_grid_is_evaluated_in_its_order():
    designs = jp.search.grid({"sram": [64, 1024], "dram_bandwidth": [8, 34, 100]})
    found = search.evaluate(designs, build, chunk=4)
    assert found.seconds.shape == (6,)
    for i in range(6):
        one = jax.tree.map(lambda x, i=i: x[i], designs)
        np.testing.assert_allclose(
            found.seconds[i], hw.cost(*build(one)).seconds, rtol=1e-6
        )
    assert designs["sram"].tolist() == [64] * 3 + [1024] * 3


def test_drawn_designs_are_log_uniform():
    drawn = jp.search.random_designs(
        jax.random.key(0), 4000, {"a": (1, 100), "b": (2, 2)}
    )
    assert drawn["a"].min() >= 1
    assert drawn["a"].max() <= 100
    assert float((drawn["a"] < 10).mean()) == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(drawn["b"], 2)


BOUNDS = {
    "rows": (16, 256),
    "columns": (16, 256),
    "sram": (64, 8192),
    "dram_bandwidth": (8, 256),
}


def delay_energy(found):
    return found.seconds * found.energy


def limits(found):
    return jnp.stack([found.area / 150])


@pytest.mark.others_code
def test_descent_finds_what_a_thousand_random_designs_do_not_beat_by_much():
    drawn = jp.search.random_designs(jax.random.key(1), 1000, BOUNDS)
    costs = search.evaluate(drawn, build)
    fits = costs.area <= 150
    best = float(jnp.min(jnp.where(fits, delay_energy(costs), jnp.inf)))
    starts = jp.search.random_designs(jax.random.key(2), 8, BOUNDS)

    def descend(start):
        return search.descend(
            start, build, delay_energy, BOUNDS, limits=limits, steps=100
        )

    found = jax.jit(jax.vmap(descend))(starts)
    rounded = jax.tree.map(jnp.round, found.design)
    after = search.evaluate(rounded, build)
    allowed = after.area <= 150 * 1.02  # rounding may add a row
    ours = float(jnp.min(jnp.where(allowed, delay_energy(after), jnp.inf)))
    assert ours < 1.02 * best
    assert found.path.shape == (8, 100)
    for name, (low, high) in BOUNDS.items():
        assert (found.design[name] >= low * 0.999).all()
        assert (found.design[name] <= high * 1.001).all()


def test_nonsense_is_refused():
    with pytest.raises(jp.PruningError, match="bounds of sram are positive"):
        jp.search.random_designs(jax.random.key(0), 3, {"sram": (0, 4)})
    with pytest.raises(jp.PruningError, match=r"\['rows'\] have none"):
        jp.search.grid({"rows": []})
    with pytest.raises(jp.PruningError, match="the design has"):
        search.descend({"a": 1.0}, build, delay_energy, {"b": (1, 2)})
