"""The residual network: its size, its normalization, its shortcuts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from experiments.loops import train
from experiments.models import layers, resnet
from experiments.tasks import data

pytestmark = pytest.mark.others_code


apply = jax.jit(resnet.apply)
batch_stats = jax.jit(resnet.batch_stats)


@functools.cache
def small():
    """ResNet-8 of width 4 with norms that are not the identity, and some images."""
    rng = np.random.default_rng(0)
    init = functools.partial(resnet.init, image_shape=(9, 8, 2), classes=5)
    init = functools.partial(init, depth=8, width=4)
    params = jax.tree.map(
        lambda w: w + jnp.float32(0.3) * rng.normal(size=w.shape).astype(np.float32),
        jax.jit(init)(jax.random.key(0)),
    )
    return params, jnp.asarray(rng.normal(size=(6, 9, 8, 2)), jnp.float32)


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_the_number_of_parameters_is_that_of_table_6(depth, millions):
    init = functools.partial(resnet.init, depth=depth)
    params = jax.eval_shape(init, jax.random.key(0))
    count = sum(w.size for w in jax.tree.leaves(params)) / 1e6
    assert round(count, 2 if depth < 110 else 1) == millions
    kernels = [p for p in jp.leaf_paths(params) if p.endswith("kernel")]
    assert len(kernels) == depth
    chosen = jp.tree.flags(jp.is_kernel, params)
    paths = jp.tree.map_with_path(lambda path, c: path if c else None, chosen)
    assert jax.tree.leaves(paths) == kernels  # and no scale or bias


@pytest.mark.parametrize("depth", [2, 6, 9, 21])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=f"got {depth}"):
        resnet.init(jax.random.key(0), depth=depth)


@pytest.mark.parametrize(("stride", "side"), [(1, 7), (2, 7), (2, 8), (3, 8)])
def test_strided_convolution_is_that_of_lax(stride, side):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, side, side + 1, 3)), jnp.float32)
    layer = {"kernel": jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)}
    expected = jax.lax.conv_general_dilated(
        x,
        layer["kernel"],
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    found = layers.conv(layer, x, stride)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def _numpy_forward(params, images):
    """The network in float64, written as the paper draws it."""
    f64 = functools.partial(np.asarray, dtype=np.float64)
    params = jax.tree.map(f64, params)

    def unit(layer, x, stride=1):
        n, height, width, _ = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = range(0, height, stride), range(0, width, stride)
        y = np.zeros((n, len(rows), len(columns), layer["kernel"].shape[-1]))
        for i, r in enumerate(rows):
            for j, c in enumerate(columns):
                window = padded[:, r : r + 3, c : c + 3]
                y[:, i, j] = np.tensordot(window, layer["kernel"], 3)
        y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5)
        return y * layer["norm"]["scale"] + layer["norm"]["bias"]

    x = np.maximum(unit(params["stem"], f64(images)), 0)
    for i, stage in enumerate(params["stages"]):
        for j, block in enumerate(stage):
            stride = 1 + (i > 0 and j == 0)
            y = np.maximum(unit(block["first"], x, stride), 0)
            y = unit(block["second"], y)
            y[..., : x.shape[-1]] += x[:, ::stride, ::stride]
            x = np.maximum(y, 0)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def test_logits_are_those_of_float64():
    params, images = small()
    expected = _numpy_forward(params, images)
    assert expected.shape == (6, 5)
    found = apply(params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_stats_of_the_same_images_change_nothing():
    params, images = small()
    stats = batch_stats(params, images)
    assert len(stats) == 7  # the stem, and two for each of three blocks
    same = apply(params, images, stats)
    np.testing.assert_allclose(same, apply(params, images), rtol=1e-5)


def test_with_stats_an_image_does_not_see_its_batch():
    params, images = small()
    stats = batch_stats(params, images)
    alone = apply(params, images[:1], stats)
    together = apply(params, images, stats)[:1]
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)


def test_a_few_steps_on_digits_reduce_the_loss():
    examples = jax.tree.map(jnp.asarray, data.load("digits").train)
    shape = examples.images.shape[1:]
    init = functools.partial(resnet.init, image_shape=shape, depth=8, width=4)
    params = jax.jit(init)(jax.random.key(0))
    batches = jnp.tile(jnp.arange(128), (3, 1))
    go = functools.partial(train.advance, resnet.apply, optax.sgd(0.1))
    state = train.TrainState(params, optax.sgd(0.1).init(params))
    _, curves = jax.jit(go)(examples, state, batches)
    assert curves.loss[0] > curves.loss[1] > curves.loss[2]
