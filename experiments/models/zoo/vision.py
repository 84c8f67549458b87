"""Images as patches: ViT and MLP-Mixer (Flax Linen)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.models.zoo.base import Architecture, Builder, normal
from experiments.models.zoo.frameworks import from_linen


class MLP(nn.Module):
    """Two dense layers with GELU between; the output has the input's width."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(nn.Dense(self.hidden)(x))
        return nn.Dense(x.shape[-1])(hidden)


class ViT(nn.Module):
    """A class token and patches with learned positions (arXiv:2010.11929, figure 1)."""

    width: int = 24
    depth: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        x = nn.Conv(self.width, (4, 4), (4, 4), padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", init, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", init, (1, *x.shape[1:]))
        for _ in range(self.depth):
            attention: Any = nn.MultiHeadDotProductAttention(4)
            x = x + attention(nn.LayerNorm()(x))
            x = x + MLP(40)(nn.LayerNorm()(x))
        return nn.Dense(10)(nn.LayerNorm()(x)[:, 0])


class Mixer(nn.Module):
    """MLP-Mixer: MLPs over patches and over channels (arXiv:2105.01601, figure 1)."""

    width: int = 24
    depth: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (4, 4), (4, 4))(x)
        x = x.reshape(x.shape[0], -1, self.width)
        for _ in range(self.depth):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            x = x + MLP(14)(y).swapaxes(1, 2)
            x = x + MLP(40)(nn.LayerNorm()(x))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


def _on_images(module: nn.Module) -> Builder:
    def build(key: jax.Array) -> Architecture:
        param_key, input_key = jax.random.split(key)
        return from_linen(param_key, module, normal(input_key, 2, 16, 12, 3))

    return build


ARCHITECTURES: dict[str, Builder] = {
    "ViT (Linen)": _on_images(ViT()),
    "MLP-Mixer (Linen)": _on_images(Mixer()),
}
