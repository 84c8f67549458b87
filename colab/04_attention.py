# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#     name: 04_attention.ipynb
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
# [colab]: https://colab.research.google.com/github/jprune/jprune/blob/main/colab/04_attention.ipynb
#
# # Dynamic token and head pruning
#
# Not all words of a sentence matter, nor all patches of an image, and the attention
# probabilities tell which do. [SpAtten](https://arxiv.org/abs/2012.09852) uses what
# attention computes anyway to prune at run time:
#
# - **tokens** that receive little attention leave for all later layers (a *cascade*);
# - **heads** with small outputs likewise;
# - **values** with a very small probability are not fetched, row by row;
# - **bits**: the keys' lower bits are fetched only where the upper ones do not decide.
#
# This notebook applies all of them to a small vision transformer and to a decoder with
# a KV cache:
#
# 1. train a transformer, prune tokens, see which patches are left;
# 2. add heads, values and bits, and count the bytes read;
# 3. decode with a KV cache of fixed size;
# 4. learn how many tokens each layer should keep;
# 5. merge tokens, or let them skip layers, instead of dropping them.
#
# It runs on one CPU, GPU or TPU chip, in a few minutes on two CPU cores.
#
# *Licensed under the Apache License, Version 2.0.*

# %% [markdown] tags=["remove-cell"]
# ## Install
#
# Only needed on Colab. jprune requires no newer JAX than Colab's, so the runtime's own
# JAX, which matches its GPU or TPU, stays installed; the cell checks that.

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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jprune as jp
from jprune import attention as ja
from jprune.attention import cache as kv
from jprune.attention import decode

device = jax.devices()[0]
print(f"JAX {jax.__version__}, jprune {jp.__version__}")
print(f"runs on {device.device_kind} ({device.platform}), one of {jax.device_count()}")

# %% [markdown]
# Sizes. Set the environment variables to run a smaller or larger version.

# %%
STEPS = int(os.environ.get("JPRUNE_NB_STEPS", 800))  # updates of the first training
BATCH = int(os.environ.get("JPRUNE_NB_BATCH", 64))  # images in each
FINE_TUNE = max(STEPS // 4, 1)  # updates after pruning

full_size = STEPS >= 800  # only then do accuracies mean something

# %% [markdown]
# ## 1. Token pruning in a vision transformer
#
# ### Data and network
#
# Scikit-learn's digits, 8 x 8 pixels, a fifth of them held out for testing. Patches of
# 2 x 2 pixels make 16 tokens; the classifier reads a *class token* in front of them.

# %%
digits = load_digits()
labels = digits.target.astype(np.int32)
images = (digits.images / 16).astype(np.float32)
train_images, test_images, train_labels, test_labels = map(
    jnp.asarray,
    train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0),
)

SIDE = 4  # patches in a row
TOKENS = 1 + SIDE**2
LAYERS = 3 if full_size else 2
WIDTH, HEADS, HIDDEN = 64, 4, 128
DIM = WIDTH // HEADS


def cut(images):
    tiles = images.reshape(-1, SIDE, 2, SIDE, 2).swapaxes(2, 3)
    return tiles.reshape(-1, SIDE**2, 4)


# %% [markdown]
# Parameters are a dict of arrays; `ja.HeadWeights` holds the projections of an
# attention layer, by heads. A layer is two functions, and jprune prunes between them:
# `mix` projects tokens to queries, keys and values and attends; `finish` is the rest of
# the layer.


# %%
def random(key, inputs, *shape):
    return jax.random.normal(key, shape) / np.float32(np.sqrt(inputs))


def init_heads(key):
    keys = jax.random.split(key, 4)
    q, k, v = (random(key, WIDTH, WIDTH, HEADS, DIM) for key in keys[:3])
    return ja.HeadWeights(q, k, v, random(keys[3], WIDTH, HEADS, DIM, WIDTH))


def init_layer(key):
    keys = jax.random.split(key, 3)
    return {
        "heads": init_heads(keys[0]),
        "up": random(keys[1], WIDTH, WIDTH, HIDDEN),
        "down": random(keys[2], HIDDEN, HIDDEN, WIDTH),
    }


