# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#     name: 02_bip.ipynb
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
# [colab]: https://colab.research.google.com/github/jprune/jprune/blob/main/colab/02_bip.ipynb
#
# # Find a winning ticket by bi-level pruning
#
# A *winning ticket* is a sparse subnetwork that trains as well as the whole network.
# The standard method to find one is iterative magnitude pruning (IMP): train, remove a
# fifth of the weights, rewind to the start, and repeat, often more than fifteen times.
# Bi-level pruning (BiP) learns the mask itself by gradient descent, in one training.
#
# In this notebook you find tickets with four methods, and compare accuracy and cost:
#
# 1. **random**: a random mask, trained from the start, as a control;
# 2. **one-shot**: prune the trained network by magnitude and fine-tune;
# 3. **IMP**: prune in rounds, rewinding to an early step;
# 4. **BiP**: alternate gradient steps on the weights and on the mask.
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
import time

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
STEPS = int(os.environ.get("JPRUNE_NB_STEPS", 400))  # updates of one training run
BATCH = int(os.environ.get("JPRUNE_NB_BATCH", 64))  # images per update
SEEDS = int(os.environ.get("JPRUNE_NB_SEEDS", 3))  # networks per point

SPARSITIES = (0.9, 0.98, 0.99)  # fractions of the weights to remove
full_size = STEPS >= 400  # accuracies are only checked at full size

# %% [markdown]
# ## Data and network
#
# Scikit-learn's digits, with a fifth of them as the test set, and a multilayer
# perceptron with 50,000 weights. Its parameters are a dict of arrays.

# %%
digits = load_digits()
images = (digits.images.reshape(-1, 64) / 16).astype(np.float32)
labels = digits.target.astype(np.int32)
train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
)
train_set = jnp.asarray(train_images), jnp.asarray(train_labels)
test_set = jnp.asarray(test_images), jnp.asarray(test_labels)

SHAPES = {"dense1": (64, 256), "dense2": (256, 128), "dense3": (128, 10)}


def init(key):
    keys = jax.random.split(key, len(SHAPES))
    return {
        name: {
            "kernel": jax.random.normal(k, shape) * np.float32(np.sqrt(2 / shape[0])),
            "bias": jnp.zeros(shape[1]),
        }
        for k, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def apply(params, x):
    for name in ("dense1", "dense2"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["dense3"]["kernel"] + params["dense3"]["bias"]


def loss(params, batch):
    images, labels = batch
    logits = apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(params):
    images, labels = test_set
    return 100 * (apply(params, images).argmax(-1) == labels).mean()


# %% [markdown]
# ## Training with a mask
#
# An ordinary training loop. `jp.sparsify(tx, pruner, every=None)` is an optimizer that
# holds fixed masks in its state: pruned weights stay exactly zero.


# %%
def batches(key, steps):
    chosen = jax.random.randint(key, (steps, BATCH), 0, len(train_set[1]))
    return train_set[0][chosen], train_set[1][chosen]


def sgd(rate, steps):
    return optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9)


def fit(tx, params, state, data):
    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), data)[0]


def masked(tx, params, masks, inner=None):
    tx = jp.sparsify(tx, jp.recipes.magnitude(0.0), every=None)
    state = tx.init(params)._replace(masks=masks)
    return tx, state if inner is None else state._replace(inner=inner)


def dense(key):
    params = init(jax.random.fold_in(key, 0))
    tx = sgd(0.1, STEPS)
    return fit(tx, params, tx.init(params), batches(key, STEPS))[0]


# %% [markdown]
# ## Four methods
#
# *Random* and *one-shot* need two training runs.


# %%
def random(key, sparsity):
    params = init(jax.random.fold_in(key, 0))
    pruner = jp.recipes.random_erk(sparsity, jax.random.fold_in(key, 1))
    pruned, masks = jp.prune(params, pruner)
    tx, state = masked(sgd(0.1, 2 * STEPS), pruned, masks)
    return fit(tx, pruned, state, batches(key, 2 * STEPS))[0]


def one_shot(key, sparsity):
    pruned, masks = jp.prune(dense(key), jp.recipes.magnitude(sparsity, scope="global"))
    tx, state = masked(sgd(0.05, STEPS), pruned, masks)
    return fit(tx, pruned, state, batches(jax.random.fold_in(key, 2), STEPS))[0]


# %% [markdown]
# *IMP*: `jprune.training.lottery_ticket` takes your training as a function of weights
# and masks. It starts at the rewind step, with the optimizer state and the batches of
# that step. One `step` is a round, and the rounds are a `lax.scan`.


