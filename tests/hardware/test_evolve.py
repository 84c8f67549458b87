"""NSGA-II: fronts against all designs of a grid, limits, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune import hardware as hw
from jprune.hardware import evolve, machines, networks, search

BOUNDS = {"rows": (16, 256), "sram": (64, 8192), "dram_bandwidth": (8, 256)}


def build(design):
    design = {**design, "rows": jnp.round(design["rows"])}
    machine = machines.tpu_v1()._replace(**design, dataflows=np.ones(3, np.float32))
    return networks.bert_base(128), machine


def objectives(found, design=None):
    return jnp.stack([found.seconds, found.energy, found.area])


def small_chips(found, design=None):
    return found.area / 140


@pytest.fixture(scope="module")
def front():
    return evolve.nsga2(
        build, objectives, BOUNDS, limits=small_chips, population=64, generations=30
    )


def volume(values, low, high):
    """The share of the box between two corners that some point beats, by sampling."""
    drawn = np.random.default_rng(0).uniform(np.log(low), np.log(high), (4000, 3))
    return (np.log(values)[None] <= drawn[:, None]).all(2).any(1).mean()


def test_no_point_of_a_front_beats_another(front):
    values = front.objectives
    assert len(values) >= 20
    assert np.asarray(jp.search.pareto(values)).all()
    assert (np.diff(values[:, 0]) >= 0).all()


def test_designs_cost_what_the_front_says(front):
    for i in range(0, len(front.objectives), 7):
        one = {name: x[i] for name, x in front.designs.items()}
        for name, (low, high) in BOUNDS.items():
            assert low <= one[name] <= high
        found = hw.cost(*build(one))
        np.testing.assert_allclose(front.objectives[i], objectives(found), rtol=1e-5)
        assert small_chips(found) <= 1


def test_a_front_is_as_good_as_that_of_a_grid_of_more_designs(front):
    axes = {n: np.geomspace(*bounds, 13) for n, bounds in BOUNDS.items()}
    designs = jp.search.grid(axes)  # 2,197 designs; 1,920 were bred
    found = search.evaluate(designs, build)
    values = jax.device_get(jax.vmap(objectives)(found))
    fits = np.asarray(small_chips(found) <= 1)
    values = np.where(fits[:, None], values, np.inf)
    best = values[np.asarray(jp.search.pareto(values))]
    both = np.concatenate([best, front.objectives])
    corners = both.min(0), both.max(0)
    assert volume(best, *corners) > 0.2
    assert volume(front.objectives, *corners) >= volume(best, *corners) - 0.01


def test_the_seed_decides():
    def small(seed, bounds):
        return evolve.nsga2(
            build, objectives, bounds, population=8, generations=3, seed=seed
        )

    fixed = {**BOUNDS, "sram": (512, 512)}
    one, same, other = small(1, fixed), small(1, fixed), small(2, fixed)
    np.testing.assert_array_equal(one.objectives, same.objectives)
    assert not np.array_equal(one.designs["rows"], other.designs["rows"])
    assert (one.designs["sram"] == 512).all()


def test_what_cannot_be_met_is_an_empty_front():
    found = evolve.nsga2(
        build,
        objectives,
        BOUNDS,
        limits=lambda c, design: c.area / 1e-3,
        population=8,
        generations=2,
    )
    assert found.objectives.shape == (0, 3)
    assert found.designs["rows"].shape == (0,)


def test_bad_arguments_are_refused():
    with pytest.raises(jp.PruningError, match="sram"):
        evolve.nsga2(build, objectives, {"sram": (0, 1)})
    with pytest.raises(jp.PruningError, match="at least 4"):
        evolve.nsga2(build, objectives, BOUNDS, population=2)


def test_a_proxy_of_accuracy_may_depend_on_the_design():
    net = networks.bert_base(128)

    def pruned(design):
        keep = jnp.ones_like(net.keep).at[:, 1].set(design["tokens"])
        return net._replace(keep=keep), machines.tpu_v1()

    def lost(found, design):
        return jnp.stack([found.seconds, 1.01 - design["tokens"]])

    found = evolve.nsga2(
        pruned,
        lost,
        {"tokens": (0.2, 1.0)},
        limits=lambda c, design: 0.5 / design["tokens"],
        population=16,
        generations=5,
    )
    tokens = found.designs["tokens"]
    assert len(tokens) >= 8
    assert tokens.min() >= 0.5
    assert (np.diff(tokens) >= 0).all()  # fewer tokens, fewer seconds
