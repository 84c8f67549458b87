"""Cost of products with a pruned matrix in several formats, relative to dense.

CPU time, which other processes affect little, as ratios to the dense product of the
same turn.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from jprune import formats

KEPT = {"50 %": (2, 4), "75 %": (1, 4), "90 %": (1, 10), "95 %": (1, 20)}
BLOCKS = (32, 64, 128)
CALLS = 3  # calls per measurement


class Settings(NamedTuple):
    """Settings of the product y = x W.

    Attributes:
      seeds: seeds of x, W and the masks; one ratio each.
      steps: number of turns; their median is reported.
      n: number of examples.
      size: inputs and outputs of W; divisible by 4, 10, 20 and the blocks.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 7
    n: int = 256
    size: int = 1280


class Form(NamedTuple):
    """A product in one format.

    Attributes:
      product: `(x, w) -> y`.
      w: weight in that format.
    """

    product: Callable[[jax.Array, Any], jax.Array]
    w: Any


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times all formats at all sparsities, in turns."""
    del data_dir
    task = progress.add_task("time", total=len(settings.seeds) * len(KEPT))
    ratios: dict[str, dict[str, list[float]]] = {}
    milliseconds = []
    for seed in settings.seeds:
        x, w = inputs(settings, seed)
        for sparsity, (n, m) in KEPT.items():
            rng = np.random.default_rng(seed)
            found, dense = in_turns(x, forms(w, n, m, rng), settings.steps)
            milliseconds.append(rounded(1e3 * dense))
            for name, ratio in found.items():
                row = ratios.setdefault(name, {name: [] for name in KEPT})
                row[sparsity].append(rounded(ratio))
            progress.advance(task)
    figures = {"dense_cpu_milliseconds": milliseconds, "ratio": ratios}
    return Outcome(figures, {"main": table(figures, settings)})


def inputs(settings: Settings, seed: int) -> tuple[jax.Array, np.ndarray]:
    """Returns x and the weight before pruning."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(settings.n, settings.size))
    w = rng.normal(size=(settings.size, settings.size))
    return jnp.asarray(x, jnp.float32), w.astype(np.float32)


def forms(w: np.ndarray, n: int, m: int, rng: np.random.Generator) -> dict[str, Form]:
    """Returns a weight with random density n/m in every format; dense first."""
    size, kept = len(w), len(w) * n // m
    mask = random_mask(rng, (size, size), n / m)
    pattern = rng.random((size // m, m, size)).argsort(1).argsort(1) < n
    pattern = pattern.reshape(size, size)
    found = {
        "dense": Form(jnp.matmul, jnp.asarray(w)),
        "masked dense": Form(masked_product, (jnp.asarray(w), jnp.asarray(mask))),
        "BCOO": Form(bcoo_product, formats.to_bcoo(w, mask)),
        # W transposed, since JAX supports BCSR matrices on the left only.
        "BCSR": Form(bcsr_product, formats.to_bcsr(w.T, mask.T)),
        "n:m": Form(formats.n_of_m_matmul, formats.pack_n_of_m(n, m)(w, pattern)),
    }
    for side in BLOCKS:
        grid = random_mask(rng, (size // side, size // side), n / m)
        in_blocks = np.kron(grid, np.ones((side, side), bool)).astype(bool)
        blocks = formats.pack_blocks(side, side)(w, in_blocks)
        found[f"blocks of {side}"] = Form(formats.block_matmul, blocks)
        if side == min(BLOCKS):
            found[f"blocks of {side}, each by itself"] = Form(one_by_one, blocks)
            found[f"blocks of {side}, all at once"] = Form(all_at_once, blocks)
    found["fewer outputs, dense"] = Form(jnp.matmul, jnp.asarray(w[:, :kept]))
    return found


def random_mask(
    rng: np.random.Generator, shape: tuple[int, int], share: float
) -> np.ndarray:
    """Returns a random mask with exactly this density."""
    size = shape[0] * shape[1]
    return rng.permutation(np.arange(size) < round(share * size)).reshape(shape)


def masked_product(x: jax.Array, w: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns x W and applies the mask, as in training."""
    return x @ jnp.where(w[1], w[0], 0)


def bcoo_product(x: jax.Array, w: Any) -> jax.Array:
    """Returns x W for W in BCOO."""
    return x @ w


def bcsr_product(x: jax.Array, transposed: Any) -> jax.Array:
    """Returns x W for the transposed W in BCSR."""
    return (transposed @ x.T).T


def one_by_one(x: jax.Array, w: formats.Blocks) -> jax.Array:
    """Returns x W, one block at a time."""
    return formats.block_matmul(x, w, at_once=1)


def all_at_once(x: jax.Array, w: formats.Blocks) -> jax.Array:
    """Returns x W by one batched product of all blocks."""
    return formats.block_matmul(x, w, at_once=2**62)


def in_turns(
    x: jax.Array, forms: dict[str, Form], turns: int
) -> tuple[dict[str, float], float]:
    """Returns the CPU time of each form over that of the dense one in the same turn.

    Args:
      x: left operand.
      forms: forms by name, including "dense".
      turns: number of turns, in each of which all forms run.

    Returns:
      The median ratios, and the median CPU time of the dense product in seconds.
    """
    products = {name: jax.jit(form.product) for name, form in forms.items()}
    for name, form in forms.items():
        jax.block_until_ready(products[name](x, form.w))  # compiles
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(turns):
        for name, form in forms.items():
            begin = time.process_time()
            for _ in range(CALLS):
                jax.block_until_ready(products[name](x, form.w))
            taken[name].append((time.process_time() - begin) / CALLS)
    dense = taken.pop("dense")
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, dense, strict=True))
        for name, times in taken.items()
    }
    return ratios, statistics.median(dense)


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table with a row per format."""
    ratios = figures["ratio"]
    return Table(
        columns=("CPU time over dense", *KEPT),
        rows=tuple(
            (name, *(plus_minus(values) for values in row.values()))
            for name, row in ratios.items()
        ),
        caption=(
            f"x W with x of {settings.n} by {settings.size}, W of {settings.size} by "
            f"{settings.size}, float32, by how much of W is pruned; n:m is "
            f"{', '.join(f'{n}:{m}' for n, m in KEPT.values())}. CPU-seconds, median "
            f"of {settings.steps} turns, mean ± std over {len(settings.seeds)} inputs."
        ),
    )


def claim(form: str, sparsity: str, target: tuple[str, float]) -> Claim:
    """Returns the claim on the CPU time of a format over that of dense."""
    return Claim(
        f"product with {form} at {sparsity}: CPU time over that of the dense product",
        "jprune",
        target,
        lambda figures: mean_and_spread(figures["ratio"][form][sparsity]),
    )


STUDY = Study(
    Settings(),
    (
        claim("blocks of 128", "90 %", ("<", 0.5)),
        claim("blocks of 32", "75 %", ("<", 1.0)),
        claim("blocks of 32", "90 %", ("<", 0.5)),
        claim("BCOO", "95 %", (">", 1.0)),
        claim("BCSR", "90 %", ("<", 1.0)),
        claim("n:m", "50 %", (">", 1.0)),
        claim("fewer outputs, dense", "50 %", ("<", 0.75)),
    ),
    run,
)
