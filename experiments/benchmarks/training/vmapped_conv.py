"""Speed of a convolution under `vmap` over its kernels, as for batched seeds."""

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
from experiments.models import layers

STEPS = 5  # gradient steps per timed call


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of images and kernels; one ratio each.
      steps: number of repetitions; their median is reported.
      kernels: number of batched kernels.
      images: `(n, height, width, channels)`.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 5
    kernels: int = 12
    images: tuple[int, int, int, int] = (32, 8, 8, 16)


def lax_conv(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """The same as `layers.conv`, by `lax.conv_general_dilated`."""
    out = jax.lax.conv_general_dilated(
        x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out + layer["bias"]


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Times gradient steps of both forms, in turns."""
    del data_dir
    task = progress.add_task("time", total=len(settings.seeds))
    forms = {"lax_conv": compiled(lax_conv), "patches": compiled(layers.conv)}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for seed in settings.seeds:
        layer, images = inputs(settings, seed)
        for name, time_taken in in_turns(forms, (layer, images), settings.steps):
            seconds[name].append(time_taken)
        progress.advance(task)
    ratios = [
        a / b for a, b in zip(seconds["lax_conv"], seconds["patches"], strict=True)
    ]
    figures = {
        "milliseconds": {k: [rounded(1e3 * s) for s in v] for k, v in seconds.items()},
        "ratio": [rounded(ratio) for ratio in ratios],
    }
    return Outcome(figures, {"main": table(figures, settings)})


def compiled(conv: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Returns jitted gradient steps in a scan, batched over layers."""

    def loss(layer: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        # Two layers, so that the gradient of the input is also computed.
        hidden = conv(layer, images)
        return jnp.square(conv(layer, hidden)).mean()

    def step(layer: dict[str, jax.Array], images: jax.Array):
        grads = jax.grad(loss)(layer, images)
        return jax.tree.map(lambda w, g: w - 1e-3 * g, layer, grads), None

    def steps(layer: dict[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        return jax.lax.scan(lambda layer, _: step(layer, images), layer, length=STEPS)[
            0
        ]

    return jax.jit(jax.vmap(steps, in_axes=(0, None)))


def inputs(settings: Settings, seed: int) -> tuple[dict[str, jax.Array], jax.Array]:
    """Returns a batch of layers and a batch of images."""
    rng = np.random.default_rng(seed)
    channels = settings.images[-1]
    shape = (settings.kernels, 3, 3, channels, channels)
    layer = {
        "kernel": jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32),
        "bias": jnp.zeros((settings.kernels, channels), jnp.float32),
    }
    return layer, jnp.asarray(rng.normal(size=settings.images), jnp.float32)


def in_turns(
    forms: dict[str, Callable[..., Any]], args: tuple[Any, ...], repetitions: int
) -> list[tuple[str, float]]:
    """Returns the median seconds of each form, measured in turns."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        jax.block_until_ready(form(*args))
    for _ in range(repetitions):
        for name, form in forms.items():
            begin = time.perf_counter()
            jax.block_until_ready(form(*args))
            taken[name].append(time.perf_counter() - begin)
    return [(name, statistics.median(times)) for name, times in taken.items()]


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of times and their ratio."""
    milliseconds = figures["milliseconds"]
    n, height, width, channels = settings.images
    return Table(
        columns=("form", "ms", "ratio"),
        rows=(
            ("patches times a matrix", plus_minus(milliseconds["patches"]), "1"),
            (
                "lax.conv",
                plus_minus(milliseconds["lax_conv"]),
                plus_minus(figures["ratio"]),
            ),
        ),
        caption=(
            f"{STEPS} gradient steps in lax.scan of two 3x3 convolutions, under vmap "
            f"over {settings.kernels} kernels: {n} images {height}x{width}x{channels}; "
            f"median of {settings.steps}, mean ± std over {len(settings.seeds)} inputs."
        ),
    )


STUDY = Study(
    Settings(),
    (
        Claim(
            "training 3x3 convolutions under vmap over kernels: time of lax.conv over "
            "time of patches times a matrix",
            "jprune",
            (">", 2.0),
            lambda figures: mean_and_spread(figures["ratio"]),
        ),
    ),
    run,
)
