# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#     name: 01_quickstart.ipynb
#     provenance: []
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: all,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# [![Open in Colab][badge]][colab]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/jprune/jprune/blob/main/colab/01_quickstart.ipynb
#
# # Three ways to prune a network
#
# This notebook is for users of JAX and Optax who are new to pruning. You train a small
# network on real images and remove most of its weights, in three ways:
#
# 1. **one-shot**: prune 95 % of the trained network at once, then fine-tune the rest;
# 2. **gradual**: prune to 95 % step by step while the network trains;
# 3. **2:4**: keep exactly two of every four weights, the pattern of the sparse matrix
#    units of some GPUs.
#
# It runs on one CPU, GPU or TPU chip, and takes a few minutes on two CPU cores.
#
# *Licensed under the Apache License, Version 2.0.*

# %% [markdown] tags=["remove-cell"]
# ## Install
#
# Only needed on Colab. jprune works with the JAX that Colab preinstalls, which matches
# the GPU or TPU of the runtime; the cell checks that it is not replaced.

# %% tags=["remove-cell"]
import importlib.metadata
import os
import subprocess
import sys

if "google.colab" in sys.modules:
    ours = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    package = os.environ.get("JPRUNE_INSTALL", "jprune[export,plot,report]")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)
    for name, version in ours.items():
        now = importlib.metadata.version(name)
        assert now == version, f"{name} {version} became {now}: restart the runtime"

# %%
import functools
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jprune as jp

device = jax.devices()[0]
print(f"JAX {jax.__version__}, jprune {jp.__version__}")
print(f"runs on {device.device_kind} ({device.platform}), one of {jax.device_count()}")

# %% [markdown]
# Sizes. Set the environment variables to run the notebook at a smaller or larger size.

# %%
STEPS = int(os.environ.get("JPRUNE_NB_STEPS", 1_000))  # updates of each training run
BATCH = int(os.environ.get("JPRUNE_NB_BATCH", 64))  # images per update
SEEDS = int(os.environ.get("JPRUNE_NB_SEEDS", 3))  # networks per point of the plot

SPARSITY = 0.95  # the fraction of the weights to remove
full_size = STEPS >= 1_000  # accuracies are only checked at full size

# %% [markdown]
# ## Data
#
# Scikit-learn's digits: 1,797 handwritten digits of 8 x 8 pixels. A fifth of them,
# stratified by class, is the test set. Nothing is tuned on it.

# %%
digits = load_digits()
images = (digits.images[..., None] / 16).astype(np.float32)  # 0 ... 1, NHWC
labels = digits.target.astype(np.int32)
train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
)
train_set = jnp.asarray(train_images), jnp.asarray(train_labels)
test_set = jnp.asarray(test_images), jnp.asarray(test_labels)
print(f"{len(train_labels)} images to train on, {len(test_labels)} to test on")

# %% [markdown]
# ## A network
#
# Two convolutions and two dense layers. The parameters are a dict of arrays. jprune
# accepts any pytree, so Flax and Equinox models work in the same way. It identifies a
# leaf by its path, such as `conv1/kernel`.

# %%
SHAPES = {
    "conv1": (3, 3, 1, 32),  # height, width, input channels, output channels
    "conv2": (3, 3, 32, 64),
    "dense1": (2 * 2 * 64, 128),
    "dense2": (128, 10),
}


def init(key):
    def layer(key, shape):
        scale = np.sqrt(2 / np.prod(shape[:-1])).astype(np.float32)  # He et al., 2015
        return {
            "kernel": scale * jax.random.normal(key, shape),
            "bias": jnp.zeros(shape[-1]),
        }

    keys = jax.random.split(key, len(SHAPES))
    return {
        name: layer(k, shape)
        for k, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def conv(layer, x):
    # 3 x 3 patches times a matrix: on a CPU, and under vmap, several times faster
    # than lax.conv for images as small as these.
    height, width, channels, features = layer["kernel"].shape
    _, rows, columns, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [
        x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)
    ]
    matrix = layer["kernel"].reshape(height * width * channels, features)
    return jnp.concatenate(patches, axis=-1) @ matrix + layer["bias"]


def max_pool(x):
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def apply(params, images):
    x = max_pool(jax.nn.relu(conv(params["conv1"], images)))
    x = max_pool(jax.nn.relu(conv(params["conv2"], x)))
    x = jax.nn.relu(dense(params["dense1"], x.reshape(len(x), -1)))
    return dense(params["dense2"], x)


# %% [markdown]
# ## A training loop
#
# An ordinary training loop: gradients, `tx.update` and `optax.apply_updates`, with all
# steps in one `lax.scan`. It has no code for pruning: below, only the optimizer `tx`
# changes. `tx` is a static argument, so each method compiles once. `log` returns what a
# logger would get after each step, by default nothing.


# %%
def loss_fn(params, images, labels):
    logits = apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.partial(jax.jit, static_argnames=("tx", "log"))
