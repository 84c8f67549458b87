"""Cycles of arrays: SCALE-Sim's cells, its closed form, exact integers; selections."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jprune import hardware as hw
from jprune.hardware import systolic, topk, workload

# SCALE-Sim 3.0.0, cycles without prefetch: kept weights on 32 x 32; then kept
# weights, outputs and inputs on 128 x 128.
SCALE_SIM = {
    (512, 768, 768): (349_055, 32_183, 24_527, 27_599),
    (512, 512, 64): (19_391, 3_575, 5_087, 3_575),
    (512, 64, 512): (19_391, 3_575, 3_063, 7_135),
}


@pytest.mark.parametrize("sizes", SCALE_SIM)
def test_cycles_of_scale_sim(sizes):
    small, *large = SCALE_SIM[sizes]
    assert float(systolic.cycles(sizes, 32, 32)[0]) == small
    assert systolic.cycles(sizes, 128, 128).tolist() == large
    assert systolic.to_int(systolic.exact_cycles(sizes, 128, 128)).tolist() == large


def closed_form(m, n, k, rows, columns):
    """What SCALE-Sim counts for kept weights, outputs and inputs."""

    def up(a, b):
        return -(-a // b)

    return [
        (2 * rows + columns + m - 2) * up(k, rows) * up(n, columns) - 1,
        (rows + columns + k - 2) * up(m, rows) * up(n, columns) - 1,
        (2 * rows + columns + n - 2) * up(k, rows) * up(m, columns) - 1,
    ]


@pytest.mark.parametrize("flow", range(3))
def test_cycles_and_costs_of_fifty_random_products(flow):
    rng = np.random.default_rng(0)
    shapes = [tuple(map(int, rng.integers(1, 700, 3))) for _ in range(50)]
    arrays = [tuple(map(int, rng.integers(2, 130, 2))) for _ in range(50)]
    expected = [closed_form(*s, *a)[flow] for s, a in zip(shapes, arrays, strict=True)]
    machines = [
        hw.accelerator(
            clock=1,
            rows=rows,
            columns=columns,
            sram=1e5,
            dram_bandwidth=1e9,
            fill=1,
            dataflows=np.eye(3)[flow],
        )
        for rows, columns in arrays
    ]
    nets = jax.tree.map(
        lambda *x: jnp.stack(x), *[workload.product(*sizes) for sizes in shapes]
    )
    found = jax.jit(jax.vmap(hw.cost))(nets, hw.accelerators.stack(machines))
    assert found.cycles.tolist() == expected


@hypothesis.given(
    st.tuples(*[st.integers(1, 2**20)] * 3),
    st.tuples(*[st.integers(1, 512)] * 2),
    st.integers(1, 64),
)
@hypothesis.settings(deadline=None, max_examples=200, derandomize=True)
def test_cycles_are_exact_far_beyond_float32(sizes, array, batch):
    m, n, k = sizes
    plain = [c + 1 for c in closed_form(m, n, k, *array)]
    hypothesis.assume(
        max(-(-a // array[0]) * -(-b // array[1]) * batch for a in sizes for b in sizes)
        < 2**32
    )
    found = EXACT(sizes, *array, batch)
    assert systolic.to_int(found).tolist() == [batch * c - 1 for c in plain]
    hidden = systolic.exact_cycles(sizes, *array, batch=batch, counted=False)
    down, across = -(-k // array[0]), -(-n // array[1])
    assert int(systolic.to_int(hidden)[0]) == batch * down * across * m


@jax.jit
def EXACT(sizes, rows, columns, batch):
    return systolic.exact_cycles(sizes, rows, columns, batch=batch)


def test_float32_alone_would_be_wrong():
    sizes = (2**20 - 1, 4097, 4097)
    exact = closed_form(*sizes, 128, 128)
    found = systolic.cycles(sizes, 128, 128)
    assert [int(x) for x in found] != exact
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    assert systolic.to_int(EXACT(sizes, 128, 128, 1)).tolist() == exact


@hypothesis.given(*[st.integers(0, 2**32 - 1)] * 4)
@hypothesis.settings(deadline=None, max_examples=200, derandomize=True)
def test_wide_integers(a, b, c, d):
    a, b, c, d = (np.uint32(x) for x in (a, b, c, d))
    one, two = (
        systolic.multiply(jnp.uint32(x), jnp.uint32(y)) for x, y in ((a, b), (c, d))
    )
    products = int(a) * int(b), int(c) * int(d)
    assert int(systolic.to_int(one)) == products[0]
    total = int(systolic.to_int(systolic.add(one, two)))
    assert total == sum(products) % 2**64


def test_hidden_fill_by_hand():
    # 24 by 24 tiles of 512 lines, after 512 * 768 bytes and a tile of 1024 at 64 each.
    found = systolic.hidden_cycles(
        (512, 768, 768), 32, 32, bytes_per_cycle=64.0, sram=2.0**21
    )
    assert float(found) == 24 * 24 * 512 + 512 * 768 / 64 + 1024 / 64
    # Weights bound: all of them, the results and a tile.
    found = systolic.hidden_cycles(
        (64, 512, 512), 128, 128, bytes_per_cycle=8.0, sram=2.0**21
    )
    assert float(found) == (512 * 512 + 64 * 512 + 128 * 128) / 8


def test_sizes_that_cannot_be_meant_are_named():
    with pytest.raises(ValueError, match="columns has to be positive; got 0"):
        systolic.check_sizes((4, 4, 4), 8, 0)


# The authors' latency model, rewritten and sampled 400 times: n, k, cycles at P = 16.
AUTHORS = [
    (1024, 128, 212.6),
    (1024, 204, 235.4),
    (1024, 512, 253.4),
    (512, 128, 136.8),
    (128, 64, 54.7),
]


@pytest.mark.parametrize(("n", "k", "cycles"), AUTHORS)
def test_selection_takes_what_the_authors_model_says(n, k, cycles):
    assert float(topk.topk_cycles(n, k, 16)) == pytest.approx(cycles, rel=0.05)


@pytest.mark.parametrize(("n", "k"), [(1024, 128), (1024, 512), (256, 64)])
def test_comparisons_are_those_of_quick_select(n, k):
    """Quick-select with random pivots, played."""
    rng = np.random.default_rng(1)
    reads = []
    for _ in range(400):
        left, wanted, read = n, k, 0
        while left > 1:
            read += left
            above = int(rng.integers(left))  # scores above the pivot, all as likely
            if above + 1 == wanted:
                break
            if wanted <= above:
                left = above
            else:
                left, wanted = left - above - 1, wanted - above - 1
        reads.append(read)
    expected = float(topk.compared(float(n), float(k)))
    assert np.mean(reads) == pytest.approx(expected, rel=0.05)


def test_nothing_is_selected_where_all_or_none_stay():
    assert float(topk.topk_cycles(512.0, 512.0, 16)) == 0
    assert float(topk.topk_cycles(512.0, 0.0, 16)) == 0
    slope = jax.grad(topk.topk_cycles)(512.0, 100.0, 16.0)
    step = topk.topk_cycles(513.0, 100.0, 16.0) - topk.topk_cycles(511.0, 100.0, 16.0)
    assert float(slope) == pytest.approx(float(step) / 2, rel=1e-3)
