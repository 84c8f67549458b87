"""Graph networks: message passing (Equinox), and adjacency matrices (plain)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import nn

from experiments.models.zoo.base import Architecture, Builder, normal, tokens
from experiments.models.zoo.frameworks import from_equinox
from experiments.models.zoo.plain import Params, dense, dense_shapes, draw

NODES, EDGES = 11, 26


class MessagePassing(eqx.Module):
    """Two rounds of message passing: messages are summed at their receivers.

    References:
      Relational inductive biases, 2018, arXiv:1806.01261, algorithm 1, without its
      updates of edges and globals.
    """

    embed: nn.Linear
    messages: list[nn.MLP]
    updates: list[nn.MLP]
    readout: nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 6)
        self.embed = nn.Linear(5, 16, key=keys[0])
        self.messages = [nn.MLP(32, 12, 20, 1, key=k) for k in keys[1:3]]
        self.updates = [nn.MLP(28, 16, 24, 1, key=k) for k in keys[3:5]]
        self.readout = nn.Linear(16, 10, key=keys[5])

    def __call__(
        self, nodes: jax.Array, senders: jax.Array, receivers: jax.Array
    ) -> jax.Array:
        x = jax.vmap(self.embed)(nodes)
        for message, update in zip(self.messages, self.updates, strict=True):
            ends = jnp.concatenate([x[senders], x[receivers]], axis=-1)
            sums = jax.ops.segment_sum(jax.vmap(message)(ends), receivers, NODES)
            x = x + jax.vmap(update)(jnp.concatenate([x, sums], axis=-1))
        return self.readout(x.mean(0))


def message_passing(key: jax.Array) -> Architecture:
    """Eleven nodes and random edges."""
    keys = jax.random.split(key, 4)
    ends = tokens(keys[1], NODES, EDGES), tokens(keys[2], NODES, EDGES)
    nodes = normal(keys[3], NODES, 5)
    dimensions = ("_, _", "e", "e")  # the edges
    return from_equinox(
        keys[0], MessagePassing, nodes, *ends, batched=False, dimensions=dimensions
    )


def graph_convolution(key: jax.Array) -> Architecture:
    """Two layers that mix neighbours by `D^-1/2 (A + I) D^-1/2` (arXiv:1609.02907)."""
    keys = jax.random.split(key, 3)
    widths = [(5, 16), (16, 20)]
    shapes = {
        "hidden": [dense_shapes(*pair) for pair in widths],
        "out": dense_shapes(20, 10),
    }

    def fn(params: Params, nodes: jax.Array, adjacency: jax.Array) -> jax.Array:
        adjacency = adjacency + jnp.eye(NODES)
        root = jax.lax.rsqrt(adjacency.sum(-1))
        mixing = root[:, None] * adjacency * root
        for layer in params["hidden"]:
            nodes = jax.nn.relu(mixing @ dense(layer, nodes))
        return dense(params["out"], nodes)

    half = jnp.triu(normal(keys[2], NODES, NODES) > 0.5, 1)
    adjacency = (half | half.T).astype(jnp.float32)
    nodes = normal(keys[1], NODES, 5)
    params, dimensions = draw(keys[0], shapes), ("n, _", "n, n")
    return Architecture(fn, params, (nodes, adjacency), dimensions=dimensions)


ARCHITECTURES: dict[str, Builder] = {
    "Message passing (Equinox)": message_passing,
    "Graph convolution (plain)": graph_convolution,
}
