"""Draws the pictures of the concept pages, from what the library computes.

python docs/_ext/pictures.py DIRECTORY
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import jprune as jp
from jprune import attention as ja
from jprune import graph as jg
from jprune import hardware as hw
from jprune.attention import cascade

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#DDDDDD"
KEPT = ListedColormap([GREY, BLUE])


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _matrix(axes: Any, values: Any, title: str, **options: Any) -> None:
    axes.imshow(np.asarray(values), interpolation="nearest", **options)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def _weights(rows: int = 16, columns: int = 16) -> jax.Array:
    """Weights whose scale differs between columns, as that of channels does."""
    key, other = jax.random.split(jax.random.key(1))
    scale = jnp.exp(0.5 * jax.random.normal(other, (columns,)))
    return jax.random.normal(key, (rows, columns)) * scale


def links() -> Figure:
    """The stages of a chain: weights, scores, pooled scores, masks."""
    weights = {"kernel": _weights()}
    score = jp.score_by_magnitude()
    pool = jp.pool_over_axes(jp.l2_norm, keep="output")
    chain = optax.chain(score, pool, jp.keep_top(0.5))
    scores = score.update(weights, score.init(weights), weights)[0]
    pooled = pool.update(scores, pool.init(weights), weights)[0]
    masks = chain.update(weights, chain.init(weights), weights)[0]
    full = jnp.broadcast_to(masks["kernel"], (16, 16))
    figure = _figure(8, 2.4)
    panels = figure.subplots(1, 4)
    limit = float(jnp.abs(weights["kernel"]).max())
    shown = jnp.broadcast_to(pooled["kernel"], (16, 16))
    ends = {"vmin": -limit, "vmax": limit}
    _matrix(panels[0], weights["kernel"], "weights w", cmap="RdBu", **ends)
    _matrix(panels[1], scores["kernel"], "score_by_magnitude: |w|", cmap="viridis")
    _matrix(panels[2], shown, "pool_over_axes: l2 per output", cmap="viridis")
    _matrix(panels[3], full, "keep_top(0.5): the mask", cmap=KEPT)
    panels[0].set_ylabel("inputs", fontsize=8)
    panels[0].set_xlabel("outputs", fontsize=8)
    return figure


def masks() -> Figure:
    """Masks of one matrix: unstructured, 2:4, blocks and channels."""
    weights = {"kernel": _weights()}

    def mask(*chain: Any) -> Any:
        found = jp.prune(weights, optax.chain(jp.score_by_magnitude(), *chain))[1]
        return jnp.broadcast_to(found["kernel"], (16, 16))

    patterns = {
        "single weights": mask(jp.keep_top(0.5)),
        "2:4 along the inputs": mask(jp.keep_n_of_m(2, 4)),
        "blocks of 4 x 4": mask(
            jp.pool_over_blocks((4, 4), jp.l2_norm), jp.keep_top(0.5)
        ),
        "output channels": mask(
            jp.pool_over_axes(jp.l2_norm, keep="output"), jp.keep_top(0.5)
        ),
    }
    figure = _figure(8, 2.4)
    for axes, (title, found) in zip(
        figure.subplots(1, 4), patterns.items(), strict=True
    ):
        _matrix(axes, found, title, cmap=KEPT, vmin=0, vmax=1)
    return figure


def groups() -> Figure:
    """The arrays of a residual block, with the slices of one entry of each group."""

    def block(p: Any, x: jax.Array) -> jax.Array:
        x = x @ p["stem"]
        x = x + jax.nn.relu(x @ p["up"]) @ p["down"]
        return x @ p["head"]

    shapes = {"stem": (6, 8), "up": (8, 12), "down": (12, 8), "head": (8, 5)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    graph = jg.trace(block, params, jnp.ones((1, 6)))
    colours = dict(zip(graph.groups, (2, 1), strict=True))
    panels = {name: np.zeros(shape) for name, shape in shapes.items()}
    for name, group in graph.groups.items():
        for member in group.members:
            index: list[Any] = [slice(None)] * 2
            index[member.axis] = 3
            panels[member.path][tuple(index)] = colours[name]
    figure = _figure(8, 2.6)
    palette = ListedColormap([GREY, BLUE, ORANGE])
    for axes, (name, found) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        _matrix(axes, found, f"{name} {found.shape}", cmap=palette, vmin=0, vmax=2)
        axes.set_xticks(np.arange(found.shape[1]) - 0.5, minor=True)
        axes.set_yticks(np.arange(found.shape[0]) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
    return figure


def tokens() -> Figure:
    """Which tokens enter each layer of a cascade, of random weights."""
    layers, length, heads, dim = 6, 32, 2, 8
    counts = ja.ramp(layers, length, 0.6, multiple=1)
    keys = jax.random.split(jax.random.key(3), 4)
    x = jax.random.normal(keys[0], (1, length, heads * dim))
    qkv = (jax.random.normal(k, (heads * dim, heads, dim)) / 2 for k in keys[1:])
    output = jnp.eye(heads * dim).reshape(heads, dim, heads * dim)
    weights = ja.HeadWeights(*qkv, output=output)

    def mix(x: jax.Array, valid: jax.Array, ids: jax.Array) -> Any:
        return cascade.mix_heads(weights, x, valid, ids)

    def finish(x: jax.Array, outputs: jax.Array, ids: jax.Array) -> jax.Array:
        return x + ja.combine(ja.take_heads(weights, ids), outputs)

    state = cascade.start(x, heads)
    entering = np.zeros((layers, length), bool)
    for layer, count in enumerate(counts):
        entering[layer, np.asarray(state.positions[0])] = True
        state = cascade.cascade_layer(state, mix, finish, count)
    figure = _figure(8, 2.2)
    axes = figure.subplots()
    axes.imshow(entering, cmap=KEPT, interpolation="nearest")
    axes.set_xlabel("position in the sentence")
    axes.set_ylabel("layer")
    return figure


def designs() -> Figure:
    """Time and area of many accelerators for BERT, and their Pareto front."""
    bert, chip = hw.networks.bert_base(128), hw.machines.spatten()
    grid = jp.search.grid(
        {
            "arrays": [1.0, 2.0, 4.0, 8.0, 16.0],
            "sram": [49.0, 196.0, 784.0],
            "dram_bandwidth": [16.0, 64.0, 512.0],
        }
    )
    found = hw.search.evaluate(grid, lambda d: (bert, chip._replace(**d)))
    points = np.stack([1e3 * found.seconds, found.area], axis=1)
    front = np.asarray(jp.search.pareto(jnp.asarray(points)))
    figure = _figure(8, 2.8)
    axes = figure.subplots()
    axes.scatter(*points[~front].T, s=14, color="#999999", label="other designs")
    best = points[front][np.argsort(points[front][:, 0])]
    axes.plot(*best.T, "o-", ms=5, color=ORANGE, label="Pareto front")
    axes.set_xscale("log")
    axes.set_xticks([2, 5, 10, 20], ["2", "5", "10", "20"])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("time of BERT-base on 128 tokens (ms)")
    axes.set_ylabel("area (mm$^2$)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


PICTURES = {
    "links": links,
    "masks": masks,
    "groups": groups,
    "tokens": tokens,
    "designs": designs,
}


def write(directory: Path) -> None:
    """Writes all pictures as SVG."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().savefig(directory / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    write(Path(sys.argv[1]))
