"""Published and predicted figures: systolic arrays, peaks and SpAtten."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.studies.hardware import _rows_networks as of_networks
from experiments.studies.hardware import _shapes as spatten_shapes
from experiments.studies.hardware._row import COST, Row
from experiments.tasks import spatten_traces as traces
from jprune import hardware as hw
from jprune.hardware import machines, spatten, topk, workload

_SPATTEN = "SpAtten, 2021, arXiv:2012.09852"
_TPU = "In-Datacenter Performance Analysis of a TPU, 2017, arXiv:1704.04760"
_EYERISS = "Eyeriss, JSSC 2017"


def rows() -> list[Row]:
    """Returns all rows."""
    return [
        *scale_sim(),
        *peaks(),
        *selections(),
        *generation(),
        *end_to_end(),
        *eighth(),
        *of_networks.eyeriss(),
        *of_networks.tpu_v1(),
        *of_networks.gpus(),
    ]


# SCALE-Sim 3.0.0, cycles without prefetch: weight stationary on 32 x 32, then weight,
# output and input stationary on 128 x 128.
_CELLS = {
    (512, 768, 768): (349_055, 32_183, 24_527, 27_599),
    (512, 512, 64): (19_391, 3_575, 5_087, 3_575),
    (512, 64, 512): (19_391, 3_575, 3_063, 7_135),
}


def scale_sim() -> list[Row]:
    """Returns cycles of systolic arrays, including the time to fill them."""
    found = []
    for sizes, cells in _CELLS.items():
        for i, reference in enumerate(cells):
            side, flow = (32, 0) if i == 0 else (128, i - 1)
            machine = hw.accelerator(
                clock=1,
                rows=side,
                columns=side,
                dataflows=np.eye(3)[flow],
                fill=1,
                sram=1e5,
                dram_bandwidth=1e6,
            )
            cost = COST(workload.product(*sizes), machine)
            name = f"systolic: {side} x {side}, {hw.systolic.DATAFLOWS[flow]} kept"
            quantity = "cycles of {} x {} x {}".format(*sizes)
            source = "SCALE-Sim 3.0.0, 2024 [M]"
            row = (name, quantity, float(cost.cycles), reference, source, "exact")
            found.append(Row(*row))
    return found


def peaks() -> list[Row]:
    """Returns peaks and ridge points, which follow from unit counts and clocks."""
    published = [
        ("SpAtten", machines.spatten(), 12, 2.048, f"{_SPATTEN} [V]"),
        ("TPU v1", machines.tpu_v1(), 8, 92.0, f"{_TPU} [V]"),
        ("Eyeriss", machines.eyeriss(), 16, 0.0672, f"{_EYERISS} [R]"),
        ("TPU v5e", machines.tpu_v5e(), 8, 393.0, "Google Cloud documentation [V]"),
        ("A100", machines.a100(), 16, 312.0, "NVIDIA A100 whitepaper, 2020 [R]"),
        ("H100", machines.h100(), 8, 1979.0, "NVIDIA H100 whitepaper, 2022 [R]"),
        ("TITAN Xp", machines.titan_xp(), 32, 12.15, "NVIDIA, 2017 [R]"),
        ("Jetson Nano", machines.jetson_nano(), 16, 0.472, "NVIDIA, 2019 [R]"),
    ]
    found = [
        Row(
            *(name, f"peak at {bits} bits, TOPS"),
            *(float(hw.accelerators.peak_tops(m, bits)), peak, source, "exact"),
        )
        for name, m, bits, peak, source in published
    ]
    ridges = [
        ("SpAtten", machines.spatten(), 12, 4.0, f"{_SPATTEN} [D]"),
        ("H100", machines.h100(), 16, 989 / 3.35, "NVIDIA, 2022 [R]"),
        ("TPU v5e", machines.tpu_v5e(), 16, 197 / 0.819, "Google, 2023 [V]"),
    ]
    return found + [
        Row(
            *(name, f"ridge at {bits} bits, operations a byte"),
            *(float(hw.accelerators.ridge(m, bits)), ridge, source, "exact"),
        )
        for name, m, bits, ridge, source in ridges
    ]


def selections() -> list[Row]:
    """Returns latencies of SpAtten's top-k engine."""
    authors = [
        (1024, 128, 212.6),
        (1024, 204, 235.4),
        (1024, 512, 253.4),
        (512, 128, 136.8),
        (128, 64, 54.7),
    ]
    source = "SpAtten's released latency model, rewritten, 400 trials [D]"
    return [
        Row(
            *("SpAtten", f"cycles to select {k} of {n}"),
            *(float(topk.topk_cycles(float(n), float(k), 16.0)), cycles, source),
        )
        for n, k, cycles in authors
    ]


