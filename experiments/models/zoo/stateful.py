"""Networks that return new state: batch statistics and hidden values."""

# ruff: noqa: D102
# (The docstring of a module documents its `__call__`.)

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.zoo.base import Architecture, Builder, draw, normal
from experiments.models.zoo.frameworks import from_nnx
from experiments.models.zoo.plain import Params, dense, dense_shapes
from experiments.models.zoo.plain import draw as draw_plain


class SyncedBottleneck(nn.Module):
    """A bottleneck whose batch statistics are means over an axis of devices."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(False, axis_name="batch")(x)

        y = nn.relu(norm(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        y = nn.Conv(self.width, (3, 3), self.stride, use_bias=False)(y)
        y = norm(nn.Conv(4 * self.width, (1, 1), use_bias=False)(nn.relu(norm(y))))
        if x.shape != y.shape:
            x = norm(nn.Conv(y.shape[-1], (1, 1), self.stride, use_bias=False)(x))
        return nn.relu(x + y)


class SyncedResNet(nn.Module):
    """The stem and the bottlenecks of ResNet-50 in train mode, in two stages."""

    depths: Sequence[int] = (2, 2)
    widths: Sequence[int] = (6, 10)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.widths[0], (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(False, axis_name="batch")(x))
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for j in range(depth):
                x = SyncedBottleneck(width, 2 if i > 0 and j == 0 else 1)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def synced_resnet(key: jax.Array) -> Architecture:
    """Two devices as an axis of `vmap`, which all batch statistics are taken over."""
    param_key, input_key = jax.random.split(key)
    module = SyncedResNet()
    images = normal(input_key, 2, 4, 16, 16, 3)

    def fn(variables: Any, images: jax.Array) -> Any:
        def on_one(x: jax.Array) -> Any:
            return module.apply(variables, x, mutable=["batch_stats"])

        return jax.vmap(on_one, axis_name="batch", out_axes=(0, None))(images)

    def init(x: jax.Array) -> Any:
        return module.init(key, x)

    one = jax.eval_shape(jax.vmap(init, axis_name="batch"), images)
    alone = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), one)
    dimensions = ("_, b, ...",)
    return Architecture(fn, draw(param_key, alone), (images,), True, dimensions)


class TrainedCNN(nnx.Module):
    """Two residual convolutions with batch statistics, in train mode."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 12, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(12, momentum=0.8, rngs=rngs)
        self.conv1 = nnx.Conv(12, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(16, momentum=0.8, rngs=rngs)
        self.conv2 = nnx.Conv(16, 12, (3, 3), use_bias=False, rngs=rngs)
        self.norm3 = nnx.BatchNorm(12, momentum=0.8, rngs=rngs)
        self.head = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm1(self.stem(x)))
        y = nnx.relu(self.norm2(self.conv1(x)))
        x = nnx.relu(x + self.norm3(self.conv2(y)))
        return self.head(x.mean((1, 2)))


def trained_cnn(key: jax.Array) -> Architecture:
    """The module is split and merged; its statistics are returned."""
    param_key, input_key = jax.random.split(key)
    images = normal(input_key, 4, 8, 8, 3)
    return from_nnx(param_key, TrainedCNN, images, stateful=True)


class TrainedMLP(eqx.Module):
    """Batch statistics over the axis of a `vmap`, which lie in `eqx.nn.State`."""

    layers: list[eqx.nn.Linear]
    norms: list[eqx.nn.BatchNorm]
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 3)
        widths = (14, 20, 24)
        self.layers = [
            eqx.nn.Linear(n, m, key=k)
            for n, m, k in zip(widths[:-1], widths[1:], keys[:2], strict=True)
        ]
        self.norms = [eqx.nn.BatchNorm(m, "batch", mode="ema") for m in widths[1:]]
        self.head = eqx.nn.Linear(24, 10, key=keys[2])

    def __call__(self, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x, state = norm(layer(x), state)
            x = jax.nn.relu(x)
        return self.head(x), state


def trained_mlp(key: jax.Array) -> Architecture:
    """A batch of eight; the state of Equinox is returned."""
    keys = jax.random.split(key, 3)
    net, state = eqx.nn.make_with_state(TrainedMLP)(keys[0])
    arrays, static = eqx.partition(net, eqx.is_inexact_array)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)

    def fn(params: Any, x: jax.Array) -> Any:
        arrays, state = params
        module = eqx.combine(arrays, static)
        axes = {"in_axes": (0, None), "out_axes": (0, None)}
        return jax.vmap(module, axis_name="batch", **axes)(x, state)

    params = draw(keys[1], like, outputs=0), _seen(state)
    return Architecture(fn, params, (normal(keys[2], 8, 14),), stateful=True)


def _seen(state: Any) -> Any:
    """Returns statistics after a first batch: none is 0 or 1, and all flags are off."""

    def value(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros_like(x)
        return 0.5 + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)

    return jax.tree.map(value, state)


def streamed(key: jax.Array) -> Architecture:
    """A gated recurrent cell that is called for one piece of a stream at a time."""
    param_key, input_key = jax.random.split(key)
    shapes = {
        "in": dense_shapes(6, 12),
        "gate": dense_shapes(12 + 20, 20),
        "new": dense_shapes(12 + 20, 20),
        "out": dense_shapes(20, 10),
        "hidden": (3, 20),
    }

    def fn(p: Params, x: jax.Array) -> Any:
        def turn(hidden: jax.Array, x: jax.Array) -> Any:
            both = jnp.concatenate([x, hidden], axis=-1)
            gate = jax.nn.sigmoid(dense(p["gate"], both))
            hidden = gate * hidden + (1 - gate) * jnp.tanh(dense(p["new"], both))
            return hidden, hidden

        steps = jnp.moveaxis(dense(p["in"], x), 1, 0)
        hidden, each = jax.lax.scan(turn, p["hidden"], steps)
        return dense(p["out"], jnp.moveaxis(each, 0, 1)), {"hidden": hidden}

    params, x = draw_plain(param_key, shapes), normal(input_key, 3, 7, 6)
    return Architecture(fn, params, (x,), True, ("_, t, _",))


ARCHITECTURES: dict[str, Builder] = {
    "Bottleneck ResNet with axis_name in train mode (Linen)": synced_resnet,
    "CNN in train mode, split and merged (NNX)": trained_cnn,
    "MLP in train mode, eqx.nn.State (Equinox)": trained_mlp,
    "Streamed recurrent cell (plain)": streamed,
}
