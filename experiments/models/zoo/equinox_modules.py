"""Networks for single examples, batched by `vmap` (Equinox; images are CHW)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import nn

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.frameworks import from_equinox


class InceptionBlock(eqx.Module):
    """Four parallel branches, one of them of pooling (arXiv:1409.4842, figure 2 b)."""

    pointwise: nn.Conv2d
    three: nn.Sequential
    five: nn.Sequential
    pooled: nn.Sequential

    def __init__(self, channels: int, width: int, key: jax.Array):
        keys = jax.random.split(key, 6)
        relu = nn.Lambda(jax.nn.relu)
        self.pointwise = nn.Conv2d(channels, width, 1, key=keys[0])
        reduce3 = nn.Conv2d(channels, 6, 1, key=keys[1])
        reduce5 = nn.Conv2d(channels, 4, 1, key=keys[2])
        conv3 = nn.Conv2d(6, width + 2, 3, padding=1, key=keys[3])
        conv5 = nn.Conv2d(4, width - 2, 5, padding=2, key=keys[4])
        project = nn.Conv2d(channels, width - 4, 1, key=keys[5])
        self.three = nn.Sequential([reduce3, relu, conv3])
        self.five = nn.Sequential([reduce5, relu, conv5])
        self.pooled = nn.Sequential([nn.MaxPool2d(3, padding=1), project])

    def __call__(self, x: jax.Array) -> jax.Array:
        branches = (self.pointwise, self.three, self.five, self.pooled)
        return jax.nn.relu(jnp.concatenate([branch(x) for branch in branches]))


class Inception(eqx.Module):
    """A stem, two Inception blocks with average pooling between, and a head."""

    stem: nn.Conv2d
    first: InceptionBlock
    second: InceptionBlock
    head: nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.stem = nn.Conv2d(3, 10, 3, padding=1, key=keys[0])
        self.first = InceptionBlock(10, 8, keys[1])
        self.second = InceptionBlock(28, 10, keys[2])
        self.head = nn.Linear(36, 10, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(jax.nn.relu(self.stem(x)))
        x = self.second(nn.AvgPool2d(2, 2)(x))
        return self.head(x.mean((1, 2)))


def conv_autoencoder(key: jax.Array) -> nn.Sequential:
    """Strided convolutions to a code, and transposed ones back."""
    keys = jax.random.split(key, 6)
    relu = nn.Lambda(jax.nn.relu)
    return nn.Sequential(
        [
            nn.Conv2d(3, 8, 3, 2, padding=1, key=keys[0]),
            relu,
            nn.Conv2d(8, 12, 3, 2, padding=1, key=keys[1]),
            relu,
            nn.Lambda(jnp.ravel),
            nn.Linear(12 * 4 * 4, 20, key=keys[2]),
            nn.Linear(20, 12 * 4 * 4, key=keys[3]),
            nn.Lambda(lambda x: jax.nn.relu(x.reshape(12, 4, 4))),
            nn.ConvTranspose2d(12, 8, 4, 2, padding=1, key=keys[4]),
            relu,
            nn.ConvTranspose2d(8, 3, 4, 2, padding=1, key=keys[5]),
        ]
    )


class GRU(eqx.Module):
    """A GRU over a sequence, with the logits of its last state."""

    cell: nn.GRUCell
    head: nn.Linear

    def __init__(self, key: jax.Array):
        cell_key, head_key = jax.random.split(key)
        self.cell = nn.GRUCell(6, 20, key=cell_key)
        self.head = nn.Linear(20, 10, key=head_key)

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(state: jax.Array, value: jax.Array) -> tuple[jax.Array, None]:
            return self.cell(value, state), None

        state, _ = jax.lax.scan(step, jnp.zeros(self.cell.hidden_size), x)
        return self.head(state)


class AttentionBlock(eqx.Module):
    """Self-attention and an MLP, each pre-normalized with a residual connection."""

    attention: nn.MultiheadAttention
    mlp: nn.MLP
    norms: list[nn.LayerNorm]

    def __init__(self, width: int, key: jax.Array):
        attention_key, mlp_key = jax.random.split(key)
        self.attention = nn.MultiheadAttention(
            4,
            width,
            use_query_bias=True,
            use_value_bias=True,
            use_output_bias=True,
            key=attention_key,
        )
        self.mlp = nn.MLP(width, width, 40, 1, jax.nn.gelu, key=mlp_key)
        self.norms = [nn.LayerNorm(width), nn.LayerNorm(width)]

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(lambda token: self.mlp(self.norms[1](token)))(x)


class PointNet(eqx.Module):
    """The same MLP for every point, the maximum over points, another MLP.

    References:
      PointNet, 2016, arXiv:1612.00593, figure 2, without its transforms.
    """

    local: nn.MLP
    joint: nn.MLP

    def __init__(self, key: jax.Array):
        local_key, joint_key = jax.random.split(key)
        self.local = nn.MLP(3, 28, 16, 2, final_activation=jax.nn.relu, key=local_key)
        self.joint = nn.MLP(28, 10, 20, 1, key=joint_key)

    def __call__(self, points: jax.Array) -> jax.Array:
        return self.joint(jax.vmap(self.local)(points).max(0))


def _on(
    make: Callable[[jax.Array], eqx.Module], *shape: int, dimensions: str = "b, ..."
) -> Builder:
    def build(key: jax.Array) -> Architecture:
        param_key, input_key = jax.random.split(key)
        x = normal(input_key, *shape)
        return from_equinox(param_key, make, x, dimensions=(dimensions,))

    return build


ARCHITECTURES: dict[str, Builder] = {
    "Inception (Equinox)": _on(Inception, 2, 3, 12, 12),
    "Convolutional autoencoder (Equinox)": _on(conv_autoencoder, 2, 3, 16, 16),
    "GRU (Equinox)": _on(GRU, 3, 7, 6, dimensions="b, t, _"),
    "MLP (Equinox)": _on(lambda key: nn.MLP(14, 10, 20, 2, key=key), 3, 14),
    "Attention block (Equinox)": _on(
        lambda key: AttentionBlock(24, key), 3, 7, 24, dimensions="b, t, _"
    ),
    "PointNet (Equinox)": _on(PointNet, 3, 14, 3, dimensions="b, t, _"),
}
