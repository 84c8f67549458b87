"""Machines and workloads drawn at random, valid ones, over what is used."""

import numpy as np

from jprune import hardware as hw
from jprune.hardware import workload
from jprune.hardware.accelerators import Accelerator

PLAIN = hw.accelerator(clock=1, rows=8, columns=8, sram=64, dram_bandwidth=8)


def machine_fields(rng, **fixed):
    """Returns fields of a random machine; whole sizes, as in hard costs."""

    def between(low, high):
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    drawn = {
        "clock": between(0.2, 3),
        "rows": round(between(4, 128)),
        "columns": round(between(4, 128)),
        "arrays": int(rng.integers(1, 9)),
        "dataflows": np.eye(3)[rng.integers(3)] if rng.random() < 0.5 else np.ones(3),
        "fill": float(rng.integers(2)),
        "rates": sorted(rng.uniform(0.25, 2, 4), reverse=True),
        "efficiency": rng.uniform(0.5, 1),
        "vector": between(4, 512),
        "softmax": between(1, 64),
        "topk": between(2, 64),
        "latency": float(rng.integers(100)),
        "pipelined": float(rng.integers(2)),
        "launch": rng.uniform(0, 2),
        "sram": between(16, 4096),
        "sram_bandwidth": between(64, 4096),
        "overlap": float(rng.integers(2)),
        "dram_bandwidth": between(2, 1000),
        "skip": rng.uniform(0, 1),
        "lanes": float(rng.integers(1, 64)),
        "n_of_m": float(rng.integers(1, 4)),
        "compressed": float(rng.integers(2)),
        "gating": rng.uniform(0, 1),
        "mac_energy": between(0.1, 5),
        "mac_bits": float(rng.choice([8, 12, 16])),
        "vector_energy": between(0.1, 5),
        "topk_energy": between(0.01, 1),
        "sram_energy": between(0.1, 10),
        "dram_energy": between(1, 40),
        "leakage": rng.uniform(0, 5),
    }
    return drawn | fixed


def machine(rng, **fixed) -> Accelerator:
    """Returns a random machine; the areas and the node do not matter."""
    fields = PLAIN._asdict() | machine_fields(rng, **fixed)
    return Accelerator(**{k: np.float32(v) for k, v in fields.items()})


def operation(rng, joined=0.0, **fixed):
    """Returns the fields of a random operation, of all that it may have."""
    pattern = float(rng.integers(3))
    entries = int(rng.integers(2, 1024))
    drawn = {
        "batch": float(rng.integers(1, 9)),
        "m": float(rng.integers(1, 600)),
        "n": float(rng.integers(1, 900)),
        "k": float(rng.integers(8, 900)),
        "keep": [1, 1, 1, 1] if rng.random() < 0.5 else rng.uniform(0.4, 1, 4),
        "input_bits": float(rng.choice([4, 8, 12, 16])),
        "weight_bits": float(rng.choice([4, 6, 8, 16])),
        "output_bits": float(rng.choice([8, 16, 32])),
        "lsb_bits": float(rng.choice([0, 4])),
        "refetch": rng.uniform(0, 0.3),
        "input_dram": rng.uniform(0, 1),
        "weight_dram": rng.uniform(0, 1),
        "output_dram": rng.uniform(0, 1),
        "input_unique": rng.uniform(0.1, 1),
        "density": rng.uniform(0.05, 1) if pattern else 1.0,
        "pattern": pattern,
        "input_density": rng.uniform(0.3, 1),
        "elementwise": float(rng.integers(100_000)),
        "exponentials": float(rng.integers(10_000)),
        "selections": float(rng.integers(100)),
        "select_from": float(entries),
        "select_keep": float(rng.integers(entries + 1)),
        "gathered": float(rng.integers(100_000)),
        "joined": joined,
        "share": 0.5,
        "repeats": float(rng.integers(1, 4)),
    }
    return drawn | fixed


def network(rng, pairs=1, singles=2, **fixed):
    """Returns pairs of operations that a pipeline joins, and single ones."""
    rows = []
    for _ in range(pairs):
        repeats = float(rng.integers(1, 4))
        rows.append(operation(rng, **{"repeats": repeats} | fixed))
        rows.append(operation(rng, 1.0, **{"repeats": repeats} | fixed))
    rows += [operation(rng, **fixed) for _ in range(singles)]
    return workload.Workload(
        **{name: np.float32([row[name] for row in rows]) for name in rows[0]}
    )