def train(tx, params, examples, key, log=lambda opt_state, params: None):
    images, labels = examples

    def step(carry, key):
        params, opt_state = carry
        batch = jax.random.randint(key, (BATCH,), 0, len(labels))
        grads = jax.grad(loss_fn)(params, images[batch], labels[batch])
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), log(opt_state, params)

    start = params, tx.init(params)
    (params, opt_state), logged = jax.lax.scan(
        step, start, jax.random.split(key, STEPS)
    )
    return params, opt_state, logged


@jax.jit
def accuracy(params, examples):
    images, labels = examples
    return (apply(params, images).argmax(-1) == labels).mean()


optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, STEPS), weight_decay=1e-3)

# %% [markdown]
# First, train the dense network as a baseline.

# %%
init_key, train_key, tune_key = jax.random.split(jax.random.key(0), 3)
initial = init(init_key)
trained, *_ = train(optimizer, initial, train_set, train_key)

results = {"dense": (trained, jp.masks.full(trained))}
print(f"dense: {accuracy(trained, test_set):.1%} of the test images are right")

# %% [markdown]
# ## 1. One-shot magnitude pruning
#
# The oldest criterion is still hard to beat: the weights closest to zero matter least.
# A *recipe* is a published method; this one removes the 95 % of the weights of each
# layer with the smallest absolute value. `jp.prune` applies it once and returns the
# sparse parameters and the *masks*: a pytree with the structure of the parameters,
# which is True for the weights to keep.
#
# jprune prunes kernels; the mask of a bias is a scalar `True`, which means "never
# pruned". `where` excludes further leaves, here the first layer: it is small, and all
# other layers depend on its outputs, so it is often kept dense.

# %%
where = jp.excluding("conv1/.*")  # matches whole paths; no match is an error

pruned, masks = jp.prune(trained, jp.recipes.magnitude(SPARSITY), where=where)
print(f"pruned, not yet fine-tuned: {accuracy(pruned, test_set):.1%}")
jp.print_summary(pruned, masks)

# %% [markdown]
# Pruning this much at once reduces the accuracy, and fine-tuning restores it.
# `jp.sparsify` combines a pruner with any Optax optimizer. Here it prunes in the first
# update only (`end=0`). From then on the removed weights stay exactly zero, in spite of
# momentum and weight decay.

# %%
tx = jp.sparsify(optimizer, jp.recipes.magnitude(SPARSITY), end=0, where=where)
params, opt_state, _ = train(tx, trained, train_set, tune_key)

results["one-shot"] = params, jp.masks_of(opt_state)
print(f"one-shot, fine-tuned: {accuracy(params, test_set):.1%}")

# %% [markdown]
# ## 2. Gradual magnitude pruning
#
# With gradual pruning, the network adapts while weights are removed. This run starts
# from the same random weights as the dense one and has the same number of steps. The
# first tenth is dense; during the next half, more weights are removed at every tenth
# step; the remaining steps train with fixed masks. `jp.metrics` returns the sparsities
# in force, also inside `jit` and `lax.scan`, and `jp.report.draw_sparsity` draws them.
# By magnitude, each layer loses the same fraction, so its line is that of the total.

# %%
BEGIN, RAMP = STEPS // 10, STEPS // 2


def gradually(sparsity):
    pruner = jp.recipes.gradual_magnitude(sparsity, begin=BEGIN, steps=RAMP)
    return jp.sparsify(
        optimizer, pruner, every=10, begin=BEGIN, end=BEGIN + RAMP, where=where
    )


params, opt_state, history = train(
    gradually(SPARSITY), initial, train_set, train_key, log=jp.metrics
)

results["gradual"] = params, jp.masks_of(opt_state)
print(f"gradual: {accuracy(params, test_set):.1%}")

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
jp.report.draw_sparsity(history, axes, steps=np.arange(STEPS))
plt.show()

# %% [markdown]
# ## 3. The 2:4 pattern
#
# Of every four consecutive weights along the input axis, the two largest are kept: 50 %
# sparsity in a regular pattern. The single input channel of `conv1` cannot be divided
# into groups of four: without `where`, jprune raises an error that names this leaf.

# %%
tx = jp.sparsify(optimizer, jp.recipes.n_of_m(2, 4), end=0, where=where)
params, opt_state, _ = train(tx, trained, train_set, tune_key)

results["2:4"] = params, jp.masks_of(opt_state)
print(f"2:4, fine-tuned: {accuracy(params, test_set):.1%}")

# %% [markdown]
# ## A look inside the masks
#
# The plot shows a corner of the mask of one layer for each method. Magnitude pruning
# leaves scattered weights. In the 2:4 mask, every column has two dark cells between two
# lines.
#
# If a row of the whole mask is empty, its input is not used any more, and the previous
# layer need not compute it. With scattered zeros this is rare.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 4), layout="constrained")
for axis, name in zip(axes, ("one-shot", "gradual", "2:4"), strict=True):
    mask = np.asarray(results[name][1]["dense1"]["kernel"])
    unread = (~mask.any(axis=1)).sum()
    print(f"{name}: {unread} of {len(mask)} inputs are read by nothing")
    axis.imshow(mask[:32, :32], cmap="Greys", vmin=0, vmax=1.25)
    axis.set(title=f"{name}: keeps {mask.mean():.0%}", xticks=[], xlabel="output")
    axis.set_yticks(np.arange(0, 33, 4) - 0.5, np.arange(0, 33, 4))
    axis.grid(axis="y", color="tab:orange", linewidth=0.6)
