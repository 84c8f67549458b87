"""Speed-up of inference with half of the multiply-adds removed.

The same share of every group is removed, with sizes rounded to multiples that kernels
prefer, such that half of the multiply-adds remain. The full and the small function are
jitted and timed in turns.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments import models
from experiments.harness import timing
from experiments.harness.catalogue import Claim, Outcome, Study, Table
from experiments.harness.stats import mean_and_spread, plus_minus, rounded
from experiments.models import layers
from jprune import graph as jg


class Settings(NamedTuple):
    """Settings of the benchmark.

    Attributes:
      seeds: seeds of weights and inputs; one ratio each.
      steps: number of turns; their median is reported.
      multiple_of: sizes of groups are rounded to a multiple of this.
      batch: images of 32x32 per call of ResNet-20.
      depth: its number of layers with kernels.
      length: tokens per call of the block.
      width: width of the block; its MLP is four times as wide.
      heads: number of its heads.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 7
    multiple_of: int = 8
    batch: int = 64
    depth: int = 20
    length: int = 256
    width: int = 768
    heads: int = 12


Network = tuple[Callable[..., Any], Any, tuple[Any, ...]]


def resnet(settings: Settings, seed: int) -> Network:
    """Returns ResNet-20 for inference; its params include normalization statistics."""
    first, second = jax.random.split(jax.random.key(seed))
    params = models.resnet.init(first, depth=settings.depth)
    images = jax.random.normal(second, (settings.batch, 32, 32, 3))
    stats = jax.jit(models.resnet.batch_stats)(params, images)

    def fn(variables: Any, images: jax.Array) -> jax.Array:
        return models.resnet.apply(variables["params"], images, variables["stats"])

    return fn, {"params": params, "stats": stats}, (images,)


def resnet_by_lax_conv(settings: Settings, seed: int) -> Network:
    """Returns ResNet-20 with `lax.conv` instead of patches times a matrix."""
    fn, params, inputs = resnet(settings, seed)

    def other(variables: Any, images: jax.Array) -> jax.Array:
        with mock.patch.object(layers, "conv", lax_conv):
            return fn(variables, images)

    return other, params, inputs


