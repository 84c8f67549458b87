"""Eight devices: the masks of one device, and only scalars exchanged."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import oracles
from support.oracles import flat, values_of

from jprune import selection

KINDS = [AxisType.Auto, AxisType.Explicit]
SHAPES = {
    "a": (64, 32),
    "b": (16, 64, 6),
    "c": (33,),
    "d": (8, 40),
    "e": (24, 3),
    "f": (),
}
SPECS = {
    "a": P("x", None),
    "b": P(None, "y"),
    "c": P(),
    "d": P(("y", "x")),
    "e": P("y"),
    "f": P(),
}
FLOORS = {"a": 70, "b": 0, "c": 30, "d": 320, "e": 5, "f": 0}
COSTS = {"a": 3, "b": 1, "c": 2, "d": 7, "e": 1, "f": 5}


def _mesh(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)


def _host(seed=0):
    """Few values, so that the search of the ties crosses devices too."""
    rng = np.random.default_rng(seed)
    return {k: rng.integers(0, 5, s).astype("f4") for k, s in SHAPES.items()}


def _place(host, mesh, specs):
    return {
        k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in host.items()
    }


def _two(scores, k, **more):
    """Of the four that share their parts the two that between them use all."""
    return {
        "leaf": selection.top_k_per_leaf(scores, FLOORS, **more),
        "budget": selection.top_within_budget(scores, COSTS, k, floors=FLOORS, **more),
    }


def _all(scores, k, **more):
    return {
        "global": selection.top_k(scores, k, **more),
        "leaf": selection.top_k_per_leaf(scores, FLOORS, **more),
        "floors": selection.top_k_with_floors(scores, k, FLOORS, **more),
        "budget": selection.top_within_budget(scores, COSTS, k, floors=FLOORS, **more),
    }


def _check(found, host, k):
    n = values_of(host).size
    expected = {
        "global": oracles.top_k(values_of(host), k),
        "leaf": oracles.per_leaf(host, FLOORS),
        "floors": oracles.with_floors(host, min(k, n), FLOORS),
        "budget": oracles.within_budget(host, COSTS, k, FLOORS)[0],
    }
    for name, masks in found.items():
        np.testing.assert_array_equal(flat(masks), expected[name], err_msg=name)


def _assert_placed_like(found, scores):
    for masks in found.values():
        for key, x in scores.items():
            assert masks[key].sharding.is_equivalent_to(x.sharding, x.ndim), key


@pytest.mark.parametrize("kind", KINDS)
def test_the_masks_are_those_of_one_device(kind):
    mesh, host = _mesh(kind), _host()
    scores = _place(host, mesh, SPECS)
    n = values_of(host).size
    for k in (n // 3, n, 0):
        found = _all(scores, k) if k == n // 3 else _two(scores, k)
        _check(found, host, k)
        _assert_placed_like(found, scores)
    counts = selection.count_top_k(scores, n // 3)
    one = selection.count_top_k(host, n // 3)
    assert jax.tree.map(int, counts) == jax.tree.map(int, one)


@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit]
)
def test_in_a_jitted_function_that_donates_what_it_reads(kind):
    mesh, host = _mesh(kind), _host(1)
    k = values_of(host).size // 2
    # As many bytes out as in: the donated buffers can serve the result.
    donated = jax.jit(
        lambda s, k: (jax.tree.map(lambda x: x + 1, s), _two(s, k)), donate_argnums=0
    )
    scores = _place(host, mesh, SPECS)
    _, found = donated(scores, np.int32(k))
    assert scores["a"].is_deleted()
    _check(found, host, k)
    if kind == AxisType.Explicit:  # the others' are XLA's choice
        _assert_placed_like(found, _place(host, mesh, SPECS))


@pytest.mark.parametrize("check", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_inside_shard_map(check):
    mesh, host = _mesh(), _host(2)
    scores = _place(host, mesh, SPECS)
    k = values_of(host).size // 3

    def count(scores, k):
        return selection.count_top_k(scores, k, specs=SPECS)

    selected = jax.shard_map(
        lambda s, k: {**_two(s, k, specs=SPECS), "counts": count(s, k)},
        mesh=mesh,
        in_specs=(SPECS, P()),
        out_specs={"leaf": SPECS, "budget": SPECS, "counts": P()},
        check_vma=check,
    )
    found = jax.jit(selected)(scores, jnp.int32(k))
    counts = jax.tree.map(int, found.pop("counts"))
    _check(found, host, k)
    _assert_placed_like(found, scores)
    assert counts == jax.tree.map(int, selection.count_top_k(host, k))


COLLECTIVES = "all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce"
BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "s16": 16, "u16": 16}


def _collectives(program):
    """Of each collective in a program its name, entries and bytes."""
    found = []
    pattern = rf"= (.*?) (?:ragged-)?({COLLECTIVES})(?:-start)?\("
    for shapes, name in re.findall(pattern, program):
        size = moved = 0
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            entries = int(np.prod([int(d) for d in dims.split(",") if d]))
            size, moved = size + entries, moved + entries * BITS.get(dtype, 32) // 8
        found.append((name, size, moved))
    return found


@pytest.mark.optimized
def test_collectives_are_found():
    sharding = NamedSharding(_mesh(), P("x"))
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=sharding)
    text = jax.jit(lambda x: jnp.sort(x, axis=0)).lower(x).compile().as_text()
    assert any(size > 64 and moved == 4 * size for _, size, moved in _collectives(text))


@pytest.mark.optimized
@pytest.mark.parametrize(
    "kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)]
)
def test_what_is_exchanged_does_not_grow_with_the_weights(kind):
    mesh = _mesh(kind)
    specs = {"a": P("x", None), "b": P(None, ("x", "y")), "c": P("y", "x"), "d": P()}

    def exchanged(select, scale):
        shapes = {"a": (1024, 256), "b": (512, 512), "c": (512, 512), "d": (1024, 256)}
        scores = {
            key: jax.ShapeDtypeStruct(
                (scale * shape[0], shape[1]),
                jnp.bfloat16 if key == "c" else jnp.float32,
                sharding=NamedSharding(mesh, specs[key]),
            )
            for key, shape in shapes.items()
        }
        program = jax.jit(select).lower(scores, np.int32(5)).compile().as_text()
        return _collectives(program)

    floors, costs = {"a": 9, "b": 0, "c": 7, "d": 1}, {"a": 3, "b": 1, "c": 2, "d": 5}
    for select in (
        selection.top_k,
        lambda s, k: (
            selection.top_k_per_leaf(s, {**floors, "a": k}),
            selection.top_within_budget(s, costs, k, floors=floors),
        ),
    ):
        small, large = exchanged(select, 1), exchanged(select, 16)
        assert sum(n for *_, n in small) == sum(n for *_, n in large) > 0
        for name, size, _ in large:
            assert size <= 64, (name, size)
