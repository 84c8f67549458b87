"""The smooth cost: its gradients against differences, its distance from the hard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import hardware_cases as cases

from jprune import hardware as hw
from jprune.hardware import _arithmetic, accelerators, workload

T = 0.05
X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def stacked(rng, count, **fixed):
    nets = [cases.network(rng, singles=1, **fixed) for _ in range(count)]
    machines = [cases.machine(rng) for _ in range(count)]
    both = [jax.tree.map(lambda *x: np.stack(x), *each) for each in (nets, machines)]
    return workload.check(both[0]), accelerators.check(both[1])


# What is continuous: the others are counts, patterns, or on one side of a step.
OF_MACHINE = (
    *("clock", "rows", "columns", "arrays", "fill", "efficiency", "vector", "softmax"),
    *("topk", "latency", "pipelined", "launch", "sram", "sram_bandwidth", "overlap"),
    *("dram_bandwidth", "skip", "compressed", "gating", "mac_energy", "mac_bits"),
    *("vector_energy", "topk_energy", "sram_energy", "dram_energy", "leakage"),
)
OF_WORKLOAD = (
    *("batch", "m", "n", "k", "keep", "output_bits", "refetch", "input_dram"),
    *("weight_dram", "output_dram", "input_unique", "elementwise", "exponentials"),
    *("selections", "gathered", "joined", "share", "repeats", "density"),
)


def in_float64(nets, machines):
    """Both in float64, and the fields that have derivatives."""
    nets, machines = (
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), t) for t in (nets, machines)
    )
    of_machine = {k: getattr(machines, k) for k in OF_MACHINE}
    return nets, machines, (of_machine, {k: getattr(nets, k) for k in OF_WORKLOAD})


def objective(continuous, net, machine):
    ours, theirs = continuous
    found = hw.cost(net._replace(**theirs), machine._replace(**ours), temperature=T)
    return jnp.log(found.seconds) + jnp.log(found.energy) + jnp.log(found.dram_bytes)


def test_gradients_agree_with_differences_at_a_thousand_points():
    """Along a random direction of all logarithms of fields, in float64."""
    rng = np.random.default_rng(0)
    # Away from 1, where a bound of shares begins, and from 0, where logarithms end.
    nets, machines = stacked(rng, 1000, density=0.45)
    nets = nets._replace(keep=np.minimum(nets.keep, 0.97))
    with X64(True):
        nets, machines, values = in_float64(nets, machines)
        directions = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape)), values
        )

        def along(t, value, direction, net, machine):
            moved = jax.tree.map(lambda x, d: x * jnp.exp(t * d), value, direction)
            return objective(moved, net, machine)

        given = (values, directions, nets, machines)
        slope = jax.jit(jax.vmap(jax.grad(along), (None, 0, 0, 0, 0)))(0.0, *given)
        at = jax.jit(jax.vmap(along, (None, 0, 0, 0, 0)))
        step = 1e-5
        difference = (at(step, *given) - at(-step, *given)) / (2 * step)
        scale = 1e-6 + np.abs(np.asarray(difference))
        error = np.abs(np.asarray(slope - difference)) / scale
    assert np.isfinite(error).all()
    assert error.max() < 1e-3


def test_every_field_has_the_right_derivative():
    """Field by field, so that none hides behind the others."""
    rng = np.random.default_rng(1)
    nets, machines = stacked(rng, 20, density=0.45)
    nets = nets._replace(keep=np.minimum(nets.keep, 0.97))
    with X64(True):
        nets, machines, values = in_float64(nets, machines)
        gradient = jax.jit(jax.vmap(jax.grad(objective)))(values, nets, machines)
        at = jax.jit(jax.vmap(objective))
        for side, fields in enumerate((OF_MACHINE, OF_WORKLOAD)):
            for name in fields:
                step = 1e-5 * np.maximum(np.abs(values[side][name]), 1e-3)
                ends = []
                for sign in (1, -1):
                    moved = [dict(values[0]), dict(values[1])]
                    moved[side][name] = values[side][name] + sign * step
                    ends.append(at(tuple(moved), nets, machines))
                # The step differs from entry to entry: compare its product.
                axes = tuple(range(1, gradient[side][name].ndim))
                expected = np.sum(gradient[side][name] * step, axis=axes)
                found = (ends[0] - ends[1]) / 2
                np.testing.assert_allclose(
                    found, expected, rtol=1e-3, atol=1e-11, err_msg=name
                )


def test_smooth_and_hard_agree_within_ten_percent_at_the_median():
    rng = np.random.default_rng(2)
    nets, machines = stacked(rng, 500)
    hard = jax.jit(jax.vmap(hw.cost))(nets, machines)
    smooth = jax.jit(
        jax.vmap(lambda net, machine: hw.cost(net, machine, temperature=T))
    )(nets, machines)
    for name in ("seconds", "energy", "dram_bytes"):
        gap = np.abs(getattr(smooth, name) / getattr(hard, name) - 1)
        assert np.median(gap) < 0.10, name
        assert np.quantile(gap, 0.95) < 0.5, name


def test_smooth_becomes_hard_where_sizes_divide():
    gemm = workload.product(512, 768, 768)
    fields = {"clock": 1, "rows": 32, "columns": 32, "sram": 8192}
    machine = hw.accelerator(**fields, dram_bandwidth=20, dataflows=(1, 0, 0))
    hard = hw.cost(gemm, machine)
    gaps = [
        abs(float(hw.cost(gemm, machine, temperature=t).seconds / hard.seconds) - 1)
        for t in (0.3, 0.1, 0.01)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3


@pytest.mark.parametrize("temperature", [0.02, 0.2])
def test_smooth_pieces_are_their_formulas(temperature):
    r = _arithmetic.smooth(temperature)
    x = np.linspace(0.01, 9, 200)
    np.testing.assert_allclose(
        r.tiles(jnp.asarray(x, jnp.float32)),
        (x + 1 + np.sqrt((x - 1) ** 2 + temperature**2)) / 2,
        rtol=1e-5,
    )
    a, b = jnp.float32(3.0), jnp.float32(3.5)
    larger = float(r.larger(a, b))
    assert 3.5 <= larger <= 3.5 * (1 + temperature)
    assert float(r.smaller(a, b)) == pytest.approx(6.5 - larger)
    # Of one scale: ten times the times are ten times the maximum.
    assert float(r.larger(10 * a, 10 * b)) == pytest.approx(10 * larger, rel=1e-6)
    weights = np.asarray([float(w) for w in r.weights([a, b, 2 * b])])
    powers = np.array([3, 3.5, 7.0]) ** (-1 / temperature)
    np.testing.assert_allclose(weights, powers / powers.sum(), rtol=1e-4)


def test_gradients_are_finite_where_work_is_zero():
    softmax = workload.product(0, 0, 0, batch=0, exponentials=100.0)
    empty = workload.product(0, 0, 0, batch=0, repeats=0)
    net = workload.chain([softmax, empty, workload.product(8, 8, 8)])
    machine = hw.machines.spatten()

    def energy(net, machine):
        return hw.cost(net, machine, temperature=T).energy

    slopes = jax.grad(energy, argnums=(0, 1))(net, machine)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
