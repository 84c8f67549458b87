"""Networks that read another one's features: Whisper and Stable Diffusion (NNX)."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.zoo.base import Architecture, Builder, normal, tokens
from experiments.models.zoo.frameworks import from_nnx
from experiments.models.zoo.plain import attend as attend_heads
from experiments.models.zoo.plain import causal, heads, merge, sinusoids

HEADS = 4


class Attention(nnx.Module):
    """Pre-normalized attention to itself, or to a memory, as a residual branch."""

    def __init__(self, width: int, memory: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.q = nnx.Linear(width, width, rngs=rngs)
        self.k = nnx.Linear(memory, width, use_bias=False, rngs=rngs)
        self.v = nnx.Linear(memory, width, rngs=rngs)
        self.o = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        y = self.norm(x)
        memory = y if memory is None else memory
        parts = self.q(y), self.k(memory), self.v(memory)
        q, k, v = (heads(part, HEADS) for part in parts)
        return x + self.o(merge(attend_heads(q, k, v, mask)))


class MLP(nnx.Module):
    """Pre-normalized MLP, as a residual branch."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 40, rngs=rngs)
        self.down = nnx.Linear(40, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class Whisper(nnx.Module):
    """Convolutions over time, an encoder block, and a decoder block that reads it.

    References:
      Robust Speech Recognition via Large-Scale Weak Supervision, 2022,
      arXiv:2212.04356, figure 1.
    """

    def __init__(self, rngs: nnx.Rngs):
        width = 24
        self.conv1 = nnx.Conv(6, width, (3,), rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3,), 2, rngs=rngs)
        self.encoder = nnx.Sequential(Attention(width, width, rngs), MLP(width, rngs))
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        embed = partial(nnx.Embed, param_dtype=jnp.result_type(float))
        self.embed = embed(30, width, rngs=rngs)
        self.positions = embed(12, width, rngs=rngs)
        self.own = Attention(width, width, rngs)
        self.cross = Attention(width, width, rngs)
        self.mlp = MLP(width, rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, sound: jax.Array, words: jax.Array) -> jax.Array:
        x = nnx.gelu(self.conv2(nnx.gelu(self.conv1(sound))))
        x = x + sinusoids(jnp.arange(x.shape[1]), x.shape[2]).astype(x.dtype)
        memory = self.norm1(self.encoder(x))
        length = words.shape[1]
        x = self.embed(words) + self.positions(jnp.arange(length))
        x = self.own(x, mask=causal(length))
        x = self.mlp(self.cross(x, memory))
        return self.embed.attend(self.norm2(x))


def whisper(key: jax.Array) -> Architecture:
    """Two sounds and their first words."""
    keys = jax.random.split(key, 3)
    inputs = normal(keys[1], 2, 18, 6), tokens(keys[2], 30, 2, 7)
    dimensions = ("b, _, _", "b, t")
    return from_nnx(keys[0], Whisper, *inputs, dimensions=dimensions)


class ResidualBlock(nnx.Module):
    """Two convolutions with group normalization; the time is added between them."""

    def __init__(self, inputs: int, width: int, rngs: nnx.Rngs):
        norm = partial(nnx.GroupNorm, num_groups=4, rngs=rngs)
        self.norm1 = norm(inputs)
        self.conv1 = nnx.Conv(inputs, width, (3, 3), rngs=rngs)
        self.time = nnx.Linear(20, width, rngs=rngs)
        self.norm2 = norm(width)
        self.conv2 = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.shortcut = nnx.Conv(inputs, width, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        y = self.conv1(nnx.silu(self.norm1(x))) + self.time(time)[:, None, None]
        return self.shortcut(x) + self.conv2(nnx.silu(self.norm2(y)))


class TextBlock(nnx.Module):
    """Pixels attend to each other and to the text, and pass through an MLP."""

    def __init__(self, width: int, text: int, rngs: nnx.Rngs):
        self.norm = nnx.GroupNorm(width, num_groups=4, rngs=rngs)
        self.enter = nnx.Linear(width, width, rngs=rngs)
        self.own = Attention(width, width, rngs)
        self.cross = Attention(width, text, rngs)
        self.mlp = MLP(width, rngs)
        self.leave = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        y = self.enter(self.norm(x)).reshape(x.shape[0], -1, x.shape[-1])
        y = self.leave(self.mlp(self.cross(self.own(y), text)))
        return x + y.reshape(x.shape)


class TextToImage(nnx.Module):
    """The U-Net of Stable Diffusion, with one level.

    Its skip connection concatenates 16 and 12 channels, so that a group of the next
    normalization, of 7 channels, has channels of both.

    References:
      High-Resolution Image Synthesis with Latent Diffusion Models, 2022,
      arXiv:2112.10752, section 3.3.
    """

    def __init__(self, rngs: nnx.Rngs):
        self.time = nnx.Linear(16, 20, rngs=rngs)
        self.stem = nnx.Conv(4, 12, (3, 3), rngs=rngs)
        self.down = ResidualBlock(12, 12, rngs)
        self.shrink = nnx.Conv(12, 16, (3, 3), 2, rngs=rngs)
        self.middle = ResidualBlock(16, 16, rngs)
        self.text = TextBlock(16, 10, rngs)
        self.grow = nnx.Conv(16, 16, (3, 3), rngs=rngs)
        self.up = ResidualBlock(28, 12, rngs)
        self.norm = nnx.GroupNorm(12, num_groups=4, rngs=rngs)
        self.out = nnx.Conv(12, 4, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, times: jax.Array, text: jax.Array) -> jax.Array:
        time = nnx.silu(self.time(sinusoids(times, 16)))
        high = self.down(self.stem(x), time)
        low = self.text(self.middle(self.shrink(high), time), text)
        low = jax.image.resize(low, (*high.shape[:3], low.shape[-1]), "nearest")
        x = self.up(jnp.concatenate([self.grow(low), high], axis=-1), time)
        return self.out(nnx.silu(self.norm(x)))


def text_to_image(key: jax.Array) -> Architecture:
    """Two latent images at two time steps, each with a text of five tokens."""
    keys = jax.random.split(key, 3)
    times = jnp.asarray([3.0, 40.0])
    inputs = normal(keys[1], 2, 8, 8, 4), times, normal(keys[2], 2, 5, 10)
    dimensions = ("b, ...", "b", "b, t, _")
    return from_nnx(keys[0], TextToImage, *inputs, dimensions=dimensions)


ARCHITECTURES: dict[str, Builder] = {
    "Whisper (NNX)": whisper,
    "Stable Diffusion UNet, misaligned group norms (NNX)": text_to_image,
}
