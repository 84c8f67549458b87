"""What devices flush to zero, against float64, which holds all of it."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import experimental

from jprune._core import ordering, precision

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64
EDGES = [0, 1e-45, 1e-44, 1e-40, 1.17549435e-38, 1e-30, 1, 3.4028235e38, np.inf]


def _floats(seed):
    """Of all bit patterns, of subnormal ones, and of those that a product makes so."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, 3_000, np.uint32)
    small = rng.integers(0, 2**25, 2_000, np.uint32)
    signs = rng.choice(np.uint32([0, 2**31]), 2_000)
    close = np.float32(10.0 ** rng.uniform(-38, -30, 1_000))
    edges = np.float32(EDGES)
    x = np.concatenate([bits.view("f4"), (small | signs).view("f4"), close])
    x = x[(x.view(np.uint32) & 0x7FFFFFFF) <= 0x7F800000]  # no NaN
    return np.concatenate([x, edges, -edges])


@pytest.mark.parametrize("cost", [1, 3, 1000, 65_535, 65_536])
def test_products_are_ordered_as_if_exponents_had_no_end(cost):
    x, rate = _floats(cost), 1 / np.float32(cost)
    keys = np.asarray(jax.jit(ordering.ordered_products)(x, rate)).astype(np.int64)
    # 24 bits of the product, and its exponent by itself.
    (m, e), (mr, er) = np.frexp(x.astype(np.float64)), np.frexp(np.float64(rate))
    exact = np.ldexp(np.float32(m * mr).astype(np.float64), e + er)
    tiny = (exact < 0) & (exact > -(2.0**-87))
    exact = np.where(tiny, -(2.0**-87), exact)
    order = np.argsort(exact, kind="stable")
    steps = np.sign(np.diff(exact[order]))
    steps[np.isnan(steps)] = 0  # two infinities
    np.testing.assert_array_equal(np.sign(np.diff(keys[order])), steps)
    nan = ordering.ordered_products(jnp.float32([np.nan, -np.nan]), jnp.float32(rate))
    most = ordering.greatest_number(np.dtype(np.float32))
    assert keys.max() == most < int(nan[0]) == int(nan[1])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_scaling_is_exact_and_undone_by_its_powers(dtype):
    info = np.finfo(dtype)
    sizes = [info.max / 4, info.tiny, info.tiny * info.eps * 64, 1e-30, 1.0]
    rng = np.random.default_rng(0)
    with enable_x64(True) if dtype == "f8" else contextlib.nullcontext():
        for size in sizes:
            x = (rng.normal(size=(3, 4)).clip(-3, 3) * size).astype(dtype)
            x[1] = 0
            for axis in (None, 1, (0, 1)):
                y, power = jax.jit(precision.scaled, static_argnums=1)(x, axis)
                # In integers and powers of two: float64 has no larger type.
                (m, e), (my, ey) = np.frexp(x), np.frexp(np.asarray(y))
                np.testing.assert_array_equal(m, my)
                by = np.frexp(np.asarray(power))[1] - 1
                np.testing.assert_array_equal(e[m != 0], (ey + by)[m != 0])
                squares = np.square(np.asarray(y).astype(np.longdouble))
                some = squares[squares > 0]
                assert some.min() >= info.tiny
                assert some.max() < info.max / 2.0**40


def test_wide_types():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint32, jnp.bool_):
        assert precision.wide(jnp.ones(2, dtype)).dtype == jnp.float32
    x = jnp.ones(2)
    assert precision.wide(x) is x
