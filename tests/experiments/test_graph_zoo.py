"""All architectures of the zoo lose half of every group; the oracle is in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from experiments.models import zoo
from jprune import graph as jg

pytestmark = pytest.mark.others_code
X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
KEY = jax.random.key(0)
SOME = (
    "Soft mixture of experts (plain)",
    "DenseNet (Linen)",
    "Squeeze-and-excitation CNN, depth multiplier 2 (Linen)",
    "Pre-activation ResNet (NNX)",
    "Attention block (Equinox)",
    "Llama (plain)",
    "Transformer scanned over layers (plain)",
    "LSTM (Linen)",
)
NAMES = [
    n if n in SOME else pytest.param(n, marks=pytest.mark.slow)
    for n in zoo.ARCHITECTURES
]
# Their functions read every size from params: small ones are an oracle of their own.
DRIVEN = (
    "MLP (plain)",
    "LoRA MLP (plain)",
    "Ensemble by vmap (plain)",
    "Weight-tied autoencoder (plain)",
    "Soft mixture of experts (plain)",
    "Pre-activation ResNet (NNX)",
    "MLP (Equinox)",
    "Mamba (plain)",
    "gMLP (plain)",
    "Streamed recurrent cell (plain)",
)
# Rounds to bfloat16, where the last bit of float32 may decide.
LOW_PRECISION = "bfloat16"


def graph_of(a):
    shrinking = (lambda path, _: path.startswith("1/")) if a.stateful else None
    return jg.trace(a.fn, a.params, *a.inputs, shrinking=shrinking)


def traced(name):
    """The architecture, its graph, and half of every group."""
    a = zoo.ARCHITECTURES[name](KEY)
    graph = graph_of(a)
    rng = np.random.default_rng(0)
    keep = {}
    for group, found in graph.groups.items():
        keep[group] = np.zeros(found.size, bool)
        keep[group][rng.permutation(found.size)[: max(1, found.size // 2)]] = True
    return a, graph, keep


def floats(tree):
    leaves = [x for x in jax.tree.leaves(tree) if x.dtype != jax.dtypes.float0]
    return [np.asarray(x) for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]


def assert_near(found, wanted, tolerance=1e-5):
    """Leaves are equal relative to their scale, or to 1/100 of the tree's."""
    found, wanted = floats(found), floats(wanted)
    top = max((np.abs(y).max(initial=0) for y in wanted), default=0)
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape
        scale = max(np.abs(y).max(initial=0), 0.01 * top, 1e-6)
        assert np.abs(x - y).max(initial=0) <= tolerance * scale


def wide(tree):
    """Floats in double precision."""
    return jax.tree.map(
        lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def with_gradient(fn, name, stateful):
    """Results, and the gradient of a smooth function of all that are floats."""

    def loss(params, inputs):
        out = fn(params, *inputs)
        each = jax.tree.leaves(out[0] if stateful else out)
        parts = [x for x in each if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.sin(1.3 * x + 0.1)) for x in parts), out

    if "Greedy" in name:  # a while loop has no gradient
        return jax.jit(lambda params, inputs: (loss(params, inputs), 0))
    return jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True))


@pytest.mark.parametrize("name", NAMES)
def test_half_of_every_group(name):
    a, graph, keep = traced(name)
    assert graph.groups
    plan = jg.make_plan(graph, keep)
    small, params = jg.shrink(graph, a.params, plan)
    before, after = jp.tree.by_path(a.params), jp.tree.by_path(params)

    def left(paths):
        return sum(np.size(after[p]) for p in paths) / sum(
            np.size(before[p]) for p in paths
        )

    assert left({m.path for g in graph.groups.values() for m in g.members}) < 0.6
    if "ECA-Net" not in name:  # channels under its convolutions over channels stay
        assert left(before) < 0.6

    (_, out), grads = with_gradient(small, name, a.stateful)(params, a.inputs)
    with X64(True):  # the oracle, at full size
        b = zoo.ARCHITECTURES[name](KEY)  # some modules remember types
        b = b._replace(params=wide(a.params), inputs=wide(a.inputs))
        without = jg.without_entries(graph_of(b), keep)
        oracle = with_gradient(without, name, b.stateful)
        (_, wanted), slopes = oracle(b.params, b.inputs)
        wanted = jg.slice_tree(plan, wanted) if a.stateful else wanted
        low = LOW_PRECISION in name
        assert_near(out, wanted, 1e-2 if low else 1e-5)
        if "Greedy" not in name:
            assert_near(grads, jg.slice_tree(plan, slopes), 1e-1 if low else 1e-4)
    if name in DRIVEN:
        assert_near(out, jax.jit(a.fn)(params, *a.inputs))


@pytest.mark.parametrize("name", NAMES)
def test_with_nothing_removed_it_is_the_same_function(name):
    a, graph, _ = traced(name)
    same, wanted = jax.jit(jg.without_entries(graph, {})), jax.jit(a.fn)
    pairs = (jax.tree.leaves(f(a.params, *a.inputs)) for f in (same, wanted))
    for x, y in zip(*pairs, strict=True):
        np.testing.assert_array_equal(x, y)
