# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#     name: 05_hardware.ipynb
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
# [colab]: https://colab.research.google.com/github/jprune/jprune/blob/main/colab/05_hardware.ipynb
#
# # From a traced model to a Pareto front
#
# What does pruning save on a machine that you do not have, or that does not exist yet?
# jprune answers with one pure function, `cost(workload, machine)`: cycles, seconds,
# energy, DRAM bytes and area. Both arguments are pytrees of arrays, so the function can
# be vmapped over machines and pruning schedules, and differentiated by both.
#
# 1. **Trace** a network: its matrix products become a workload.
# 2. **Compare** machines: which resource limits each of them?
# 3. **Search**: thousands of accelerators at once, or down the gradient of one.
# 4. **Prune** to a budget: 30 % less energy on a given machine.
#
# It runs on one CPU, GPU or TPU chip, in a minute or two on two CPU cores.
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
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jprune as jp
from jprune import graph as jg
from jprune import hardware as hw
from jprune.hardware import machines, networks

device = jax.devices()[0]
print(f"JAX {jax.__version__}, jprune {jp.__version__}")
print(f"runs on {device.device_kind} ({device.platform}), one of {jax.device_count()}")

# %%
STEPS = int(os.environ.get("JPRUNE_NB_STEPS", 200))
DESIGNS = 50 * STEPS  # random accelerators
DESCENT = 100 + STEPS  # gradient steps

# %% [markdown]
# ## 1. Trace
#
# Any JAX function works. Here it is a transformer layer in plain JAX; its parameters
# are given as shapes, so nothing is computed. The table has a row for each product,
# with the name of the leaf that it multiplies by: what it costs on one machine, the
# accelerator of the SpAtten paper, and which resource limits it.

# %%
WIDTH, HEADS, HIDDEN, TOKENS = 256, 4, 1024, 128


def layer(params, x):
    def split(y):
        return y.reshape(TOKENS, HEADS, -1).transpose(1, 0, 2)

    q, k, v = (split(x @ params[name]) for name in ("q", "k", "v"))
    probabilities = jax.nn.softmax(q @ k.transpose(0, 2, 1) / np.sqrt(WIDTH / HEADS))
    y = (probabilities @ v).transpose(1, 0, 2).reshape(TOKENS, -1)
    x = x + y @ params["o"]
    return x + jax.nn.gelu(x @ params["up"]) @ params["down"]


sizes = dict.fromkeys("qkvo", (WIDTH, WIDTH))
sizes |= {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
shapes = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in sizes.items()}
graph = jg.trace(layer, shapes, jax.ShapeDtypeStruct((TOKENS, WIDTH), jnp.float32))
net = hw.from_graph(graph, bits=8)
hw.print_summary(net, machines.spatten())

# %% [markdown]
# `hw.networks` has the workloads of BERT, GPT-2, ResNet-50 and ViT.
#
# ## 2. Compare
#
# `hw.machines` has published machines, each with its source in its docstring. `bound`
# is the resource that limits an operation. Absolute energies are those that the sources
# give or imply: use them for ratios.

# %%
nets = {
    "our layer": net,
    "BERT-base": networks.bert_base(128),
    "GPT-2, a token": networks.gpt2_small(1, 1024),
    "ResNet-50": networks.resnet50(),
}
several = {
    name: getattr(machines, name)()
    for name in ("spatten", "eyeriss", "tpu_v1", "tpu_v5e", "h100", "xeon")
}
cost = jax.jit(hw.cost)
print(f"{'network':15} {'machine':8} {'us':>10} {'mJ':>8}    bound by")
for title, each in nets.items():
    for name, machine in several.items():
        found = cost(each, machine)
        which = np.bincount(found.bound, minlength=len(hw.RESOURCES)).argmax()
        us, mj = 1e6 * float(found.seconds), 1e3 * float(found.energy)
        print(f"{title:15} {name:8} {us:10.1f} {mj:8.3f}    {hw.RESOURCES[which]}")

# %% [markdown]
# Why are the limits different? In a *roofline* picture each operation is a point: its
# multiply-adds for each byte of DRAM traffic, and its rate. On the same machine, BERT
# reads a weight once for 128 words and keeps the multipliers busy; GPT-2 reads all
# weights for a single token and waits for DRAM.

# %%
figure, rows = plt.subplots(2, figsize=(9, 8), layout="constrained")
for axes, title in zip(rows, ("BERT-base", "GPT-2, a token"), strict=True):
    hw.draw_roofline(nets[title], several["spatten"], axes)
    axes.set_title(title, loc="right")
plt.show()

# %% [markdown]
# ## 3. Search
#
# A design is any pytree; `build` returns its workload and its machine. Here a design is
# an array of multipliers, its SRAM and its DRAM, *and* the fraction of tokens that
# attention pruning keeps, so machine and pruning are searched together. A formula
# stands in for the accuracy lost by keeping fewer tokens.

