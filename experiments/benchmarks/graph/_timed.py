"""A process of `bench graph`: traces, ranks and shrinks a network.

    python -m experiments.benchmarks.graph._timed ResNet-50 64 12 3 whole

prints one JSON object. Each repetition has its own weights and its own function, which
JAX has neither traced nor compiled before.
"""

import functools
import gc
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.graph import _garbage
from experiments.harness import timing
from experiments.models import bottleneck
from experiments.models.zoo import residual
from jprune import graph as jg

CLASSES = 10
RATIO = 0.5


class Block(nn.Module):
    """Attention and an MLP, both pre-normalized."""

    width: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(batch, length, width)` to the same shape."""
        attention: Any = nn.MultiHeadDotProductAttention(self.heads)
        x = x + attention(nn.LayerNorm()(x))
        hidden = nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(hidden)


class ViT(nn.Module):
    """ViT-B/16 (arXiv:2010.11929, table 1), of any depth."""

    depth: int = 12
    width: int = 768
    heads: int = 12
    hidden: int = 3072

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits of images."""
        init = nn.initializers.normal(0.02)
        x = nn.Conv(self.width, (16, 16), (16, 16), padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", init, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", init, (1, *x.shape[1:]))
        for _ in range(self.depth):
            x = Block(self.width, self.heads, self.hidden)(x)
        return nn.Dense(CLASSES)(nn.LayerNorm()(x)[:, 0])


RESNET50 = residual.ResNet(
    residual.Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), pool=True
)


def blocks_under_jit() -> nn.Module:
    """Returns the same ResNet-50, whose equal blocks are traced once.

    Each call makes a class of its own, since the class keeps the traces. In a module
    of one's own it is a line: `@nn.jit` above `@nn.compact`.
    """
    jitted = {"__call__": nn.jit(residual.Bottleneck.__call__)}
    return RESNET50.clone(block=type("Bottleneck", (residual.Bottleneck,), jitted))


class Network(NamedTuple):
    """A module as a function of its depth, and a replacement of its `apply`."""

    module: Callable[[int], nn.Module]
    function: Callable[..., Any] | None = None


NETWORKS = {
    "ResNet-50": Network(lambda depth: RESNET50),
    "ResNet-50, no module": Network(
        lambda depth: RESNET50,
        functools.partial(bottleneck.apply, depths=tuple(RESNET50.depths)),
    ),
    "ResNet-50, blocks under nn.jit": Network(lambda depth: blocks_under_jit()),
    "ViT-B": Network(lambda depth: ViT(depth)),
    "tiny": Network(lambda depth: ViT(depth, 16, 2, 32)),
}


def measure(
    name: str, side: int, depth: int, repetitions: int, whole: bool
) -> dict[str, Any]:
    """Returns the seconds of each part, for each repetition.

    Args:
      name: name of the network, one of `NETWORKS`.
      side: side of the image.
      depth: number of layers of a transformer.
      repetitions: number of repetitions; the first includes JAX's initialization.
      whole: whether to rank and shrink as well, on random weights; otherwise only
        shapes are used.
    """
    network = NETWORKS[name]
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    init = network.module(depth).init
    shapes: Any = jax.eval_shape(init, jax.random.key(0), images)
    found: dict[str, Any] = {}
    for i in range(repetitions):
        apply = network.function or network.module(depth).apply
        params = drawn(shapes, i) if whole else shapes
        parts, graph = once(apply, params, images, whole)
        for part, seconds in parts.items():
            found.setdefault(part, []).append(seconds)
        found |= {"groups": len(graph.groups), "equations": len(graph.program.nodes)}
        del graph  # the next one takes its memory
    return found


def drawn(shapes: Any, seed: int) -> Any:
    """Returns random arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return jax.block_until_ready(
        jax.tree.map(
            lambda s: jnp.asarray(rng.standard_normal(s.shape, np.float32)), shapes
        )
    )


def once(
    apply: Callable[..., Any], params: Any, images: Any, whole: bool
) -> tuple[dict[str, float], jg.Graph]:
    """Returns the seconds of each part, and the graph."""

    def fn(params: Any, images: jax.Array) -> jax.Array:
        return apply(params, images)

    traced: list[float] = []
    begin = timing.clock()
    with (
        _garbage.full_collections() as collections,
        mock.patch.object(jax, "make_jaxpr", clocked(fn, traced)),
    ):
        graph = jg.trace(fn, params, images)
        clock = [begin, timing.clock()]
        parts = {"trace": sum(traced), "analysis": clock[1] - begin - sum(traced)}
        if not whole:
            return parts, graph
        scores = jg.group_scores(graph, params, each=lambda w: w * w)
        jax.block_until_ready(scores)
        clock.append(timing.clock())
        keep = jg.choose(graph, scores, RATIO)
        clock.append(timing.clock())
        _, small = jg.shrink(graph, params, keep=keep)
        jax.block_until_ready(small)
        clock.append(timing.clock())
    names = ("scores", "selection", "slices")
    parts |= {n: clock[i + 2] - clock[i + 1] for i, n in enumerate(names)}
    parts |= {"whole": clock[-1] - begin, "collection": sum(collections)}
    return parts, graph


def clocked(fn: Callable[..., Any], taken: list[float]) -> Callable[..., Any]:
    """Returns a `jax.make_jaxpr` that records its time for one function.

    The rest of the time of `trace` is that of the analysis, in the same call.
    """
    make_jaxpr = jax.make_jaxpr

    def make(f: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
        inner = make_jaxpr(f, *args, **options)
        if f is not fn:
            return inner

        def timed(*args: Any) -> Any:
            begin = timing.clock()
            result = inner(*args)
            taken.append(timing.clock() - begin)
            return result

        return timed

    return make


if __name__ == "__main__":
    which, side, depth, repetitions, parts = sys.argv[1:]
    if parts != "whole":
        # As `timeit` does: a full collection takes as long as JAX's heap is large, and
        # may fall into any part.
        gc.disable()
    numbers = (int(side), int(depth), int(repetitions))
    print(json.dumps(measure(which, *numbers, whole=parts == "whole")))
