"""Search: grids against single costs, descent against the best of a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import hardware as hw
from jprune.hardware import machines, networks, search


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


def test_bounds_of_other_numbers_are_refused():
    with pytest.raises(jp.PruningError, match="the design has"):
        search.descend({"a": 1.0}, build, delay_energy, {"b": (1, 2)})
