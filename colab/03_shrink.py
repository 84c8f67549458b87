# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#     name: 03_shrink.ipynb
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
# [colab]: https://colab.research.google.com/github/jprune/jprune/blob/main/colab/03_shrink.ipynb
#
# # Make a ResNet and a GPT half as expensive
#
# A mask sets weights to zero but leaves the arrays as large as before, so nothing runs
# faster. Here whole channels, attention heads and hidden units are *removed*: the
# arrays become smaller, and the same function runs on them.
#
# The hard part is bookkeeping. A channel of a convolution is also a scale and a bias of
# the next normalization, two running statistics, an input channel of the next
# convolution and, because of the residual connection, a channel of earlier layers. Axes
# that must shrink together form a **group**, and jprune finds the groups from one trace
# of your function. No layer is registered and no module is edited.
#
# 1. A **ResNet** in Flax, with batch normalization: find groups, score, choose, shrink,
#    fine-tune, measure.
# 2. A **GPT** in plain JAX: heads, head dimensions, hidden units and a whole block.
#
# It runs on one CPU, GPU or TPU chip, in a few minutes on two CPU cores.
#
# *Licensed under the Apache License, Version 2.0.*

# %% [markdown] tags=["remove-cell"]
# ## Install
#
# Needed on Colab only. jprune requires no newer JAX than Colab's. The runtime's own
# JAX, which fits its GPU or TPU, must stay installed; the cell checks that.

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
import importlib.util
import os
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import export
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jprune as jp
from jprune import graph as jg

device = jax.devices()[0]
print(f"JAX {jax.__version__}, jprune {jp.__version__}")
print(f"runs on {device.device_kind} ({device.platform}), one of {jax.device_count()}")

# %% [markdown]
# The sizes. Set the environment variables to run the notebook at another scale.

# %%
STEPS = int(os.environ.get("JPRUNE_NB_STEPS", 200))  # updates of the ResNet's training
BATCH = int(os.environ.get("JPRUNE_NB_BATCH", 64))  # images, or sequences, in each
GPT_STEPS = 4 * STEPS if STEPS >= 200 else STEPS

full_size = STEPS >= 200  # only then do accuracies and times mean something
WIDTHS = (16, 32, 64) if full_size else (8, 16, 32)  # channels of the ResNet

# %% [markdown]
# ## 1. A ResNet
#
# ### Data and network
#
# The data are scikit-learn's digits, with a fifth held out for testing. The network is
# a ResNet of three blocks, an ordinary Flax module without any code for pruning.

# %%
digits = load_digits()
images = (digits.images[..., None] / 16).astype(np.float32)  # 0 ... 1, NHWC
labels = digits.target.astype(np.int32)
train_images, test_images, train_labels, test_labels = map(
    jnp.asarray,
    train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0),
)


