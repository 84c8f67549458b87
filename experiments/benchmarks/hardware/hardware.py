"""Design points per second of the hardware model, and a comparison with peers.

A design point is a network of twelve products on its own accelerator. Two threads share
the points, in chunks that fit the cache. The peers run in the interpreters that
JPRUNE_SCALESIM (`pip install scalesim 'numpy<2'`) and JPRUNE_ZIGZAG (`pip install
zigzag-dse six`) name; otherwise their rows and claims are omitted.
"""

import functools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jprune as jp
from experiments import ExperimentError
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from jprune import hardware as hw
from jprune.hardware import machines, systolic, workload

VARIABLES = {"SCALE-Sim": "JPRUNE_SCALESIM", "ZigZag": "JPRUNE_ZIGZAG"}
FORMS = {
    "cost": "cost: cycles, seconds, energy, bytes, area, bounds",
    "gradient": "value and gradient of energy times delay, smooth",
    "exact": "cycles as exact integers, three dataflows",
}
# Products of BERT-base, BERT-large, ViT-B and ResNet-50: m, n, k.
PRODUCTS = (
    *((512, 768, 768), (512, 3072, 768), (512, 768, 3072), (512, 512, 64)),
    *((512, 64, 512), (384, 1024, 1024), (197, 768, 768), (197, 3072, 768)),
    *((3136, 64, 256), (784, 512, 128)),
)
SIDES = (32, 128)
# Small enough for a cycle-level simulator: m, n, k, rows, columns, dataflow.
PLAYED = (
    *((64, 64, 32, 16, 16, "ws"), (50, 30, 20, 8, 16, "os"), (33, 70, 65, 16, 8, "is")),
    *((128, 128, 64, 32, 32, "ws"), (100, 40, 90, 32, 16, "os")),
    *(
        (64, 96, 128, 16, 32, "is"),
        (17, 19, 23, 4, 4, "ws"),
        (128, 64, 128, 32, 32, "os"),
    ),
    *((49, 128, 96, 24, 12, "is"), (197, 64, 64, 32, 32, "ws")),
)


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of the designs; one rate each.
      steps: number of turns; the fastest is reported, since others were disturbed.
      points: number of designs.
      chunk: designs that are computed at once; a quarter of this with gradients.
      threads: threads that share the points.
      temperature: temperature of the smooth cost.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 3
    points: int = 2**16
    chunk: int = 2**11
    threads: int = 2
    temperature: float = 0.05


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times the three forms in turns, and compares with the peers."""
    del data_dir
    task = progress.add_task("time", total=len(settings.seeds) + 2)
    rates: dict[str, list[float]] = {name: [] for name in FORMS}
    clock: dict[str, list[float]] = {name: [] for name in FORMS}
    runs = compiled(settings)
    for seed in settings.seeds:
        for name, (wall, cpu) in timed(settings, runs, seed).items():
            clock[name].append(rounded(settings.points / wall))
            # By CPU time, since the cores also have other work.
            rates[name].append(rounded(settings.points * settings.threads / cpu))
        progress.advance(task)
    figures: dict[str, Any] = {"points_a_second": rates, "points_by_the_clock": clock}
    figures["wrong_cycles"] = wrong_cycles(settings)
    figures["peers"] = {}
    for name, compare in (("SCALE-Sim", scale_sim), ("ZigZag", zigzag)):
        if peer_python(name):
            figures["peers"][name] = compare(rates)
        progress.advance(task)
    tables = {"main": table(figures, settings), "peers": peers_table(figures)}
    return Outcome(figures, tables)


def network() -> hw.Workload:
    """Returns twelve products: those of two layers of a BERT."""
    layer = [(512, 2304, 768), (512, 512, 64), (512, 64, 512), (512, 768, 768)]
    layer += [(512, 3072, 768), (512, 768, 3072)]
    return workload.chain([workload.product(*sizes) for sizes in 2 * layer])


def designs(key: jax.Array, count: int) -> hw.Accelerator:
    """Returns random accelerators with different sizes, clocks and memories."""
    bounds = {
        "rows": (8, 256),
        "columns": (8, 256),
        "sram": (32, 32_768),
        "dram_bandwidth": (8, 1024),
        "clock": (0.2, 2),
    }
    drawn = jp.search.random_designs(key, count, bounds)
    drawn |= {name: jnp.round(drawn[name]) for name in ("rows", "columns")}
    like = machines.tpu_v1()._replace(dataflows=np.ones(3, np.float32))
    full = {
        k: drawn.get(k, jnp.broadcast_to(v, (count, *np.shape(v))))
        for k, v in like._asdict().items()
    }
    return hw.Accelerator(**full)


def forms(settings: Settings) -> dict[str, Callable[[Any], Any]]:
    """Returns the functions of one machine to time."""
    net = network()

    def product_of(machine: hw.Accelerator) -> Any:
        found = hw.cost(net, machine, temperature=settings.temperature)
        return found.energy * found.seconds

    def exact(machine: hw.Accelerator) -> Any:
        def each(o: hw.Workload) -> systolic.Wide:
            return systolic.exact_cycles((o.m, o.n, o.k), machine.rows, machine.columns)

        return jax.vmap(each)(net)

    return {
        "cost": functools.partial(hw.cost, net),
        "gradient": jax.value_and_grad(product_of),
        "exact": exact,
    }


def compiled(settings: Settings) -> dict[str, Callable[[Any], Any]]:
    """Returns each function over many machines, jitted."""
    chunks = dict.fromkeys(FORMS, settings.chunk)
    chunks["gradient"] //= 4
    return {name: chunked(f, chunks[name]) for name, f in forms(settings).items()}


def timed(
    settings: Settings, runs: dict[str, Callable[[Any], Any]], seed: int
) -> dict[str, tuple[float, float]]:
    """Returns the minimum wall-clock and CPU seconds of each function."""
    parts = [
        designs(key, settings.points // settings.threads)
        for key in jax.random.split(jax.random.key(seed), settings.threads)
    ]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    with ThreadPoolExecutor(settings.threads) as pool:
        for f in runs.values():  # compiles
            jax.block_until_ready(f(parts[0]))
        for _ in range(settings.steps):
            for name, f in runs.items():
                begin = time.perf_counter(), time.process_time()
                list(pool.map(lambda x, f=f: jax.block_until_ready(f(x)), parts))
                end = time.perf_counter(), time.process_time()
                found[name].append((end[0] - begin[0], end[1] - begin[1]))
    return {
        name: (min(t[0] for t in times), min(t[1] for t in times))
        for name, times in found.items()
    }


def chunked(f: Callable[[Any], Any], chunk: int) -> Callable[[Any], Any]:
    """Returns the jitted function over many machines, mapped in chunks."""

    def whole(parts: Any) -> Any:
        return jax.lax.map(f, parts, batch_size=chunk)

    return jax.jit(whole)


def wrong_cycles(settings: Settings) -> dict[str, int]:
    """Returns how many counts are wrong, and how many exceed 2^24."""
    rng = np.random.default_rng(settings.seeds[0])
    sizes = rng.integers(2**10, 2**17, (3, 1000))
    arrays = rng.integers(8, 257, (2, 1000))
    found = jax.jit(jax.vmap(systolic.exact_cycles))(tuple(sizes), *arrays)
    ours = systolic.to_int(found)
    wrong, large = 0, 0
    for i, (m, n, k) in enumerate(sizes.T.tolist()):
        rows, columns = arrays[:, i].tolist()
        for j, exact in enumerate(closed_form(m, n, k, rows, columns)):
            wrong += int(ours[i, j]) != exact
            large += exact > 2**24
    return {"wrong": wrong, "past_2_24": large}


def closed_form(m: int, n: int, k: int, rows: int, columns: int) -> list[int]:
    """Returns SCALE-Sim's cycles as Python integers."""
    over_k, over_n = -(-k // rows), -(-n // columns)
    over_m = -(-m // rows), -(-m // columns)
    return [
        (2 * rows + columns + m - 2) * over_k * over_n - 1,
        (rows + columns + k - 2) * over_m[0] * over_n - 1,
        (2 * rows + columns + n - 2) * over_k * over_m[1] - 1,
    ]


def scale_sim(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Compares the cycles and rates of SCALE-Sim with ours."""
    found = played("SCALE-Sim", "scalesim", PLAYED)
    flows = ("ws", "os", "is")
    ours = [
        closed_cycles(m, n, k, rows, columns)[flows.index(flow)]
        for m, n, k, rows, columns, flow in PLAYED
    ]
    return compared(found, PLAYED, ours, rates)


def closed_cycles(m: int, n: int, k: int, rows: int, columns: int) -> list[int]:
    """Returns the cycles of the model, including the time to fill the array."""
    found = systolic.exact_cycles((m, n, k), rows, columns)
    return systolic.to_int(found).tolist()


def zigzag(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Compares the cycles and rates of ZigZag with ours."""
    products = tuple((*sizes, side, side) for sizes in PRODUCTS for side in SIDES)
    found = played("ZigZag", "zigzag", products)
    ours = [
        float(
            systolic.hidden_cycles(
                (m, n, k), rows, columns, bytes_per_cycle=64.0, sram=2.0**21
            )
        )
        for m, n, k, rows, columns in products
    ]
    return compared(found, products, ours, rates)


def compared(
    found: dict[str, Any], products: Any, ours: Any, rates: dict[str, list[float]]
) -> dict[str, Any]:
    """Returns the cycles of both, the errors, and the ratio of rates per product."""
    error = [100 * (a / b - 1) for a, b in zip(ours, found["cycles"], strict=True)]
    a_product = statistics.mean(found["seconds"])
    each = statistics.mean(rates["cost"]) * len(network().m)
    return {
        "version": found["version"],
        "products": [list(p) for p in products],
        "cycles": found["cycles"],
        "ours": [rounded(x) for x in ours],
        "error_percent": [rounded(e) for e in error],
        "seconds": [rounded(s) for s in found["seconds"]],
        "times_faster": rounded(each * a_product),
    }


def played(name: str, tool: str, products: Any) -> dict[str, Any]:
    """Returns the output of a peer in its own process.

    Raises:
      ExperimentError: the interpreter cannot run it.
    """
    python = peer_python(name) or ""
    script = Path(__file__).with_name("_peers.py")
    command = [python, str(script), tool, json.dumps(products)]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise ExperimentError(
            f"{python} cannot run {name} ({VARIABLES[name]}): "
            f"{said.strip().splitlines()[-1]}"
        ) from error
    return json.loads(done.stdout.splitlines()[-1])


def peer_python(name: str) -> str | None:
    """Returns the interpreter of a peer, or None."""
    return os.environ.get(VARIABLES[name])


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of rates."""
    rows = []
    for name, label in FORMS.items():
        both = (figures[k][name] for k in ("points_a_second", "points_by_the_clock"))
        rows.append((label, *(plus_minus([x / 1e6 for x in v]) for v in both)))
    wrong = figures["wrong_cycles"]
    return Table(
        columns=("a network of 12 products on", "10^6 points/s", "by the clock"),
        rows=tuple(rows),
        caption=(
            f"{settings.points:,} machines, vmapped in chunks of {settings.chunk:,}, "
            f"jitted, on {settings.threads} threads: by the CPU time of as many cores, "
            "and by the clock, as busy as the machine was. The fastest of "
            f"{settings.steps} turns, mean ± std over {len(settings.seeds)} seeds. Of "
            f"{wrong['past_2_24']:,} counts past 2^24, {wrong['wrong']} were not exact."
        ),
    )


def peers_table(figures: dict[str, Any]) -> Table:
    """Returns the table of the products of the peers."""
    rows = [
        (
            f"{name} {peer['version']}",
            " ".join(map(str, product)),
            f"{theirs:,}",
            f"{ours:,.0f}",
            f"{error:+.1f}",
        )
        for name, peer in figures["peers"].items()
        for product, theirs, ours, error in zip(
            *(peer[k] for k in ("products", "cycles", "ours", "error_percent")),
            strict=True,
        )
    ]
    ratios = "; ".join(
        f"{name}: {peer['times_faster']:,.0f} times slower for a product"
        for name, peer in figures["peers"].items()
    )
    return Table(
        columns=("peer", "m n k rows columns", "its cycles", "ours", "error (%)"),
        rows=tuple(rows),
        caption=(
            "Each in its own convention: SCALE-Sim's counts filling for each tile, "
            f"ZigZag's hides it and counts loading. {ratios}."
        ),
    )


def _rate(name: str, figures: dict[str, Any]) -> tuple[float, float | None]:
    millions = [x / 1e6 for x in figures["points_a_second"][name]]
    return mean_and_spread(millions)


def _wrong(figures: dict[str, Any]) -> tuple[float, None]:
    return float(figures["wrong_cycles"]["wrong"]), None


def _error(name: str, figures: dict[str, Any]) -> tuple[float, None]:
    return max(abs(e) for e in figures["peers"][name]["error_percent"]), None


def _faster(name: str, figures: dict[str, Any]) -> tuple[float, None]:
    return figures["peers"][name]["times_faster"], None


def claims() -> tuple[Claim, ...]:
    """Returns the claims; those on peers only if they can run."""
    rate = functools.partial
    found = [
        Claim(
            "hardware model: 10^6 networks of 12 products a second of two cores",
            *("jprune", (">=", 2), rate(_rate, "cost")),
        ),
        Claim(
            "hardware model: 10^6 values and gradients of such a second of two cores",
            *("jprune", (">=", 0.3), rate(_rate, "gradient")),
        ),
        Claim(
            "hardware model: cycles past 2^24 that are not exact",
            *("jprune", ("<=", 0), _wrong),
        ),
    ]
    for name, bound in (("SCALE-Sim", 0), ("ZigZag", 15)):
        if peer_python(name):
            text = f"cycles against {name} in its convention, largest error (%)"
            found.append(Claim(text, "jprune", ("<=", bound), rate(_error, name)))
            text = f"products a second, over {name}'s"
            found.append(Claim(text, "jprune", (">=", 1e4), rate(_faster, name)))
    return tuple(found)


STUDY = Study(Settings(), claims(), run)
