"""Every recipe that takes a graph passes the contract: tests/cases.py x one network."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support.cases import SCALES, STRUCTURAL_CASES, StructuralCase

import jprune as jp
from jprune import graph as jg
from jprune import testing
from jprune.testing import _pruners

pytestmark = pytest.mark.others_code
SPARSITY = 0.5


def _name(case: StructuralCase) -> str:
    return f"{case.recipe} {case.note}".strip()


PRUNERS = [case for case in STRUCTURAL_CASES if case.gives == "pruner"]
each_pruner = pytest.mark.parametrize("case", PRUNERS, ids=_name)


def net(params: Any, x: jax.Array) -> jax.Array:
    """A stream of 8 channels that 12 hidden units add to; both have scales."""
    x = x @ params["stem"]["kernel"]
    h = jax.nn.relu(_norm(params["block"]["norm"], x @ params["block"]["up"]["kernel"]))
    x = x + h @ params["block"]["down"]["kernel"]
    return jax.nn.relu(_norm(params["norm"], x)) @ params["head"]["kernel"]


def _norm(params: Any, x: jax.Array) -> jax.Array:
    """Batch normalization by statistics that do not change."""
    x = (x - params["mean"]) * jax.lax.rsqrt(params["var"] + 1e-5)
    return x * params["scale"] + params["bias"]


def net_params(dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731

    def norm(n: int) -> Any:
        found = {"scale": draw(n), "bias": draw(n), "mean": draw(n)}
        return {**found, "var": jnp.exp(draw(n))}

    return {
        "stem": {"kernel": draw(5, 8)},
        "block": {
            "up": {"kernel": draw(8, 12)},
            "norm": norm(12),
            "down": {"kernel": draw(12, 8)},
        },
        "norm": norm(8),
        "head": {"kernel": draw(8, 3)},
    }


X = jnp.asarray(np.random.default_rng(1).normal(size=(16, 5)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(2).normal(size=(16, 3)), jnp.float32)


def _loss(params: Any) -> jax.Array:
    return jnp.mean(jnp.square(net(params, X) - Y))


@pytest.fixture(scope="module")
def example():
    params = net_params()
    return jg.trace(net, params, X), params, jax.grad(_loss)(params)


def _kept(graph: jg.Graph, masks: Any) -> dict[str, Any]:
    """Entries of each group that some weight is kept of in every member; traceable."""
    full = dict.fromkeys(graph.groups)
    for name, group in graph.groups.items():
        found = jnp.ones(group.size, bool)
        for member in group.members:
            mask = _at(masks, member.path)
            others = tuple(i for i in range(mask.ndim) if i != member.axis)
            found &= mask.any(axis=others) if mask.ndim else mask
        full[name] = found
    return full


def _at(tree: Any, path: str) -> Any:
    for key in path.split("/"):
        tree = tree[key]
    return tree


@each_pruner
def test_contract(case: StructuralCase, example):
    graph, params, grads = example
    pruner = case.make(graph, SPARSITY)
    testing.check_pruner(pruner, params, grads, where=jp.is_float)


@each_pruner
def test_kernels_alone_say_what_goes(case: StructuralCase, example):
    graph, params, grads = example
    pruner = case.make(graph, SPARSITY)
    if case.recipe == "network_slimming":
        with pytest.raises(jp.PruningError, match=r"not see the scales .*norm/scale"):
            jp.sparsify(optax.sgd(0.1), pruner).init(params)
        return
    _pruners.check_masks(pruner, params, grads, where=jp.is_kernel)
    pruned, masks = jp.prune(params, pruner, grads)
    keep = jg.kept_by(graph, masks)
    assert sum(int((~m).sum()) for m in keep.values()) == 10
    small_fn, small = jg.shrink(graph, pruned, jg.make_plan(graph, keep))
    assert small["head"]["kernel"].shape[0] == int(keep_size(graph, keep))
    assert small_fn(small, X).shape == (16, 3)


def keep_size(graph: jg.Graph, keep: dict[str, Any]) -> int:
    """How many channels of the stream stay."""
    (name,) = (n for n, g in graph.groups.items() if g.size == 8)
    return keep[name].sum() if name in keep else 8


@pytest.mark.parametrize("case", [PRUNERS[i] for i in (1, 3, 4)], ids=_name)
def test_training_in_bfloat16(case: StructuralCase, example):
    graph, params, grads = example
    params, grads = jax.tree.map(lambda w: w.astype(jnp.bfloat16), (params, grads))
    pruner = case.make(graph, SPARSITY)
    _pruners.check_training(pruner, params, grads, where=jp.is_float)


@each_pruner
def test_one_trace_serves_all_sparsities_with_exact_counts(case, example):
    graph, params, grads = example
    traces = []

    def kept(sparsity):
        traces.append(None)
        pruner = jp.select(case.make(graph, sparsity), jp.is_float)
        masks, _ = pruner.update(grads, pruner.init(params), params)
        return _kept(graph, masks)

    sparsities = np.float32([0.0, 0.2, 0.35, 0.5, 0.7, 0.9])
    found = jax.jit(jax.vmap(kept))(sparsities)
    assert len(traces) == 1
    counts = sum(each.sum(axis=1) for each in found.values())
    np.testing.assert_array_equal(counts, 20 - np.round(20 * sparsities))
    assert min(int(each.sum(axis=1).min()) for each in found.values()) >= 1
    for i in (1, 3):
        alone = kept(float(sparsities[i]))
        for name, each in found.items():
            np.testing.assert_array_equal(each[i], alone[name])


@each_pruner
def test_schedules_may_be_traced(case, example):
    graph, params, grads = example

    def masks(sparsity, step):
        schedule = jp.cubic(sparsity, begin=0, steps=10)
        pruner = jp.select(case.make(graph, schedule), jp.is_float)
        return pruner.update(grads, pruner.init(params), params, step=step)[0]

    late = jax.jit(masks)(jnp.float32(SPARSITY), jnp.int32(10))
    early = jax.jit(masks)(jnp.float32(SPARSITY), jnp.int32(0))
    expected = jp.prune(params, case.make(graph, SPARSITY), grads, where=jp.is_float)[1]
    for a, b in zip(jax.tree.leaves(late), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(map(np.all, jax.tree.leaves(early)))


@each_pruner
def test_gradual_masks_end_on_whole_entries_and_are_cut_off(case, example):
    graph, params, _ = example
    schedule = jp.cubic(SPARSITY, begin=0, steps=20)
    tx = jp.sparsify(
        optax.adamw(1e-2), case.make(graph, schedule), every=5, where=jp.is_float
    )

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(_loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (trained, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=30)
    keep = jg.kept_by(graph, jp.masks_of(state))
    assert sum(g.size for g in graph.groups.values()) == 20
    assert sum(int((~m).sum()) for m in keep.values()) == 10
    assert all(m.any() for m in keep.values())
    for name, mask in keep.items():
        for member in graph.groups[name].members:
            entries = np.asarray(_at(trained, member.path))
            gone = np.take(entries, np.flatnonzero(~mask), member.axis)
            assert not gone.any(), member
    # The zeros say the same as the masks.
    zeros = jax.tree.map(lambda w: w != 0, trained)
    for name, mask in jg.kept_by(graph, zeros).items():
        np.testing.assert_array_equal(mask, keep[name])
    small_fn, small = jg.shrink(graph, trained, jg.make_plan(graph, keep))
    np.testing.assert_allclose(
        small_fn(small, X), net(trained, X), rtol=1e-4, atol=1e-5
    )
    left = small["stem"]["kernel"].shape[1] + small["block"]["up"]["kernel"].shape[1]
    assert left == 10


@pytest.mark.parametrize(
    "case", [c for c in STRUCTURAL_CASES if c.gives != "pruner"], ids=_name
)
def test_what_is_no_pruner(case: StructuralCase, example):
    graph, params, grads = example
    found = case.make(graph, SPARSITY)
    if case.gives == "sizes":
        plan = jg.make_plan(graph, jg.first_entries(graph, found))
        small_fn, small = jg.shrink(graph, params, plan)
        assert set(found) == set(graph.groups)
        assert all(isinstance(size, int) for size in found.values())
        shapes = jax.eval_shape(small_fn, small, X)
        assert shapes.shape == (16, 3)
        assert sum(w.size for w in jax.tree.leaves(small)) < 0.75 * sum(
            w.size for w in jax.tree.leaves(params)
        )
    elif case.gives == "branches":
        fn, rest = jg.without_branches(graph, params, found)
        assert jax.jit(fn)(rest, X).shape == (16, 3)
    else:
        tx = optax.chain(found, optax.sgd(0.1))
        state = jax.eval_shape(tx.init, params)
        after = jax.eval_shape(tx.update, grads, state, params)[1]
        assert jax.tree.structure(after) == jax.tree.structure(state)
        pulled, _ = jax.jit(found.update)(grads, found.init(params), params)
        moved = jax.tree.map(lambda a, b: int(jnp.sum(a != b)), pulled, grads)
        assert moved["norm"]["scale"] == 4
        assert moved["block"]["norm"]["scale"] == 6
        assert sum(jax.tree.leaves(moved)) == 10


# The same two layers in four frameworks; a linear layer's kernel is transposed in
# Equinox, and the order of leaves is another.


def _weights():
    params = net_params()
    return {
        "up": {"kernel": params["block"]["up"]["kernel"], "bias": jnp.arange(12.0) / 9},
        "norm": {"scale": params["block"]["norm"]["scale"]},
        "out": {"kernel": params["block"]["down"]["kernel"]},
    }


Z = jnp.asarray(np.random.default_rng(3).normal(size=(16, 8)), jnp.float32)


def _dict_zeros(make):
    def fn(params, x):
        h = x @ params["up"]["kernel"] + params["up"]["bias"]
        return jax.nn.relu(h * params["norm"]["scale"]) @ params["out"]["kernel"]

    found = _pruned(make, fn, _weights())
    return found["up"]["kernel"], found["out"]["kernel"]


def _pruned(make, fn, params):
    graph = jg.trace(fn, params, Z)
    grads = jax.grad(lambda p: jnp.mean(jnp.square(fn(p, Z) - 1)))(params)
    return jp.prune(params, make(graph), grads, where=jp.is_float)[0]


def _linen_zeros(make):
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("scale", nn.initializers.ones, (12,))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(Norm(name="norm")(nn.Dense(12, name="up")(x)))
            return nn.Dense(8, use_bias=False, name="out")(x)

    fn = lambda params, x: Net().apply({"params": params}, x)  # noqa: E731
    found = _pruned(make, fn, _weights())
    return found["up"]["kernel"], found["out"]["kernel"]


def _nnx_zeros(make):
    class Norm(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(_weights()["norm"]["scale"])

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(8, 12, rngs=rngs)
            self.norm = Norm()
            self.out = nnx.Linear(12, 8, use_bias=False, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.up(x) * self.norm.scale[...]))

    net = Net(nnx.Rngs(0))
    net.up.kernel[...] = _weights()["up"]["kernel"]
    net.up.bias[...] = _weights()["up"]["bias"]
    net.out.kernel[...] = _weights()["out"]["kernel"]
    graphdef, params = nnx.split(net)
    fn = lambda params, x: nnx.merge(graphdef, params)(x)  # noqa: E731
    found = nnx.merge(graphdef, _pruned(make, fn, params))
    return found.up.kernel[...], found.out.kernel[...]


def _equinox_zeros(make):
    class Norm(eqx.Module):
        scale: jax.Array

    class Net(eqx.Module):
        up: eqx.nn.Linear
        norm: Norm
        out: eqx.nn.Linear

        def __call__(self, x):
            return self.out(jax.nn.relu(self.up(x) * self.norm.scale))

    keys, weights = jax.random.split(jax.random.key(0)), _weights()
    net = Net(
        eqx.nn.Linear(8, 12, key=keys[0]),
        Norm(weights["norm"]["scale"]),
        eqx.nn.Linear(12, 8, use_bias=False, key=keys[1]),
    )
    net = eqx.tree_at(
        lambda m: (m.up.weight, m.up.bias, m.out.weight),
        net,
        (weights["up"]["kernel"].T, weights["up"]["bias"], weights["out"]["kernel"].T),
    )
    params, static = eqx.partition(net, eqx.is_inexact_array)
    fn = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
    found = _pruned(make, fn, params)
    return found.up.weight.T, found.out.weight.T


@each_pruner
def test_four_frameworks_give_the_same(case: StructuralCase):
    make = lambda graph: case.make(graph, SPARSITY)  # noqa: E731
    reference = _dict_zeros(make)
    assert int((reference[0] == 0).all(axis=0).sum()) == 6
    assert int((reference[1] == 0).all(axis=1).sum()) == 6
    for zeros in (_linen_zeros, _nnx_zeros, _equinox_zeros):
        for a, b in zip(reference, zeros(make), strict=True):
            np.testing.assert_array_equal(a == 0, b == 0)


def test_scales_are_those_of_both_groups(example):
    graph, _, _ = example
    with_scale = [
        name
        for name, group in graph.groups.items()
        if any(SCALES(m.path, jnp.ones(1)) for m in group.members)
    ]
    assert len(with_scale) == len(graph.groups) == 2