def lax_conv(layer: dict[str, jax.Array], x: jax.Array, stride: int = 1) -> jax.Array:
    """The same as `layers.conv` for a layer without bias."""
    kernel = layer["kernel"]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(n // 2, n // 2) for n in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def gpt2_block(settings: Settings, seed: int) -> Network:
    """Returns a block of GPT-2: causal attention and an MLP, both pre-normalized."""
    rng = np.random.default_rng(seed)
    width, heads, length = settings.width, settings.heads, settings.length

    def dense(inputs: int, outputs: int) -> dict[str, jax.Array]:
        kernel = rng.standard_normal((inputs, outputs), np.float32)
        return {
            "kernel": jnp.asarray(kernel / math.sqrt(inputs)),
            "bias": jnp.zeros(outputs),
        }

    def norm() -> dict[str, jax.Array]:
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    params = {
        "norm1": norm(),
        "qkv": dense(width, 3 * width),
        "out": dense(width, width),
        "norm2": norm(),
        "up": dense(width, 4 * width),
        "down": dense(4 * width, width),
    }
    x = jnp.asarray(rng.standard_normal((1, length, width), np.float32))
    return functools.partial(block, heads=heads), params, (x,)


def block(params: Any, x: jax.Array, heads: int) -> jax.Array:
    """Returns the output of the block for `(batch, length, width)`."""
    batch, length, width = x.shape
    qkv = layers.dense(params["qkv"], layer_norm(params["norm1"], x))
    qkv = qkv.reshape(batch, length, 3, heads, width // heads)
    q, k, v = (qkv[:, :, i] for i in range(3))
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(width // heads)
    causal = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    mixed = jnp.einsum("bhlm,bmhd->blhd", weights, v).reshape(batch, length, width)
    x = x + layers.dense(params["out"], mixed)
    hidden = jax.nn.gelu(layers.dense(params["up"], layer_norm(params["norm2"], x)))
    return x + layers.dense(params["down"], hidden)


def layer_norm(params: Any, x: jax.Array) -> jax.Array:
    """Layer normalization over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * params["scale"] + params["bias"]


class Form(NamedTuple):
    """A network, and what to remove.

    Attributes:
      build: builds the network.
      blocks: number of residual blocks to remove before channels.
      widest: minimum size of groups that lose channels; narrow kernels gain little.
    """

    build: Callable[[Settings, int], Network]
    blocks: int = 0
    widest: int = 0


NETWORKS = {
    "ResNet-20, patches times a matrix": Form(resnet),
    "ResNet-20, lax.conv": Form(resnet_by_lax_conv),
    "ResNet-20, lax.conv, less four blocks": Form(resnet_by_lax_conv, 4, widest=64),
    "GPT-2 block": Form(gpt2_block),
}


def run(settings: Settings, data_dir: Path | None, progress: Any) -> Outcome:
    """Shrinks and times every network."""
    del data_dir
    task = progress.add_task("time", total=len(NETWORKS) * len(settings.seeds))
    found: dict[str, dict[str, Any]] = {}
    for name, form in NETWORKS.items():
        row: dict[str, Any] = {"full": [], "small": [], "ratio": []}
        for seed in settings.seeds:
            times, facts = timed(form, settings, seed)
            for which, seconds in times.items():
                row[which].append(rounded(1e3 * seconds))
            row["ratio"].append(rounded(times["full"] / times["small"]))
            progress.advance(task)
        found[name] = row | facts
    figures = {"networks": found}
    return Outcome(figures, {"main": table(figures, settings)})


def timed(
    form: Form, settings: Settings, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the seconds of the full and the small network, and their costs."""
    fn, params, inputs = form.build(settings, seed)
    graph = jg.trace(fn, params, *inputs)
    whole = jg.multiply_adds(graph)
    rest_fn, rest = fn, params
    if form.blocks:
        rest_fn, rest = jg.without_branches(
            graph, params, weakest(graph, params, form.blocks)
        )
        graph = jg.trace(rest_fn, rest, *inputs)
    share = 1 - 0.5 * whole / jg.multiply_adds(graph)  # of the remaining multiply-adds
    keep = narrowed(graph, rest, share, settings.multiple_of, form.widest)
    small_fn, small = jg.shrink(graph, rest, keep=keep)
    small = jax.block_until_ready(jax.tree.map(jnp.asarray, small))
    full_program = jax.jit(fn).lower(params, *inputs).compile()
    small_program = jax.jit(small_fn).lower(small, *inputs).compile()
    forms = {
        "full": lambda: full_program(params, *inputs),
        "small": lambda: small_program(small, *inputs),
    }
    left = jg.multiply_adds(graph, jg.sizes(graph, keep))
    facts = {
        "million_multiply_adds": [rounded(whole / 1e6), rounded(left / 1e6)],
        "flops_left": flops_left(full_program, small_program),
        "params": [sum(x.size for x in jax.tree.leaves(p)) for p in (params, small)],
        "sizes": {
            n: [g.size, int(keep[n].sum()) if n in keep else g.size]
            for n, g in graph.groups.items()
        },
    }
    return timing.in_turns(forms, settings.steps), facts


def weakest(graph: jg.Graph, params: Any, count: int) -> list[str]:
    """Returns the residual branches with the smallest mean square of weights."""
    scores = jg.branch_scores(graph, jax.tree.map(jnp.square, params))
    return sorted(scores, key=lambda name: float(scores[name]))[:count]


def narrowed(
    graph: jg.Graph, params: Any, share: float, multiple_of: int, widest: int
) -> dict[str, np.ndarray]:
    """Prunes the same share of every group by norm, to save at least a share of cost.

    Since sizes are multiples, the cost may be considerably lower.
    """
    return jg.choose(
        graph,
        jg.group_scores(graph, jax.tree.map(jnp.square, params)),
        share,
        compete=jg.each_group,
        cost=jg.multiply_adds,
        multiple_of=multiple_of,
        where=lambda group: jg.is_width(group) and group.size >= widest,
    )


def flops_left(full: Any, small: Any) -> float | None:
    """Returns the remaining share of FLOPs as counted by XLA, or None."""
    counts = []
    for program in (full, small):
        costs = program.cost_analysis()
        costs = costs[0] if isinstance(costs, list) and costs else costs
        counts.append(costs.get("flops") if isinstance(costs, dict) else None)
    if not counts[0] or not counts[1]:
        return None
    return rounded(counts[1] / counts[0])


def table(figures: dict[str, Any], settings: Settings) -> Table:
    """Returns the table of times and ratios."""
    rows = []
    for name, one in figures["networks"].items():
        whole, left = one["million_multiply_adds"]
        share = one["flops_left"]
        rows.append(
            (
                name,
                f"{whole:,.0f} → {left:,.0f}",
                "" if share is None else f"{100 * share:.0f} %",
                f"{plus_minus(one['full'])} → {plus_minus(one['small'])}",
                plus_minus(one["ratio"]),
            )
        )
    return Table(
        columns=(
            *("network", "multiply-adds (M)", "FLOPs left (XLA)"),
            *("CPU time (ms)", "times faster"),
        ),
        rows=tuple(rows),
        caption=(
            f"Inference, jitted, float32: ResNet-{settings.depth} for {settings.batch} "
            f"images of 32x32, and a block of width {settings.width} for "
            f"{settings.length} tokens. One share of every group is removed, in "
            f"multiples of {settings.multiple_of}, to at most half the multiply-adds; "
            "where it says so, after the residual blocks of least mean square, and "
            "from the widest layer only. "
            f"Medians of {settings.steps} turns, mean ± std over "
            f"{len(settings.seeds)} seeds."
        ),
    )


def _ratio(name: str, figures: dict[str, Any]) -> tuple[float, float | None]:
    return mean_and_spread(figures["networks"][name]["ratio"])


STUDY = Study(
    Settings(),
    tuple(
        Claim(
            f"half the multiply-adds by smaller arrays, times faster: {name}",
            "jprune",
            (">=", 1.7),
            functools.partial(_ratio, name),
        )
        for name in NETWORKS
    ),
    run,
)