def init(key):
    keys = jax.random.split(key, LAYERS + 3)
    return {
        "patches": random(keys[0], 4, 4, WIDTH),
        "places": random(keys[1], WIDTH, TOKENS, WIDTH),
        "layers": [init_layer(key) for key in keys[3:]],
        "read": 0.1 * random(keys[2], WIDTH, WIDTH, 10),
    }


def normalize(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def embed(params, images):
    patches = cut(images) @ params["patches"]
    return jnp.pad(patches, ((0, 0), (1, 0), (0, 0))) + params["places"]


def mix(layer, x, valid, heads):
    """Returns the outputs of the heads, and the attention probabilities."""
    return ja.cascade.mix_heads(layer["heads"], normalize(x), valid, heads)


def finish(layer, x, outputs, heads):
    x = x + ja.combine(ja.take_heads(layer["heads"], heads), outputs)
    return x + jax.nn.gelu(normalize(x) @ layer["up"]) @ layer["down"]


# %% [markdown]
# `cascade.encode` runs the layers under a *schedule*: how many tokens and heads each
# layer keeps. Between `mix` and `finish` it accumulates the importance of tokens: the
# attention that each one received, over all heads, queries and layers so far. It drops
# the least important ones, so that `finish` and all later layers are not computed for
# them. The schedule is static, so arrays shrink and XLA compiles once.
#
# With a schedule that keeps everything this is the plain transformer.


# %%
is_class = jnp.arange(TOKENS) == 0


def start(params, images):
    x = embed(params, images)
    protected = jnp.broadcast_to(is_class, x.shape[:2])  # never dropped
    return ja.cascade.start(x, HEADS, protected=protected)


def network(params, images, plan, mix=mix):
    state = ja.cascade.encode(
        start(params, images), params["layers"], plan, mix, finish
    )
    return normalize(state.x[:, 0]) @ params["read"]


def plain(params, images):
    x = embed(params, images)
    for layer in params["layers"]:
        q, k, v = (
            jnp.einsum("ntw,whd->nthd", normalize(x), w) for w in layer["heads"][:3]
        )
        y = jax.nn.dot_product_attention(q, k, v)
        x = x + jnp.einsum("nthd,hdw->ntw", y, layer["heads"].output)
        x = x + jax.nn.gelu(normalize(x) @ layer["up"]) @ layer["down"]
    return normalize(x[:, 0]) @ params["read"]


@jax.jit
def from_plain(params, images):
    with jax.default_matmul_precision("highest"):
        difference = network(params, images, dense) - plain(params, images)
    return jnp.abs(difference).max()


dense = ja.dense(LAYERS, TOKENS, HEADS)
params = jax.jit(init)(jax.random.key(0))
print(dense)
print(f"difference from plain: at most {from_plain(params, test_images[:8]):.1e}")

# %% [markdown]
# ### Training
#
# An ordinary training loop. The network is an argument, a function of parameters and
# images; it is static, as it decides all shapes.


# %%
@functools.partial(jax.jit, static_argnames=("forward", "steps"))
def train(forward, params, key, steps, rate):
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(params, batch):
        logits = forward(params, train_images[batch])
        wanted = train_labels[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()

    def step(carry, key):
        params, state = carry
        batch = jax.random.randint(key, (BATCH,), 0, len(train_labels))
        updates, state = tx.update(jax.grad(loss)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, steps)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]


@functools.partial(jax.jit, static_argnames="forward")
def accuracy(forward, params):
    return (forward(params, test_images).argmax(-1) == test_labels).mean()


def pruned(plan):
    return functools.partial(network, plan=plan)


params = train(pruned(dense), params, jax.random.key(1), STEPS, 2e-3)
print(f"dense: {accuracy(pruned(dense), params):.1%} of the test images are right")

# %% [markdown]
# ### Prune tokens
#
# `ja.ramp` makes the counts of a schedule as the paper does: the first layer keeps all
# tokens, then the keep ratio falls linearly from layer to layer. Each of four
# schedules, mild to aggressive, is applied to the dense network without training, and
# again after fine-tuning with pruning active.


# %%
def counts(average):
    return ja.ramp(LAYERS, TOKENS, average, start=min(1.5 * average, 1), multiple=1)


def cost(plan):
    """Returns the multiply-adds of one image."""
    return sum(ja.multiply_adds(plan, WIDTH, HIDDEN))


def fine_tuned(forward, params):
    return train(forward, params, jax.random.key(2), FINE_TUNE, 1e-3)


averages = (0.75, 0.5, 0.35, 0.25) if full_size else (0.5,)
curve = {}
for average in averages:
    plan = ja.schedule(TOKENS, counts(average), (HEADS,) * LAYERS)
    forward = pruned(plan)
    tuned = fine_tuned(forward, params)
    found = accuracy(forward, params), accuracy(forward, tuned)
    curve[average] = (cost(plan) / cost(dense), *map(float, found), tuned)
    print(
        f"tokens {plan.tokens}: {cost(plan) / cost(dense):.1%} of the multiply-adds, "
        f"{found[0]:.1%} untrained, {found[1]:.1%} fine-tuned"
    )

# %%
share, before, after, _ = zip(*curve.values(), strict=True)
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.plot(share, after, "o-", label="fine-tuned with pruning")
axes.plot(share, before, "o:", mfc="w", label="dense network, pruned without training")
axes.axhline(float(accuracy(pruned(dense), params)), color="0.6", lw=1, label="dense")
axes.set_xlabel("multiply-adds left")
axes.set_ylabel("test accuracy")
axes.xaxis.set_major_formatter("{x:.0%}")
axes.yaxis.set_major_formatter("{x:.1%}")
axes.invert_xaxis()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ### Which patches are left?
#
# A `Cascade`, the state between two layers, holds each token's position in the input.
# So we run the layers one by one and record the positions.


# %% tags=["thumbnail"]
@functools.partial(jax.jit, static_argnames="plan")
def survivors(params, images, plan):
    """Returns for each layer (images, tokens): True for tokens that are left."""
    state, alive = start(params, images), []
    for layer, tokens in zip(params["layers"], plan.tokens, strict=True):
        state = ja.cascade.cascade_layer(
            state,
            functools.partial(mix, layer),
            functools.partial(finish, layer),
            tokens,
        )
        places = jax.nn.one_hot(state.positions, TOKENS, dtype=bool)
        alive.append(places.any(axis=1))
    return jnp.stack(alive)


average = 0.5
tuned = curve[average][-1]
plan = ja.schedule(TOKENS, counts(average), (HEADS,) * LAYERS)
some = np.array([int(np.argmax(test_labels == digit)) for digit in (0, 2, 4, 7, 8)])
alive = np.asarray(survivors(tuned, test_images[some], plan))
assert alive[:, :, 0].all()  # the class token

figure, grid = plt.subplots(5, LAYERS + 1, figsize=(7, 7), layout="constrained")
for row, image, patches in zip(grid, some, alive[:, :, 1:].swapaxes(0, 1), strict=True):
    row[0].imshow(test_images[image], cmap="gray_r")
    for axes, left in zip(row[1:], patches, strict=True):
        left = np.kron(left.reshape(SIDE, SIDE), np.ones((2, 2), bool))
        shown = np.where(left, test_images[image], np.nan)
        axes.imshow(shown, cmap="gray_r", vmin=0, vmax=1)
        axes.set_facecolor("#e9c46a")
for axes in grid.flat:
    axes.set_xticks([])
    axes.set_yticks([])
grid[0, 0].set_title("image", fontsize=9)
for i, axes in enumerate(grid[0, 1:]):
    axes.set_title(f"after layer {i + 1}", fontsize=9)
plt.show()
print(f"tokens after each layer: {alive.sum(-1)[:, 0]}")

# %% [markdown]
# ## 2. Heads, values, bits
#
# Heads are one more list of counts in the schedule. Values and bits are selected inside
# an attention layer, so they belong into `mix`: `ja.keep_values` selects the
# probabilities of a row that are large enough to fetch their value, and
# `ja.progressive_attend` computes a row from the keys' upper bits, and recomputes it
# from all bits where its largest probability is below a threshold.
#
# Fewer tokens and heads mean smaller arrays, on any device. Fewer values and bits do
# not: XLA reads whole arrays. Here they are a mask and a rounding, with the result of a
# machine that fetches on demand, and `ja.fetched` counts what that machine would read.


# %%
class Technique(NamedTuple):
    """What is pruned; hashable, so that it can be a static argument."""

    plan: ja.Schedule
    values: float = 1.0  # fraction of a row's values that is fetched
    bits: ja.Bits | None = None


THRESHOLD = 0.2  # of a row's largest probability; with 1,000 words 0.1 or less
FLOAT = ja.Bits(query=32, msb=32, lsb=0, value=32)


def mixer(technique, seen):
    """Returns a `mix` that also records the rows it reads."""

    def mix(layer, x, valid, heads):
        q, k, v = ja.project(ja.take_heads(layer["heads"], heads), normalize(x))
        if technique.bits:
            _, probs, refetched = ja.progressive_attend(
                q, ja.center_keys(k), v, bits=technique.bits, threshold=THRESHOLD
            )
            v = ja.fake_quantize(v, technique.bits.value)
        else:
            _, probs = ja.attend(q, k, v)
            refetched = jnp.zeros(q.shape[:-1], bool)
        visible = jnp.broadcast_to(valid[:, None, None], probs.shape)
        kept = visible
        if technique.values < 1:
            kept = ja.keep_values(probs, ja.count_values(technique.values, visible))
        rows = ja.fetched(visible, k.shape[1], refetched=refetched, kept=kept)
        seen.append((rows, ja.refetch_fraction(refetched, visible)))
        return ja.weigh_values(probs, v, kept), probs

    return mix


@functools.partial(jax.jit, static_argnames="technique")
def measure(technique, params):
    """Returns accuracy, and for each layer rows read and the fraction refetched."""
    seen = []
    logits = network(params, test_images, technique.plan, mixer(technique, seen))
    return (logits.argmax(-1) == test_labels).mean(), seen


def bytes_read(technique, seen):
    """Returns the bytes of queries, keys and values, of one image."""
    bits = technique.bits or FLOAT
    total = sum(sum(ja.fetched_bits(rows, DIM, bits)) for rows, _ in seen)
    return total / 8 / len(test_labels)


# %% [markdown]
# Techniques are added one by one, as in the paper. The two accuracies are those of the
# dense network pruned without training, and of the network fine-tuned above, with
# tokens pruned only. Bytes are those of queries, keys and values of one image, in
# float32 until bits are pruned too. In an encoder a row of V is read once for all
# queries if any query needs it, so local value pruning saves products rather than
# bytes. When text is generated, next, each query reads anew.

# %%
fewer_heads = ja.ramp(LAYERS, HEADS, 0.75, start=0.75, front=0.3, multiple=1)
both = ja.schedule(TOKENS, plan.tokens, fewer_heads)
half = [keys // 2 for keys in both.entering]  # as `ja.count_values` counts
all_three = ja.schedule(TOKENS, plan.tokens, fewer_heads, half)
bits = ja.Bits(query=12, msb=6, lsb=4, value=6)
techniques = {
    "dense": Technique(dense),
    "+ tokens": Technique(plan),
    "+ heads": Technique(both),
    "+ values": Technique(all_three, 0.5),
    "+ bits": Technique(all_three, 0.5, bits),
}
print(f"tokens {both.tokens}, heads {both.heads}, half of the values, {bits}")
print(f"{'':10}{'untrained':>10}{'tuned':>8}{'mult.-adds':>12}{'bytes':>9}{'less':>8}")
results = {}
for name, technique in techniques.items():
    before, seen = measure(technique, params)
    after, seen = measure(technique, params if name == "dense" else tuned)
    results[name] = float(after), bytes_read(technique, seen)
    less = results["dense"][1] / results[name][1]
    print(
        f"{name:10}{before:10.1%}{after:8.1%}{cost(technique.plan):12,}"
        f"{results[name][1]:9,.0f}{less:7.2f}x"
    )
print("rows that fetched lower bits:", *(f"{share:.1%}" for _, share in seen))

figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
ja.draw_tokens(all_three, axes)
plt.show()

# %% [markdown]
# ## 3. A KV cache of fixed size
#
# For each new token a decoder reads the keys and values of all earlier tokens. Here
# every layer has a fixed number of *slots*; when they are full, the new token
# overwrites the least important one. Nothing is gathered or moved, so generation is one
# `lax.scan` with the caches in its carry.
#
# `decode.step` is a layer's attention for one token. It takes the *stream*, the
# accumulated importance of all positions, and passes it on: to the next layer, and from
# the last layer to the next token. The first tokens (*sinks*) and the most recent ones
# are never evicted. The decoder's weights are random, as its text does not matter here.

# %%
LENGTH, DEPTH, WORDS = 64, 2, 32
BUDGETS = (32, 12)  # slots of each layer
SINKS, RECENT = 2, 4


def init_decoder(key):
    def layer(key):
        heads = init_heads(key)
        return heads._replace(query=4 * heads.query)  # sharper, as in a trained one

    keys = jax.random.split(key, DEPTH + 2)
    return {
        "embed": random(keys[0], WIDTH, WORDS, WIDTH),
        "places": random(keys[1], WIDTH, LENGTH, WIDTH),
        "layers": [layer(key) for key in keys[2:]],
    }


def word_step(params, carry, key):
    word, caches, stream = carry
    x, kept = params["embed"][word] + params["places"][stream.position], []
    for layer, cache in zip(params["layers"], caches, strict=True):
        q, k, v = (y[:, :, 0] for y in ja.project(layer, normalize(x)[:, None]))
        out, cache, stream = decode.step(
            q, k, v, cache, stream, sinks=SINKS, recent=RECENT
        )
        x = x + ja.combine(layer, out[:, :, None])[:, 0]
        kept.append(cache)
    logits = normalize(x) @ params["embed"].T
    carry = jax.random.categorical(key, logits), kept, kv.advance(stream)
    return carry, (word, logits, kept[-1].positions)


@functools.partial(jax.jit, static_argnames="budgets")
def generate(params, key, budgets):
    """Returns the final caches; words, logits and the last layer's slots by step."""
    caches = [kv.init(1, HEADS, slots, DIM, dtype=jnp.float32) for slots in budgets]
    first = jnp.zeros(1, jnp.int32), caches, kv.start(1, LENGTH)
    step = functools.partial(word_step, params)
    (_, caches, _), said = jax.lax.scan(step, first, jax.random.split(key, LENGTH))
    return caches, said


@jax.jit
def all_at_once(params, words):
    """Returns logits by plain causal attention."""
    x = params["embed"][words] + params["places"]
    for layer in params["layers"]:
        q, k, v = ja.project(layer, normalize(x))
        x = x + ja.combine(layer, ja.attend(q, k, v, causal=True)[0])
    return normalize(x) @ params["embed"].T


decoder = jax.jit(init_decoder)(jax.random.key(3))
with jax.default_matmul_precision("highest"):
    whole, (words, logits, _) = generate(decoder, jax.random.key(4), (LENGTH,) * DEPTH)
    small, (_, _, slots) = generate(decoder, jax.random.key(4), BUDGETS)
    difference = jnp.abs(logits[:, 0] - all_at_once(decoder, words[:, 0])).max()
for name, caches in (("whole", whole), ("small", small)):
    size = sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
    print(f"{name}: slots {[len(c.positions[0]) for c in caches]}, {size:,} bytes")
print(f"with slots for all, difference from plain: at most {difference:.1e}")
print(f"the last layer still has {sorted(small[-1].positions[0].tolist())}")

# %% [markdown]
# Which positions does the last layer hold after each word? Sinks are the columns at the
# left, recent words the diagonal; between them are those that received most attention.
# Importance is a sum, as in the paper, which favours early words.

# %%
held = np.zeros((LENGTH, LENGTH), bool)
for step, positions in enumerate(np.asarray(slots[:, 0])):
    held[step, positions[: step + 1]] = True  # slots fill from the first
assert (held.sum(1) == np.minimum(np.arange(LENGTH) + 1, BUDGETS[-1])).all()

figure, axes = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
axes.imshow(~held, cmap="gray", vmin=-0.4)
axes.set_xlabel("position in the text")
axes.set_ylabel("words generated")
plt.show()

# %% [markdown]
# ## 4. Learn how many tokens each layer keeps
#
# A count is not differentiable, but a *gate* is: `soft.straight_keep` returns zeros and
# ones, the same tokens as before, with the gradients of soft gates that sum to a real
# number. `soft.soft_layer` runs a layer under gates. So gradient descent can shift the
# counts to the layers where tokens help most; `soft.over_budget` penalizes costs above
# a budget, the multiply-adds of the schedule above.
#
# Each layer keeps a fraction of what the previous layer keeps, so counts never grow.
# The network is frozen; only the fractions are learned.
#
# On images this easy the ramp is hard to beat, and in our run the learned counts were
# behind it. Learn the counts where no good ramp is known.


# %%
def soft_counts(raw):
    return TOKENS * jnp.cumprod(jax.nn.sigmoid(raw))


def soft_cost(counts):
    entering = (TOKENS, *counts[:-1])
    soft = ja.Schedule(TOKENS, tuple(counts), (HEADS,) * LAYERS, entering)
    return cost(soft)


def soft_mix(layer, x, gates):
    q, k, v = ja.project(layer["heads"], normalize(x))
    return ja.soft.gated_attend(q, k, v, gates)


def soft_network(params, raw, images, temperature=1.0):
    x = embed(params, images)
    ones = jnp.ones(x.shape[:2])
    protected = jnp.broadcast_to(is_class, x.shape[:2])
    state = ja.soft.SoftCascade(x, gates=ones, scores=jnp.zeros_like(ones))
    for layer, count in zip(params["layers"], soft_counts(raw), strict=True):
        keep = functools.partial(
            ja.soft.straight_keep,
            count=count,
            temperature=temperature,
            protected=protected,
        )
        state = ja.soft.soft_layer(
            state,
            functools.partial(soft_mix, layer),
            functools.partial(finish, layer, heads=jnp.arange(HEADS)),
            lambda scores, valid, keep=keep: keep(scores, valid=valid),
        )
    return normalize(state.x[:, 0]) @ params["read"]


budget = cost(plan)


@functools.partial(jax.jit, static_argnames="steps")
def learn_counts(params, key, steps):
    tx = optax.adam(0.05)

    def loss(raw, batch):
        logits = soft_network(params, raw, train_images[batch])
        wanted = train_labels[batch]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        over = ja.soft.over_budget(soft_cost(soft_counts(raw)), budget)
        return losses.mean() + 10 * over

    def step(carry, key):
        raw, state = carry
        batch = jax.random.randint(key, (BATCH,), 0, len(train_labels))
        updates, state = tx.update(jax.grad(loss)(raw, batch), state)
        raw = optax.apply_updates(raw, updates)
        return (raw, state), soft_counts(raw)

    raw = jnp.full(LAYERS, 2.0, jnp.float32)
    return jax.lax.scan(step, (raw, tx.init(raw)), jax.random.split(key, steps))[1]


path = np.asarray(learn_counts(params, jax.random.key(5), FINE_TUNE))
learned = [max(1, round(count)) for count in path[-1].tolist()]
learned_plan = ja.schedule(TOKENS, learned, (HEADS,) * LAYERS)
print(f"ramp:    {plan.tokens}, {cost(plan) / cost(dense):.1%} of the multiply-adds")
print(f"learned: {learned_plan.tokens}, {cost(learned_plan) / cost(dense):.1%}")
found = [float(accuracy(pruned(one), params)) for one in (plan, learned_plan)]
print("dense network, pruned without training:", end=" ")
print("ramp {:.1%}, learned {:.1%}".format(*found))

# %%
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for layer, line in enumerate(path.T):
    axes.plot(line, label=f"layer {layer + 1}", color=f"C{layer}")
    axes.axhline(plan.tokens[layer], color=f"C{layer}", ls=":", lw=1)
axes.set_xlabel("updates")
axes.set_ylabel("tokens kept (dotted: ramp)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 5. Merge tokens, or let them skip layers
#
# A dropped token is lost. Two alternatives, on the dense network without training:
#
# - **Merging** ([ToMe](https://arxiv.org/abs/2210.09461)): `ja.merge` matches similar
#   tokens by their keys and replaces them by their mean. A token that represents
#   several counts as often in attention: its size is its gate.
# - **Routing** ([FTP](https://arxiv.org/abs/2412.11494)): tokens skip a layer and
#   return. `ja.routers.through` passes the chosen ones through it, the others
#   unchanged; here all tokens remain keys.
#
# First the merging, of the same number of tokens in each layer.

# %%
MERGED = 4  # tokens merged away in each layer
merging = ja.schedule(
    TOKENS, [TOKENS - MERGED * (i + 1) for i in range(LAYERS)], (HEADS,) * LAYERS
)


def merged(params, images):
    x = embed(params, images)
    sizes = jnp.ones(x.shape[:2])
    for layer in params["layers"]:
        q, k, v = ja.project(layer["heads"], normalize(x))
        x = x + ja.combine(layer["heads"], ja.soft.gated_attend(q, k, v, sizes)[0])
        first = jnp.broadcast_to(jnp.arange(x.shape[1]) == 0, x.shape[:2])
        matching = ja.merge.match(k.mean(1), MERGED, protected=first)
        x, sizes = ja.merge.merge(x, sizes, matching)
        x = x + jax.nn.gelu(normalize(x) @ layer["up"]) @ layer["down"]
    return normalize(x[:, 0]) @ params["read"]


left = cost(merging) / cost(dense)
print(f"tokens {merging.tokens}, {left:.1%} of the multiply-adds:", end=" ")
print(f"dropped {accuracy(pruned(merging), params):.1%},", end=" ")
print(f"merged {accuracy(merged, params):.1%}")

# %% [markdown]
# Routing: which tokens go through a layer, and how many? A *static* router takes those
# of the greatest importance, as a cascade does, and `ja.allot.search` allocates a
# sparsity to each layer, by a genetic search for the least loss at a given mean. FTP's
# *learned* router maps four features of a token, among them its importance and its
# layer's sparsity, to a logit; it is trained to imitate the static one (`guide_loss`),
# to meet the sparsity, and to keep the dense network's predictions.


# %%
def skip(layer, x, route):
    """Returns the tokens after a layer that `route(block, x)` sends some through."""
    _, k, v = ja.project(layer["heads"], normalize(x))

    def block(some):
        q, _, _ = ja.project(layer["heads"], normalize(some))
        return finish(layer, some, ja.attend(q, k, v)[0], jnp.arange(HEADS))

    return route(block, x)


def first_layer(params, images):
    """Returns the tokens after the first layer, which none skip, and importance."""
    state = start(params, images)
    layer = params["layers"][0]
    state = ja.cascade.cascade_layer(
        state, functools.partial(mix, layer), functools.partial(finish, layer)
    )
    return state.x, state.scores


def by_importance(scores, sparsity):
    """Returns the static router's logits: 1 for the most important tokens, else -1."""
    count = jnp.round((1 - sparsity) * TOKENS)
    keys = ja.sort_keys(scores, protected=jnp.broadcast_to(is_class, scores.shape))
    return jnp.where(ja.top_mask(keys, count), 1.0, -1.0)


def routed(params, images, sparsities, routers=None):
    """Returns logits of classes; for each layer, the router's and the static one's."""
    x, scores = first_layer(params, images)
    seen = []
    for i, layer in enumerate(params["layers"][1:]):
        known = by_importance(scores, sparsities[i])
        logits = known
        if routers is not None:
            features = ja.routers.factors(scores, jnp.full(len(x), sparsities[i]))
            logits = ja.routers.route(routers[i], features)
            logits = jnp.where(jnp.broadcast_to(is_class, logits.shape), 9.0, logits)
        route = functools.partial(ja.routers.gated_through, logits=logits)
        x = skip(layer, x, route)
        seen.append((logits, known))
    return normalize(x[:, 0]) @ params["read"], seen


@jax.jit
def allot(params, images, labels, key):
    """Returns the sparsities of least loss with the static router; trains nothing."""

    def loss(sparsities):
        logits, _ = routed(params, images, sparsities)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    size = {"population": 8, "generations": 10 if full_size else 1}
    return ja.allot.search(key, loss, LAYERS - 1, SKIPPED, **size).sparsities


SKIPPED = 0.4  # mean fraction of tokens that skip, over all layers but the first
few = slice(256)
sparsities = allot(params, train_images[few], train_labels[few], jax.random.key(6))
sparsities = np.asarray(sparsities)
passing = np.round((1 - sparsities) * TOKENS).astype(int).tolist()
print(f"after the first layer, {passing} of {TOKENS} tokens pass through each layer")


@functools.partial(jax.jit, static_argnames="steps")
def learn_routers(params, key, steps):
    tx = optax.adam(0.01)

    def loss(routers, images):
        logits, seen = routed(params, images, sparsities, routers)
        kept = ja.routers.distillation_loss(logits, plain(params, images))
        each = [
            ja.routers.guide_loss(found, known > 0)
            + ja.routers.sparsity_loss(found, sparsity)
            for (found, known), sparsity in zip(seen, sparsities, strict=True)
        ]
        return kept + sum(each)

    def step(carry, key):
        routers, state = carry
        batch = jax.random.randint(key, (BATCH,), 0, len(train_labels))
        updates, state = tx.update(jax.grad(loss)(routers, train_images[batch]), state)
        return (optax.apply_updates(routers, updates), state), None

    keys = jax.random.split(key, steps)
    routers = [ja.routers.init_router(key) for key in keys[: LAYERS - 1]]
    return jax.lax.scan(step, (routers, tx.init(routers)), keys)[0][0]


routers = learn_routers(params, jax.random.key(7), FINE_TUNE)

# %% [markdown]
# Gates compute all tokens. With a static number for each layer, `through` computes only
# those that go through: the same function on smaller arrays.


# %%
def skipping(params, images, routers=None):
    x, scores = first_layer(params, images)
    for i, layer in enumerate(params["layers"][1:]):
        known = scores
        if routers is not None:
            features = ja.routers.factors(scores, jnp.full(len(x), sparsities[i]))
            known = ja.routers.route(routers[i], features)
        protected = jnp.broadcast_to(is_class, known.shape)
        ids = ja.top_indices(known, passing[i], protected=protected)
        x = skip(layer, x, functools.partial(ja.routers.through, ids=ids))
    return normalize(x[:, 0]) @ params["read"]


gated = jax.jit(routed)(params, test_images, sparsities)[0].argmax(-1)
static = jax.jit(skipping)(params, test_images).argmax(-1)
print(f"gates and gathers agree on {(gated == static).mean():.1%} of the images")
print(f"static router {accuracy(skipping, params):.1%},", end=" ")
print(f"learned {accuracy(functools.partial(skipping, routers=routers), params):.1%}")

# %%
if full_size:
    accuracy_of = {name: value for name, (value, _) in results.items()}
    assert accuracy_of["dense"] > 0.92, accuracy_of
    assert accuracy_of["+ tokens"] > 0.9, accuracy_of
    assert results["dense"][1] > 4 * results["+ bits"][1]

# %% [markdown]
# ## Where to go next
#
# - Your own model: write the two functions of its layers for `ja.cascade.encode`, or
#   pass what `ja.adapters.attention_fn` returns to Flax's modules as their
#   `attention_fn`.
# - Speed: at this size there is nothing to gain. `python -m experiments bench
#   attention` times an encoder of BERT's size, and decoding with thousands of words.
# - Accuracy: `python -m experiments spatten_accuracy` fine-tunes a pretrained encoder
#   on GLUE and adds one technique after the other, as the table above does.
# - Learned thresholds instead of counts (LTP): `ja.soft.threshold_keep` to train them,
#   `ja.buckets.threshold_layer` to run them at a few compiled sizes.