class Block(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9
        )
        conv = functools.partial(nn.Conv, self.width, use_bias=False)
        y = nn.relu(norm()(conv((3, 3), self.stride)(x)))
        y = norm()(conv((3, 3))(y))
        if x.shape != y.shape:
            x = norm()(conv((1, 1), self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(WIDTHS[0], (3, 3))(x))
        for width, stride in zip(WIDTHS, (1, 2, 2), strict=True):
            x = Block(width, stride)(x, train)
        return nn.Dense(10)(x.mean((1, 2)))


net = ResNet()
variables = jax.jit(net.init, static_argnames="train")(
    jax.random.key(0), train_images[:1], train=False
)
print({kind: len(jax.tree.leaves(tree)) for kind, tree in variables.items()})

# %% [markdown]
# jprune takes **functions** `(params, *inputs) -> results`. We have two, for training
# and for inference. Their first argument contains all arrays that must shrink together,
# including the batch statistics.


# %%
def predict(variables, images):
    return net.apply(variables, images, train=False)


def forward(variables, images):
    """Returns logits, and new batch statistics."""
    return net.apply(variables, images, train=True, mutable=["batch_stats"])


# %% [markdown]
# ### A training loop
#
# The loop is ordinary, too. The function to train is an argument, so that the loop can
# train the small function as well. We keep Flax's outer key `"params"` around the
# weights: then a leaf has the same path in the variables and in the optimizer state,
# which we need below.


# %%
def loss(weights, stats, forward, images, labels):
    logits, stats = forward(weights | stats, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), stats


def parts(variables):
    return tuple({key: variables[key]} for key in ("params", "batch_stats"))


tx = optax.adam(3e-3)


@functools.partial(jax.jit, static_argnames=("forward", "steps"))
def train(forward, variables, opt_state, key, steps):
    def step(carry, key):
        weights, stats, opt_state = carry
        batch = jax.random.randint(key, (BATCH,), 0, len(train_labels))
        grads, stats = jax.grad(loss, has_aux=True)(
            weights, stats, forward, train_images[batch], train_labels[batch]
        )
        updates, opt_state = tx.update(grads, opt_state, weights)
        return (optax.apply_updates(weights, updates), stats, opt_state), None

    carry = *parts(variables), opt_state
    carry, _ = jax.lax.scan(step, carry, jax.random.split(key, steps))
    return carry[0] | carry[1], carry[2]


def accuracy(predict, variables):
    return (jax.jit(predict)(variables, test_images).argmax(-1) == test_labels).mean()


opt_state = tx.init(parts(variables)[0])
trained, opt_state = train(forward, variables, opt_state, jax.random.key(1), STEPS)
print(f"dense: {accuracy(predict, trained):.1%} of the test images are right")

# %% [markdown]
# ### Find the groups
#
# `trace` records the function without computing anything. Each line below is a group:
# its name, how the program uses it, its number of entries, and its members, each an
# axis of a leaf.

# %%
graph = jg.trace(predict, trained, train_images[:BATCH])
print(graph)

# %% [markdown]
# The second group shows the effect of a residual connection: the stem and the first
# block write to the same stream, so both lose the same channels, and the shortcut and
# the first convolution of the next block lose these input channels. Its members:

# %%
for member in graph.groups["params/Block_0/Conv_1/kernel[3]"].members:
    print(member)

# %% [markdown]
# Axes that cannot shrink are **frozen**, and `explain` says why: for example, the ten
# classes, because results keep their shape, and the windows of the convolutions. If
# jprune has no rule for an operation, it freezes the axes of its operands and says so:
# you lose an opportunity, but never correctness.

# %%
print(jg.explain(graph))

# %% [markdown]
# The cost of each product:

# %%
jg.print_summary(graph)

# %% [markdown]
# ### Score the entries
#
# Score every weight by any criterion; `group_scores` combines the scores of all weights
# that are removed together. Two classical criteria:
#
# - **magnitude**, w²: it needs no data. `group_l2` is its name; it leaves out running
#   means and variances, since only weights should count.
# - **Taylor**, |w g| with the gradient g of the loss on a few images: a first-order
#   estimate of the change of the loss when the weight is set to zero.


# %%
@functools.partial(jax.jit, static_argnames="loss")
def taylor(loss, weights):
    return jax.tree.map(lambda w, g: jnp.abs(w * g), weights, jax.grad(loss)(weights))


def some_loss(weights):
    stats = parts(trained)[1]
    return loss(weights, stats, forward, train_images[:256], train_labels[:256])[0]


scores = {
    "magnitude": jg.group_l2(graph, trained),
    "Taylor": jg.group_scores(graph, taylor(some_loss, parts(trained)[0])),
}

# %% [markdown]
# ### Half of the multiply-adds
#
# `choose` keeps the entries with the highest scores among all groups, as many as the
# budget allows. The cost is a polynomial in the widths, known exactly from the trace:
# no network is built in order to be measured.

# %%
full_cost = jg.multiply_adds(graph)
keeps = {
    name: jg.choose(graph, each, 0.5, cost=jg.multiply_adds, min_kept=4)
    for name, each in scores.items()
}
for name, keep in keeps.items():
    cost = jg.multiply_adds(graph, jg.sizes(graph, keep))
    print(f"{name}: {cost:,} of {full_cost:,} multiply-adds, {cost / full_cost:.1%}")

# %%
keep = keeps["Taylor"]
sizes = jg.sizes(graph, keep)
figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
jg.draw_widths(graph, sizes, axes)
plt.show()

# %% [markdown]
# ### Shrink
#
# `shrink(graph, params, keep=keep)` cuts the arrays and returns the function that runs
# on them. We have two functions of the same parameters, so we make a *plan* first:
# plain data that says which entries of which axes of which leaves are kept.
# `shrinking=` says that the new batch statistics, which `forward` returns, may become
# smaller, too.

# %%
plan = jg.make_plan(graph, keep)
small_predict, small = jg.shrink(graph, trained, plan)

training_graph = jg.trace(
    forward, trained, train_images[:BATCH], shrinking=jp.matching(".*batch_stats/.*")
)
small_forward, _ = jg.shrink(training_graph, trained, plan)

first = lambda v: v["params"]["Block_0"]["Conv_0"]["kernel"].shape  # noqa: E731
print(f"Block_0/Conv_0/kernel: {first(trained)} -> {first(small)}")
count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
print(f"parameters: {count(trained):,} -> {count(small):,}")

# %% [markdown]
# Is it the same function? `jg.without_entries` computes at full size, with the removed
# entries in no sum, mean or maximum. Both have to agree:

# %%
as_if = jax.jit(jg.without_entries(graph, keep))(trained, train_images[:BATCH])
logits = jax.jit(small_predict)(small, train_images[:BATCH])
difference = jnp.abs(logits - as_if).max()
print(f"largest difference of logits: {difference:.1e}")
assert difference < 1e-3

# %% [markdown]
# ### Fine-tune
#
# Adam has two moments for each weight. `slice_tree` cuts them by the same plan, so that
# training continues where it stopped.

# %%
small_state = jg.slice_tree(plan, opt_state)
print(f"optimizer state: {count(opt_state):,} -> {count(small_state):,} numbers")

tuned, _ = train(small_forward, small, small_state, jax.random.key(2), STEPS // 2)

# %% [markdown]
# The batch statistics of the shrunk network are still those of the large one. A part of
# the loss of accuracy can therefore be recovered without changing any weight, by passes
# over the data that update the statistics only: the row `refreshed`.


# %%
@jax.jit
def refresh(variables, key):
    weights, stats = parts(variables)

    def step(stats, key):
        batch = jax.random.randint(key, (BATCH,), 0, len(train_labels))
        return small_forward(weights | stats, train_images[batch])[1], None

    stats, _ = jax.lax.scan(step, stats, jax.random.split(key, 50))
    return weights | stats


results = {
    "dense": accuracy(predict, trained),
    "shrunk": accuracy(small_predict, small),
    "refreshed": accuracy(small_predict, refresh(small, jax.random.key(8))),
    "fine-tuned": accuracy(small_predict, tuned),
}
for name, found in results.items():
    print(f"{name:11}{found:6.1%} of the test images are right")

# %% [markdown]
# ### Is it faster?
#
# We time both functions under `jit`, in turns, and take the best of several runs; and,
# for comparison, the large function with masked weights.


# %%
def seconds(**calls):
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        jax.block_until_ready(call())  # compiles
    for _ in range(20 if full_size else 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


masked = jp.masks.apply(trained, jg.param_masks(graph, keep))
large_jit, small_jit = jax.jit(predict), jax.jit(small_predict)
times = seconds(
    dense=lambda: large_jit(trained, train_images),
    masked=lambda: large_jit(masked, train_images),
    small=lambda: small_jit(tuned, train_images),
)
for name, found in times.items():
    print(f"{name:7}{1e3 * found:8.2f} ms, {times['dense'] / found:.2f} times as fast")

# %% [markdown]
# Masks save no time. The small network does, but seldom the factor of two that its
# multiply-adds suggest: normalizations and rectifiers take time without multiply-adds,
# and hardware prefers some widths to others. On a GPU or TPU, a network as small as
# this one hardly fills the chip, and may not become faster at all. Pass `multiple_of=8`
# or more to `choose` there, and measure on your own device.
#
# ### Save the plan
#
# A plan is JSON. It shrinks another checkpoint of the same network in the same way.

# %%
text = jg.dumps(plan)
print(f"{len(text):,} characters: {text[:60]} ...")
again_predict, again = jg.shrink(graph, trained, jg.loads(text))
assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), again, small))

