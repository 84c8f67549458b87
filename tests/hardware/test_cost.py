"""The cost against the same in plain Python, units, monotony, and pipelines."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from support import hardware_cases as cases
from support import hardware_oracle as oracle

import jprune as jp
from jprune import hardware as hw
from jprune.hardware import _zeros, accelerators, machines, workload

COST = jax.jit(hw.cost)
MACHINES = [
    *("spatten", "spatten_eighth", "a3", "mnnfast", "eyeriss", "tpu_v1", "tpu_v5e"),
    *("a100", "h100", "h200", "titan_xp", "jetson_nano", "xeon"),
]


def agrees(net, machine):
    found = COST(net, machine)
    seconds, energy, dram, bounds = oracle.cost(
        oracle.rows(net), oracle.numbers(machine)
    )
    np.testing.assert_allclose(found.seconds, seconds, rtol=2e-5)
    np.testing.assert_allclose(found.dram_bytes, dram, rtol=2e-5)
    for name, value in energy.items():
        np.testing.assert_allclose(getattr(found.parts, name), value, rtol=1e-4)
    np.testing.assert_allclose(found.energy, sum(energy.values()), rtol=1e-4)
    cycles = float(machine.clock) * 1e9 * seconds
    np.testing.assert_allclose(found.cycles, cycles, rtol=2e-5)
    assert [hw.RESOURCES[i] for i in found.bound] == bounds


@pytest.mark.parametrize("seed", range(150))
def test_random_networks_cost_what_the_oracle_says(seed):
    rng = np.random.default_rng(seed)
    agrees(cases.network(rng), cases.machine(rng))


@pytest.mark.parametrize("name", MACHINES)
def test_published_machines_cost_what_the_oracle_says(name):
    rng = np.random.default_rng(7)
    machine = accelerators.check(getattr(machines, name)())
    agrees(cases.network(rng), machine)


def test_vmap_over_machines_and_workloads_is_one_by_one():
    rng = np.random.default_rng(0)
    several = [cases.machine(rng) for _ in range(5)]
    nets = [cases.network(rng) for _ in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *nets)
    over = jax.vmap(jax.vmap(hw.cost, (None, 0)), (0, None))
    found = jax.jit(over)(stacked, hw.accelerators.stack(several))
    assert found.seconds.shape == (3, 5)
    for i, net in enumerate(nets):
        for j, machine in enumerate(several):
            one = COST(net, machine)
            each = jax.tree.map(lambda x, i=i, j=j: x[i, j], found)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), one, each)


def slow_memory(**fields):
    return hw.accelerator(
        **{
            "clock": 1,
            "rows": 256,
            "columns": 256,
            "sram": 4096,
            "dram_bandwidth": 1,
            **fields,
        }
    )


def test_doubling_the_bandwidth_halves_a_memory_bound_time():
    gemm = workload.product(64, 512, 512)
    one, two = (COST(gemm, slow_memory(dram_bandwidth=b)) for b in (1, 2))
    assert hw.RESOURCES[int(one.bound[0])] == "dram"
    np.testing.assert_allclose(one.seconds, 2 * two.seconds, rtol=1e-6)
    # By hand: all three matrices once, at a byte a nanosecond.
    assert float(one.dram_bytes) == 64 * 512 + 512 * 512 + 64 * 512
    np.testing.assert_allclose(one.seconds, 1e-9 * float(one.dram_bytes), rtol=1e-6)


def test_doubling_the_clock_halves_a_compute_bound_time():
    gemm = workload.product(512, 512, 512)
    fields = {"rows": 16, "columns": 16, "sram": 4096, "dram_bandwidth": 1000}
    one, two = (COST(gemm, hw.accelerator(clock=c, **fields)) for c in (1, 2))
    assert float(one.cycles) == 512 * 32 * 32  # each multiplier, each cycle
    assert float(one.cycles) == float(two.cycles)
    np.testing.assert_allclose(one.seconds, 2 * two.seconds, rtol=1e-6)


def test_energy_by_hand():
    machine = slow_memory(
        mac_energy=2, mac_bits=8, sram_energy=3, dram_energy=5, leakage=0.5
    )
    gemm = workload.product(256, 256, 256, output_bits=16)
    found = COST(gemm, machine)
    read, written = 2 * 256 * 256, 2 * 256 * 256
    pico = found.parts.multipliers, found.parts.sram, found.parts.dram
    by_hand = 256**3 * 2, (read + written) * 3, 8 * (read + written) * 5
    np.testing.assert_allclose(pico, 1e-12 * np.array(by_hand), rtol=1e-6)
    np.testing.assert_allclose(found.parts.leakage, 0.5 * float(found.seconds))
    np.testing.assert_allclose(found.energy, sum(map(float, found.parts)), rtol=1e-6)


RESOURCES = [
    *("clock", "arrays", "vector", "softmax", "topk", "sram", "sram_bandwidth"),
    *("dram_bandwidth", "efficiency", "overlap", "skip", "n_of_m", "compressed"),
]


@pytest.mark.parametrize("field", RESOURCES)
@hypothesis.given(seed=st.integers(0, 2**31), more=st.floats(1.01, 8))
@hypothesis.settings(deadline=None, max_examples=25, derandomize=True)
def test_more_of_a_resource_never_takes_longer(field, seed, more):
    rng = np.random.default_rng(seed)
    # Double buffering itself takes half of the room: there it is not counted.
    fixed = {} if field != "overlap" else {"overlap": 0.0, "sram": 2.0**20}
    fields = cases.machine_fields(rng, **fixed)
    if field in ("efficiency", "skip", "compressed", "overlap"):
        better = {field: min(1.0, fields[field] + (more - 1) / 7)}
    else:
        better = {field: fields[field] * more}
    net = cases.network(rng)
    before = COST(net, hw.accelerator(**fields)).seconds
    after = COST(net, hw.accelerator(**fields | better)).seconds
    assert float(after) <= float(before) * (1 + 1e-5)


@hypothesis.given(seed=st.integers(0, 2**31), more=st.integers(2, 8))
@hypothesis.settings(deadline=None, max_examples=25, derandomize=True)
def test_a_larger_array_is_not_slower_where_its_fill_is_hidden(seed, more):
    rng = np.random.default_rng(seed)
    # A larger array reads less of the SRAM, so that never bounds.
    fields = cases.machine_fields(rng, fill=0.0, sram_bandwidth=1e9)
    larger = fields | {"rows": fields["rows"] * more}
    net = cases.network(rng)
    before = COST(net, hw.accelerator(**fields)).seconds
    after = COST(net, hw.accelerator(**larger)).seconds
    assert float(after) <= float(before) * (1 + 1e-5)


@hypothesis.given(seed=st.integers(0, 2**31))
@hypothesis.settings(deadline=None, max_examples=25, derandomize=True)
def test_keeping_less_costs_less(seed):
    rng = np.random.default_rng(seed)
    net, machine = cases.network(rng), cases.machine(rng)
    less = net._replace(keep=net.keep * jnp.float32(rng.uniform(0.3, 1)))
    before, after = COST(net, machine), COST(less, machine)
    for name in ("seconds", "energy", "dram_bytes"):
        assert float(getattr(after, name)) <= float(getattr(before, name)) * 1.00001


def test_a_pipeline_takes_as_long_as_its_longest_stage():
    one = workload.product(128, 128, 64, output_dram=0, repeats=3)
    two = workload.product(
        *(128, 64, 128), input_dram=0, joined=1, share=0.5, exponentials=1e6, repeats=3
    )
    net = workload.chain([one._replace(share=jnp.array([0.5], jnp.float32)), two])
    fields = {
        "clock": 1,
        "rows": 64,
        "columns": 8,
        "arrays": 2,
        "sram": 512,
        "dram_bandwidth": 1e4,
    }
    fields |= {"dataflows": (1, 0, 0), "softmax": 50, "overlap": 1}
    piped = COST(net, hw.accelerator(**fields, pipelined=1))
    apart = COST(net, hw.accelerator(**fields))
    assert float(piped.cycles) == 3 * 1e6 / 50  # the softmax alone
    # Apart each product has both arrays: 128 lines times half of its tiles.
    assert float(apart.cycles) == 3 * (128 * 16 / 2 + 128 * 16 / 2 + 1e6 / 50)


def test_zeros_are_worth_what_the_machine_makes_of_them():
    shape = (512, 512, 512)
    loose = workload.product(*shape, density=0.25, pattern=workload.UNSTRUCTURED)
    strict = workload.product(*shape, density=0.5, pattern=workload.N_OF_M)
    dense = workload.product(*shape)
    fields = {
        "clock": 1,
        "rows": 16,
        "columns": 16,
        "sram": 4096,
        "dram_bandwidth": 1e4,
    }
    plain = hw.accelerator(**fields)
    for net in (loose, strict):  # nothing
        assert float(COST(net, plain).cycles) == float(COST(dense, plain).cycles)
        assert float(COST(net, plain).dram_bytes) == 3 * 512 * 512
    skips = hw.accelerator(**fields, skip=1, compressed=1, n_of_m=2)
    ratio = float(COST(loose, skips).cycles / COST(dense, plain).cycles)
    assert ratio == pytest.approx(0.25)  # one lane waits for none
    waits = hw.accelerator(**fields, skip=1, lanes=256)
    slower = float(COST(loose, waits).cycles / COST(dense, plain).cycles)
    assert slower == pytest.approx(0.25 + np.sqrt(2 * np.log(256) * 0.1875 / 512))
    assert float(COST(strict, skips).cycles) == 512**3 / 256 / 2
    # Weights: a quarter of 8 bits and a bit of mask; half of 8 bits and 2 each.
    assert float(COST(loose, skips).dram_bytes) == 512 * 512 * (2 + 3 / 8)
    assert float(COST(strict, skips).dram_bytes) == 512 * 512 * (2 + 5 / 8)


def test_expected_imbalance_is_that_of_random_masks():
    rng = np.random.default_rng(3)
    for density, k, lanes in [(0.3, 512, 64), (0.1, 1024, 256), (0.5, 256, 16)]:
        counts = rng.binomial(k, density, (2000, lanes)).max(1).mean() / k
        found = float(
            _zeros.imbalance(jnp.float32(density), jnp.float32(k), float(lanes))
        )
        assert found == pytest.approx(counts, rel=0.06)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dram_bandwidth", 0, "dram_bandwidth of an accelerator has to be positive"),
        ("clock", -1, "clock of an accelerator has to be finite and not negative"),
        ("sram", float("nan"), "sram of an accelerator has to be finite"),
        ("efficiency", 1.5, "efficiency of an accelerator has to be at most 1"),
        ("skip", 2, "skip of an accelerator has to be at most 1"),
        ("n_of_m", 0.5, "n_of_m of an accelerator has to be at least 1"),
        ("rates", (1, 1, 0, 1), "rates of an accelerator has to be positive"),
        ("rates", (1, 1), "rates has 4 entries"),
        (
            "dataflows",
            (0, 0, 0),
            "dataflows of an accelerator has to be positive in at least one",
        ),
        ("leakage", float("inf"), "leakage of an accelerator has to be finite"),
        ("cores", 4, "no .*cores"),
    ],
)
def test_machines_that_cannot_be_meant_are_refused_by_field(field, value, words):
    good = {"clock": 1, "rows": 8, "columns": 8, "sram": 64, "dram_bandwidth": 8}
    with pytest.raises(jp.PruningError, match=words):
        hw.accelerator(**good | {field: value})
    with pytest.raises(jp.PruningError, match=r"lacks the fields \['sram'\]"):
        hw.accelerator(clock=1, rows=8, columns=8, dram_bandwidth=8)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("m", -5, "m of an operation has to be finite and not negative"),
        ("density", 1.2, "density of an operation has to be at most 1"),
        ("keep", (1, 1, 0, 1), "keep of an operation has to be positive"),
        ("keep", (1, 1, 2, 1), "keep of an operation has to be at most 1"),
        ("weight_bits", 0, "weight_bits of an operation has to be positive"),
        ("pattern", 3, "pattern of an operation has to be DENSE"),
        ("refetch", float("nan"), "refetch of an operation has to be finite"),
        ("select_keep", 9, "select_keep has to be at most select_from"),
        ("k", 0, "m, n and k of an operation have to be all positive"),
        ("tokens", 1, "no fields .*tokens"),
    ],
)
def test_operations_that_cannot_be_meant_are_refused_by_field(field, value, words):
    with pytest.raises(jp.PruningError, match=words):
        workload.product(**{"m": 4, "n": 4, "k": 4} | {field: value})
    with pytest.raises(jp.PruningError, match="at least one operation"):
        workload.chain([])