class Generation(NamedTuple):
    """Stages and traffic of a trace, with dense attention for comparison."""

    pruned: spatten.Stages
    fetched: np.ndarray
    dense: np.ndarray
    keys: float


def traced(trace: traces.Trace) -> Generation:
    """Returns the stages of a trace of generation, for each step and layer."""
    read, whole = traces.rows(trace), traces.dense_rows(trace)
    heads = read.queries
    layer = spatten.Attention(
        queries=jnp.ones(heads.shape, jnp.float32),
        keys=jnp.asarray(read.keys / heads, jnp.float32),
        values=jnp.asarray(read.values / heads, jnp.float32),
        heads=jnp.asarray(heads, jnp.float32),
        key_bits=trace.bits.msb,
        value_bits=trace.bits.value,
        lsb_bits=trace.bits.lsb,
        refetch=jnp.asarray(read.lower / read.keys, jnp.float32),
        dim=trace.dim,
    )
    return Generation(
        spatten.stages(layer, machines.spatten()),
        read.keys + read.values,
        whole.keys + whole.values,
        float(whole.keys.sum() / read.keys.sum()),
    )


def generation() -> list[Row]:
    """Returns the traffic of the authors' two GPT-2 traces, and its time."""
    published = {
        "GPT-2 small": (traces.GPT2_SMALL, 3.62, 6.04, 28.9, 0.161),
        "GPT-2 medium": (traces.GPT2_MEDIUM, 1.86 * 1.085, 3.10, 8.96, 1.383),
    }
    source = "SpAtten's released traces of WikiText-2 [D]"
    found = []
    for name, (trace, keys, elements, size, milliseconds) in published.items():
        run = traced(trace)
        plain = 4 * trace.dim * float(run.dense.sum())  # bytes, in 32 bits
        moved = float(jnp.sum(run.pruned.dram_bytes))
        predicted = {
            "fewer rows of keys, times": (run.keys, keys),
            "fewer keys and values, times": (
                float(run.dense.sum() / run.fetched.sum()),
                elements,
            ),
            "fewer bytes than in 32 bits, times": (plain / moved, size),
            "DRAM time of 32 tokens, ms": (
                1e-6 * float(jnp.sum(run.pruned.dram)),
                milliseconds,
            ),
        }
        found += [
            Row("SpAtten", f"{name}: {quantity}", ours, theirs, source)
            for quantity, (ours, theirs) in predicted.items()
        ]
    return found


def end_to_end() -> list[Row]:
    """Returns SpAtten-e2e, which streams GPT-2 medium's weights for each token."""
    stages = traced(traces.GPT2_MEDIUM).pruned
    attention = 1e-6 * float(jnp.sum(spatten.overlapped(stages)))
    found, times = [], {}
    for bits, reference in ((8, 18.9), (12, 28.3)):
        width = 1024
        layer = [
            workload.product(1, n, k, weight_bits=bits, input_bits=12)
            for n, k in ((3, 1), (1, 1), (4, 1), (1, 4))
            for n, k in [(n * width, k * width)]
        ]
        net = workload.repeated(workload.chain(layer), 24 * 32)
        times[bits] = 1e3 * float(COST(net, machines.spatten()).seconds)
        quantity = f"GPT-2 medium: {bits}-bit weights of 32 tokens, ms"
        found.append(
            Row("SpAtten-e2e", quantity, times[bits], reference, f"{_SPATTEN} [R]")
        )
    ratio = (times[12] + attention) / (times[8] + attention)
    return [
        *found,
        Row(
            *("SpAtten-e2e", "GPT-2 medium: attention of 32 tokens, ms"),
            *(attention, 1.4, f"{_SPATTEN} [R]"),
        ),
        Row(
            *("SpAtten-e2e", "12-bit time over 8-bit time"),
            *(ratio, 35 / 24, f"{_SPATTEN} [R]"),
        ),
    ]


def eighth() -> list[Row]:
    """Returns the table of the 1/8 scale, for the central scenario of its study."""
    cases = spatten_shapes.benchmarks(spatten_shapes.CENTRAL)
    figures = [spatten_shapes.measure(case) for case in cases]
    source = f"{_SPATTEN}, table of accelerators"
    published = [
        ("SpAtten-1/8", "gops", 1, 360, "[V]", ""),
        ("A3", "a3_gops", 1, 221, "[R]", ""),
        ("MnnFast", "a3_gops", 0.5, 120, "[R]", "fitted"),
    ]
    return [
        Row(
            *(name, "dense-equivalent GOP/s over 30 benchmarks"),
            *(scale * float(np.mean([f[key] for f in figures])), reference),
            *(f"{source} {tag}", mark),
        )
        for name, key, scale, reference, tag, mark in published
    ]