# %%
bounds = {
    "rows": (8, 256),
    "columns": (8, 256),
    "sram": (32, 8192),
    "dram_bandwidth": (4, 256),
    "tokens": (0.3, 1.0),
}
base = machines.tpu_v1()._replace(dataflows=np.ones(3, np.float32), leakage=0.5)
bert = nets["BERT-base"]


def build(design):
    machine = {k: v for k, v in design.items() if k != "tokens"}
    keep = jnp.ones_like(bert.keep).at[:, 1].set(design["tokens"])
    return bert._replace(keep=keep), base._replace(**machine)


def points_lost(tokens):
    return 4 * (1 - tokens) ** 2  # a proxy; measure it for your own model


drawn = jp.search.random_designs(jax.random.key(0), DESIGNS, bounds)
costs = hw.search.evaluate(drawn, build)
objectives = jnp.stack([costs.seconds, costs.area, points_lost(drawn["tokens"])], 1)
front = jp.search.pareto(objectives)
print(f"{DESIGNS:,} designs, {int(front.sum())} on the front")

# %% [markdown]
# Gradients need fewer evaluations: eight descents at once on the smooth cost, under
# limits of area and of points lost, then rounding, and evaluation by the hard cost.


# %%
def delay_energy(found):
    return found.seconds * found.energy


def limits(found):
    return jnp.stack([found.area / 200])


def descend(start):
    return hw.search.descend(
        start, build, delay_energy, bounds, limits=limits, steps=DESCENT
    )


bounds["tokens"] = (0.7, 1.0)  # at most 0.36 points
starts = jp.search.random_designs(jax.random.key(1), 8, bounds)
ends = jax.jit(jax.vmap(descend))(starts)
rounded = {k: v if k == "tokens" else jnp.round(v) for k, v in ends.design.items()}
after = hw.search.evaluate(rounded, build)
best = int(jnp.argmin(jnp.where(after.area <= 201, delay_energy(after), jnp.inf)))
print({k: round(float(v[best]), 2) for k, v in rounded.items()})
fits = (costs.area <= 200) & (drawn["tokens"] >= 0.7)
grid_best = float(jnp.min(jnp.where(fits, delay_energy(costs), jnp.inf)))
print(f"energy x delay: {grid_best:.3g} of random designs,", end=" ")
print(f"{float(delay_energy(after)[best]):.3g} by gradients")

# %% [markdown]
# All random designs that keep at least 70 % of the tokens, their Pareto front, and the
# ends of the descents.

# %% tags=["thumbnail"]
points = np.stack([costs.area, 1e3 * costs.seconds], axis=1)
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
kept_enough = np.asarray(drawn["tokens"] >= 0.7)
titles = ["area (mm$^2$)", "time of BERT-base (ms)"]
jp.search.draw_pareto(points[kept_enough], titles, axes)
axes.plot(after.area, 1e3 * after.seconds, "*", color="tab:red", label="by gradients")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 4. Prune to a budget of energy
#
# Any function of jprune that takes a cost of group sizes accepts a machine's cost. Here
# one call removes 30 % of our layer's energy on Eyeriss; heads and hidden units
# compete.

# %%
params = {
    name: jax.random.normal(key, s) / np.sqrt(s[0])
    for key, (name, s) in zip(
        jax.random.split(jax.random.key(2), len(sizes)), sizes.items(), strict=True
    )
}
energy = hw.as_graph_cost(machines.eyeriss(), lambda found: found.energy, bits=8)
x = jnp.ones((TOKENS, WIDTH))
small = jg.compress(layer, params, x, remove=0.3, cost=energy)
share = float(energy(graph, jg.sizes(graph, small.keep)) / energy(graph, {}))
print(f"energy left: {100 * share:.1f} %")
print({name: p.shape for name, p in small.params.items()})
assert small.fn(small.params, x).shape == x.shape

# %% [markdown]
# Its gradient, by which masks can be learned, is the cost of one unit of each group.

# %%
smooth = hw.as_graph_cost(
    machines.eyeriss(), lambda found: found.energy, bits=8, temperature=0.05
)
whole = {name: jnp.float32(group.size) for name, group in graph.groups.items()}
for name, slope in jax.grad(lambda s: smooth(graph, s))(whole).items():
    print(f"{name:12} {1e9 * float(slope):8.2f} nJ for an entry, of {whole[name]:.0f}")

# %% [markdown]
# ## Where to go next
#
# - How accurate is the model? `python -m experiments hardware_validation` prints it
#   next to published figures, with every error.
# - SpAtten's own stages and schedules: `jprune.hardware.spatten`; its tables:
#   `python -m experiments spatten_tables`.
# - Your own machine: `hw.accelerator(clock=..., rows=..., columns=..., sram=...,
#   dram_bandwidth=...)`; the docstring gives the unit of every field.