# %% [markdown]
# ## 2. A GPT
#
# Two blocks of attention and an MLP, in plain JAX. The model learns to sort: given
# `52817>`, it continues with `12578`. There are 100,000 such lines, drawn at random
# during training, so it has to learn the rule rather than the answers.

# %%
DIGITS, LENGTH = 5, 10
HEADS, HEAD, WIDTH, HIDDEN = 4, 16, 64, 128
SHAPES = {
    "norm1": (WIDTH,),
    "query": (WIDTH, HEADS, HEAD),
    "key": (WIDTH, HEADS, HEAD),
    "value": (WIDTH, HEADS, HEAD),
    "out": (HEADS, HEAD, WIDTH),
    "norm2": (WIDTH,),
    "up": (WIDTH, HIDDEN),
    "down": (HIDDEN, WIDTH),
}


def init(key):
    shapes = {
        "embed": (11, WIDTH),  # ten digits and ">"
        "positions": (LENGTH, WIDTH),
        "blocks": [SHAPES, SHAPES],
        "norm": (WIDTH,),
        "read": (WIDTH, 11),
    }
    flat, tree = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    keys = jax.random.split(key, len(flat))
    leaves = [
        0.1 * jax.random.normal(k, shape) if len(shape) > 1 else jnp.ones(shape)
        for k, shape in zip(keys, flat, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def normalize(scale, x):
    x = x - x.mean(-1, keepdims=True)
    return scale * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def attend(block, x):
    q = jnp.einsum("nld,dhk->nlhk", x, block["query"])
    k = jnp.einsum("nld,dhk->nlhk", x, block["key"])
    v = jnp.einsum("nld,dhk->nlhk", x, block["value"])
    logits = jnp.einsum("nlhk,nmhk->nhlm", q, k) / np.sqrt(HEAD)
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    weights = jax.nn.softmax(jnp.where(causal, logits, -1e9))
    mixed = jnp.einsum("nhlm,nmhk->nlhk", weights, v)
    return jnp.einsum("nlhk,hkd->nld", mixed, block["out"])


def gpt(params, words):
    x = params["embed"][words] + params["positions"][: words.shape[1]]
    for block in params["blocks"]:
        x = x + attend(block, normalize(block["norm1"], x))
        hidden = jax.nn.gelu(normalize(block["norm2"], x) @ block["up"])
        x = x + hidden @ block["down"]
    return normalize(params["norm"], x) @ params["read"]


# %%
def lines(key, count):
    digits = jax.random.randint(key, (count, DIGITS), 0, 10)
    arrow = jnp.full((count, 1), 10)
    return jnp.concatenate([digits, arrow, jnp.sort(digits, axis=1)], axis=1)


def gpt_loss(params, gpt, lines):
    logits = gpt(params, lines[:, :-1])[:, DIGITS:]  # of what follows the arrow
    wanted = lines[:, DIGITS + 1 :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()


@functools.partial(jax.jit, static_argnames=("gpt", "tx", "steps"))
def train_gpt(gpt, tx, params, opt_state, key, steps):
    def step(carry, key):
        params, opt_state = carry
        grads = jax.grad(gpt_loss)(params, gpt, lines(key, BATCH))
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(key, steps)
    return jax.lax.scan(step, (params, opt_state), keys)[0]


test_lines = lines(jax.random.key(9), 1_000)


def sorted_right(gpt, params):
    """Returns the share of lines of which every digit is right."""
    logits = jax.jit(gpt)(params, test_lines[:, :-1])[:, DIGITS:]
    return (logits.argmax(-1) == test_lines[:, DIGITS + 1 :]).all(1).mean()


start = jax.jit(init)(jax.random.key(3))
gpt_tx = optax.adam(2e-3)
params, opt_state = train_gpt(
    gpt, gpt_tx, start, gpt_tx.init(start), jax.random.key(4), GPT_STEPS
)
print(f"dense: {sorted_right(gpt, params):.1%} of the lines are sorted")

# %% [markdown]
# ### Heads, head dimensions, hidden units
#
# Groups of kind `heads` are whole heads. Groups of kind `head` are dimensions within
# them: one is shared by queries and keys, another by values and outputs. All heads are
# in one array, so all of them lose the same dimensions. The `hidden` group of 64
# entries is the residual stream itself.

# %%
example = test_lines[:BATCH, :-1]
graph = jg.trace(gpt, params, example)
print(graph)

# %% [markdown]
# `jg.compress` does all steps in one call: it traces, scores, chooses and shrinks, and
# returns the small function with its params, the plan and the graph. The scores are
# again Taylor's; by default they are those of `group_l2`. Widths become multiples of
# eight, and attention may only lose whole heads: matrix units are made for head
# dimensions such as 16, not 9 or 11. Written out, with `where=jg.is_width`, the steps
# cut head dimensions, too.

# %%
some_lines = lines(jax.random.key(5), 512)


def taylor_scores(graph, params):
    terms = taylor(lambda params: gpt_loss(params, gpt, some_lines), params)
    return jg.group_scores(graph, terms)


small = jg.compress(gpt, params, example, remove=0.5, score=taylor_scores)
tuned, _ = train_gpt(
    small.fn,
    gpt_tx,
    small.params,
    jg.slice_tree(small.plan, opt_state),
    jax.random.key(6),
    GPT_STEPS // 2,
)
print(f"sorted, shrunk: {sorted_right(small.fn, small.params):.1%}")
print(f"sorted, shrunk and fine-tuned: {sorted_right(small.fn, tuned):.1%}")

# %% tags=["thumbnail"]
sizes = jg.sizes(graph, small.keep)
jg.print_summary(graph, sizes=sizes)
figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
jg.draw_widths(graph, sizes, axes)
plt.show()

# %% [markdown]
# Most of what goes are hidden units, and channels of the residual stream; all heads
# stay.

# %%
large_jit, small_jit = jax.jit(gpt), jax.jit(small.fn)
words = test_lines[:, :-1]
times = seconds(
    dense=lambda: large_jit(params, words), small=lambda: small_jit(tuned, words)
)
for name, found in times.items():
    print(f"{name:7}{1e3 * found:8.2f} ms, {times['dense'] / found:.2f} times as fast")

# %% [markdown]
# ### Fewer layers
#
# A *branch* is what an addition adds to the residual stream; without it, the stream
# passes unchanged. There are four here: two of attention and two MLPs. How good is the
# model without each of them?

# %%
for name, branch in jg.branches(graph).items():
    shorter, rest = jg.without_branches(graph, params, [name])
    print(f"{sorted_right(shorter, rest):.1%} sorted without {branch}")

# %% [markdown]
# The result is again a function with parameters, which can be trained, traced and
# shrunk. Leaves that are no longer used are empty.

# %%
last = list(jg.branches(graph))[-1]
shorter, rest = jg.without_branches(graph, params, [last])
print(f"without {last}: {count(params):,} -> {count(rest):,} parameters")
cost = jg.multiply_adds(jg.trace(shorter, rest, example)) / jg.multiply_adds(graph)
print(f"{cost:.1%} of the multiply-adds")

# %% [markdown]
# ### Gradual pruning
#
# Structures can also be masked gradually during training, and be removed at the end.
# `jg.keep_groups` is a link like any other in jprune, so `jp.sparsify` accepts it, and
# the training loop does not change.
#
# We leave the residual stream whole. A channel that is *masked* there is a zero that
# still counts in the means of the normalizations; one that is *removed* does not. For
# hidden units and heads the two are the same.

# %%
inner = lambda group: group.kind == "heads" or "up" in group.name  # noqa: E731
ramp = max(GPT_STEPS // 4, 1)
pruner = optax.chain(
    jp.score_by_magnitude(),
    jg.keep_groups(
        graph, jp.cubic(0.5, begin=0, steps=ramp), scope="leaf", where=inner
    ),
)
gradual_tx = jp.sparsify(optax.adam(2e-3), pruner, every=max(ramp // 20, 1), end=ramp)
sparse, sparse_state = train_gpt(
    gpt, gradual_tx, params, gradual_tx.init(params), jax.random.key(7), GPT_STEPS // 2
)
keep = jg.kept_by(graph, jp.masks_of(sparse_state))
print({name: f"{mask.sum()} of {mask.size}" for name, mask in keep.items()})

gradual_gpt, gradual = jg.shrink(graph, sparse, keep=keep)
print(f"masked: {sorted_right(gpt, sparse):.1%} sorted")
print(f"removed: {sorted_right(gradual_gpt, gradual):.1%} sorted")

# %% [markdown]
# ### Export
#
# The small function is a JAX function, so `jax.export` stores it as StableHLO for a
# server that has neither the model's code nor jprune. (Serialization needs the package
# flatbuffers.)

# %%
exported = export.export(jax.jit(small.fn))(tuned, example)
difference = jnp.abs(exported.call(tuned, example) - small_jit(tuned, example)).max()
print(f"exported for {exported.platforms}, largest difference {difference:.1e}")
if importlib.util.find_spec("flatbuffers"):
    blob = exported.serialize()
    assert export.deserialize(blob).in_avals == exported.in_avals
    print(f"{len(blob):,} bytes")

# %%
if full_size:
    assert results["dense"] > 0.97, results
    assert results["fine-tuned"] > results["dense"] - 0.02, results
    assert sorted_right(gpt, params) > 0.9
    assert sorted_right(small.fn, tuned) > 0.8
    assert abs(sorted_right(gpt, sparse) - sorted_right(gradual_gpt, gradual)) < 0.01

# %% [markdown]
# ## Where to go next
#
# - Your own model: call `jg.trace(fn, params, *inputs)`, then read `print(graph)` and
#   `jg.explain(graph)`. An axis that is missing in the first is explained in the
#   second.
# - Other criteria: anything that gives a number for each weight. Other budgets:
#   `jg.parameters`, `jg.bytes_moved`, or your own function of the sizes.
# - Frozen does not mean important, and prunable does not mean unimportant: the graph
#   says what *can* be removed, the scores say what *should* be.
# - Sparse training: `jg.add_group_decay` and `jg.add_growing_decay` are links for the
#   optimizer that weaken groups before they are removed.