# %%
def imp(key, sparsity):
    rounds = round(np.log(1 - sparsity) / np.log(0.8))
    early = STEPS // 20
    data = batches(key, STEPS)
    params = init(jax.random.fold_in(key, 0))
    tx = sgd(0.1, STEPS)
    head = jax.tree.map(lambda x: x[:early], data)
    anchor, clock = fit(tx, params, tx.init(params), head)
    tail = jax.tree.map(lambda x: x[early:], data)

    def train(params, masks):
        tx_, state = masked(tx, params, masks, clock)
        return fit(tx_, params, state, tail)[0]

    schedule = jp.geometric(sparsity, steps=rounds, rounds=rounds)
    pruner = jp.recipes.magnitude(schedule, scope="global")
    method = jp.training.lottery_ticket(train, pruner)
    state, _ = jax.lax.scan(
        lambda state, _: method.step(state), method.init(anchor), length=rounds
    )
    return train(*method.finish(state))


# %% [markdown]
# *BiP*: let z = m w be the effective weights and g the gradient there. A step updates
#
# - the weights on one batch: w ← w - α m g,
# - the scores of the mask on another batch: s ← s - β (w - m g / γ) g,
#
# and keeps the largest scores of all layers; γ is 1. Pruned weights have a gradient,
# too, so they can return. Here the sparsity increases to its target during the first
# half of the steps; with a number instead of a schedule, `keep_top` starts there.


# %%
def bip(key, sparsity):
    steps = 3 * STEPS // 4
    target = jp.cubic(sparsity, begin=0, steps=max(steps // 2, 1))
    method = jp.learned.bilevel.bip(
        loss,
        jp.keep_top(target, scope="global", min_kept=1),
        lower=sgd(0.1, steps),
        upper=sgd(1.0, steps),
    )
    lower = batches(jax.random.fold_in(key, 3), steps)
    upper = batches(jax.random.fold_in(key, 4), steps)
    lower = jax.tree.map(lambda x: x[:, None], lower)  # one lower batch per step
    state, _ = jax.lax.scan(
        lambda state, pair: method.step(state, *pair),
        method.init(dense(key)),
        (lower, upper),
    )
    return method.finish(state)[0]


# %% [markdown]
# ## Run them
#
# The seeds of a method run in parallel under `vmap`. Random, one-shot and BiP are
# compiled once for all sparsities, since a sparsity may be traced; the number of rounds
# of IMP depends on the sparsity. The second call is timed.

# %%
METHODS = {"random": random, "one-shot": one_shot, "IMP": imp, "BiP": bip}
once = {
    name: jax.jit(jax.vmap(method, in_axes=(0, None)))
    for name, method in METHODS.items()
    if name != "IMP"
}
keys = jax.random.split(jax.random.key(0), SEEDS)
reference = np.asarray(jax.jit(jax.vmap(lambda key: accuracy(dense(key))))(keys))
evaluate = jax.jit(jax.vmap(accuracy))

found = {}
print(f"dense {reference.mean():5.1f} %")
for sparsity in SPARSITIES:
    for name in METHODS:
        networks, args = once.get(name), (keys, sparsity)
        if name == "IMP":
            rounds = functools.partial(imp, sparsity=sparsity)
            networks, args = jax.jit(jax.vmap(rounds)), (keys,)
        jax.block_until_ready(networks(*args))  # compiles
        begin = time.perf_counter()
        params = jax.block_until_ready(networks(*args))
        seconds = (time.perf_counter() - begin) / SEEDS
        found[name, sparsity] = np.asarray(evaluate(params)), seconds
        kept = sum(int((p["kernel"][0] != 0).sum()) for p in params.values())
        print(
            f"{100 * sparsity:.0f} % {name:9} {found[name, sparsity][0].mean():5.1f} % "
            f"{seconds:6.2f} s {kept:6,} weights"
        )

# %% [markdown]
# ## Results

# %% tags=["thumbnail"]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name in METHODS:
    accuracies = np.stack([found[name, s][0] for s in SPARSITIES])
    seconds = [found[name, s][1] for s in SPARSITIES]
    density = [1 - s for s in SPARSITIES]
    left.errorbar(
        density, accuracies.mean(1), accuracies.std(1), marker="o", label=name
    )
    right.plot(density, seconds, marker="o", label=name)
left.axhline(reference.mean(), color="0.3", ls="--", label="dense")
for axes, label in ((left, "test accuracy (%)"), (right, "seconds for a network")):
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xticks(density, [f"{100 * s:g} %" for s in SPARSITIES])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("sparsity")
    axes.set_ylabel(label)
left.legend()
right.set_yscale("log")
plt.show()

# %% [markdown]
# The cost of IMP grows with the sparsity, since it needs more rounds; that of BiP does
# not. On these easy images, all methods but the random one find tickets at 90 %, and
# they differ from 98 % on. The study `python -m experiments bip_vs_imp` makes this
# comparison on Fashion-MNIST, with equal tuning of all methods.

# %%
if full_size:
    at = lambda name, s: found[name, s][0].mean()  # noqa: E731
    assert at("BiP", 0.98) > at("one-shot", 0.98)
    assert at("BiP", 0.98) > at("random", 0.98)
    assert found["BiP", 0.99][1] < found["IMP", 0.99][1] / 3
