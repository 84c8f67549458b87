"""Layers that the networks share."""

import math

import jax
import jax.numpy as jnp


def init_layer(key: jax.Array, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    """Returns a layer with a He-normal kernel and a zero bias.

    Args:
      key: PRNG key.
      shape: kernel shape with the output axis last: `(in, out)` or HWIO.

    Returns:
      `{"kernel": shape, "bias": (out,)}`, both float32.

    References:
      Delving Deep into Rectifiers, 2015, arXiv:1502.01852, equation 10.
    """
    scale = math.sqrt(2 / math.prod(shape[:-1]))
    kernel = scale * jax.random.normal(key, shape, jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(shape[-1], jnp.float32)}


def dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Returns `x @ kernel + bias` for `x` of shape `(..., in)`."""
    return x @ layer["kernel"] + layer["bias"]


def conv(layer: dict[str, jax.Array], x: jax.Array, stride: int = 1) -> jax.Array:
    """Returns the same-padded convolution of NHWC images with an odd HWIO kernel.

    The padding is half the kernel on every side, whatever the stride; a layer may
    have no bias.

    It is a product of patches with a matrix: `vmap` over kernels turns `lax.conv` into
    a grouped convolution, which is several times slower on CPUs (measured by
    `python -m experiments bench vmapped_conv`), but a matrix product into a batched
    one, which is fast on every backend.
    """
    height, width, channels, features = layer["kernel"].shape
    columns = patches(x, height, width, stride)
    out = columns @ layer["kernel"].reshape(height * width * channels, features)
    return out + layer["bias"] if "bias" in layer else out


def patches(x: jax.Array, height: int, width: int, stride: int = 1) -> jax.Array:
    """Returns the zero-padded windows around all pixels, or every `stride`-th one.

    The shape is `(n, ceil(h / stride), ceil(w / stride), height * width * c)`.
    """
    _, rows, columns, _ = x.shape
    up, left = height // 2, width // 2
    padded = jnp.pad(x, ((0, 0), (up, up), (left, left), (0, 0)))
    shifts = [
        padded[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(shifts, axis=-1)


def max_pool(x: jax.Array) -> jax.Array:
    """Returns the maximum over 2x2 windows of NHWC images of even height and width."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def init_dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """Returns a transformer layer: normal with variance 1 / inputs, zero bias."""
    kernel = jax.random.normal(key, (inputs, outputs), jnp.float32)
    bias = jnp.zeros(outputs, jnp.float32)
    return {"kernel": kernel / math.sqrt(inputs), "bias": bias}


def init_norm(width: int) -> dict[str, jax.Array]:
    """Returns the scale and bias of a layer normalization."""
    ones, zeros = jnp.ones(width, jnp.float32), jnp.zeros(width, jnp.float32)
    return {"scale": ones, "bias": zeros}


def layer_norm(
    layer: dict[str, jax.Array], x: jax.Array, epsilon: float = 1e-5
) -> jax.Array:
    """Returns `(x - mean) / sqrt(variance + epsilon) * scale + bias`, last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(variance + epsilon)
    return scaled * layer["scale"] + layer["bias"]


def rms_norm(scale: jax.Array, x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Returns `x / sqrt(mean(x^2) + epsilon) * scale`, last axis."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon) * scale


def split_heads(x: jax.Array, count: int) -> jax.Array:
    """Returns `(..., length, width)` as `(..., count, length, width / count)`."""
    return x.reshape(*x.shape[:-1], count, -1).swapaxes(-2, -3)


def merge_heads(x: jax.Array) -> jax.Array:
    """Returns `(..., heads, length, dim)` as `(..., length, heads * dim)`."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)