axes[0].set_ylabel("input")
figure.suptitle("The mask of dense1/kernel, its first 32 x 32 weights; dark = kept")
plt.show()

groups = results["2:4"][1]["dense1"]["kernel"].reshape(-1, 4, SHAPES["dense1"][1])
assert (groups.sum(1) == 2).all()

# %% [markdown]
# ## Side by side
#
# *Sparsity* is that of the pruned layers; *kept* counts all parameters. *Bytes at rest*
# counts the kept values, and one bit per weight of the pruned layers for their
# positions. One-shot and 2:4 have trained for twice as many steps as the other two.

# %%
print(f"{'':10}{'accuracy':>10}{'sparsity':>10}{'kept':>9}{'bytes at rest':>15}")
for name, (params, masks) in results.items():
    total = jp.summary(params, masks)["total"]
    print(
        f"{name:10}{accuracy(params, test_set):>10.1%}{total['sparsity']:>10.1%}"
        f"{total['kept']:>9,}{total['bytes_sparse']:>15,}"
    )

if full_size:
    scores = {name: float(accuracy(p, test_set)) for name, (p, _) in results.items()}
    assert scores["dense"] > 0.97, scores
    assert min(scores.values()) > scores["dense"] - 0.03, scores

# %% [markdown]
# ## How far can it go?
#
# A sparsity may be a traced number. So `vmap` can train networks of all sparsities,
# with several orders of the images each, in parallel and in **one compilation**: the
# `print` in the function is executed when JAX traces it, and it prints only once.


# %%
def sparse_accuracies(sparsity, key):
    print("tracing")
    tx = jp.sparsify(optimizer, jp.recipes.magnitude(sparsity), end=0, where=where)
    one_shot, *_ = train(tx, trained, train_set, key)
    gradual, *_ = train(gradually(sparsity), initial, train_set, key)
    return accuracy(one_shot, test_set), accuracy(gradual, test_set)


over_seeds = jax.vmap(sparse_accuracies, in_axes=(None, 0))
sweep = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))

levels = np.array([0.90, 0.95, 0.98, 0.99], np.float32)
keys = jax.random.split(jax.random.key(1), SEEDS)
one_shot, gradual = map(np.asarray, sweep(levels, keys))

# %% [markdown]
# Expect little loss up to 95 %, and a steep loss near 99 %, where gradual pruning is
# better than one-shot pruning.

# %% tags=["thumbnail"]
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
axis.axhline(accuracy(trained, test_set), color="black", linestyle=":", label="dense")
for curve, name, marker in ((gradual, "gradual", "o"), (one_shot, "one-shot", "s")):
    (line,) = axis.plot(1 - levels, curve.mean(1), marker=marker, label=name)
    axis.fill_between(
        1 - levels, curve.min(1), curve.max(1), color=line.get_color(), alpha=0.2
    )
axis.set_xscale("log")
axis.invert_xaxis()
axis.set_xticks(1 - levels, [f"{level:.0%}" for level in levels])
axis.minorticks_off()
axis.yaxis.set_major_formatter("{x:.0%}")
axis.set(xlabel="sparsity", ylabel="test accuracy")
axis.set_title(f"Digits: mean and range of {SEEDS} seeds")
axis.legend()
plt.show()

# %% [markdown]
# ## What masks do, and what they do not do
#
# - **Less storage.** Zeros need not be stored: see *bytes at rest* above.
# - **Not faster, and no less memory at run time.** A masked weight is a zero in a dense
#   array, and products multiply by it as by any other number. JAX runs neither
#   scattered zeros nor 2:4 faster. A mask shows which weights are not needed.
# - **Smaller arrays are faster.** If whole channels, heads or neurons are removed, the
#   arrays can shrink, and a smaller dense network is faster on every device. Scattered
#   zeros hardly ever leave a whole channel unused, as counted above.
#
# ## Next steps
#
# - Your own network: in your training script, replace `tx` with
#   `jp.sparsify(tx, pruner, ...)`. Nothing else changes, also with Flax or Equinox.
# - Other methods: `jp.recipes` has them, each with its paper. Try
#   `jp.recipes.global_magnitude(0.95)` above, which ranks the weights of all layers.
# - Your own method: a pruner is an `optax.chain` of links, from scores to masks, for
#   example `optax.chain(jp.score_by_magnitude(), jp.keep_top(0.95))`. Replace a link.
# - The same comparison from the command line: `python -m experiments quickstart` in a
#   clone of [the repository](https://github.com/jprune/jprune).
# - Loops for Flax Linen, Flax NNX, Equinox and plain dicts: the
#   [documentation](https://jprune.readthedocs.io/en/latest/getting_started.html).
