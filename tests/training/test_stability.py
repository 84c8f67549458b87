"""Distances, angles and barriers, against float64 and by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune as jp
from jprune.training import angle, interpolation_barrier, l2_distance


def _tree(seed, dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (7, 5), "b": (3,), "c": ()}
    return {
        k: jnp.asarray(scale * rng.normal(size=s), dtype) for k, s in shapes.items()
    }


def _masks(seed=9):
    rng = np.random.default_rng(seed)
    return {
        "a": jnp.asarray(rng.random((1, 5)) < 0.6),
        "b": jnp.asarray(rng.random(3) < 0.6),
        "c": jnp.asarray(True),
    }


def _flat(params, masks=None):
    kept = jax.tree.map(np.ones_like, params) if masks is None else masks
    return np.concatenate(
        [
            np.ravel(np.asarray(w, np.float64) * np.asarray(m))
            for w, m in zip(*map(jax.tree.leaves, (params, kept)), strict=True)
        ]
    )


def _angle(x, y):
    return np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("masks", [None, _masks()])
def test_distance_and_angle_are_those_of_float64(dtype, masks):
    a, b = _tree(0, dtype), _tree(1, dtype)
    x, y = _flat(a, masks), _flat(b, masks)
    np.testing.assert_allclose(
        l2_distance(a, b, masks), np.linalg.norm(x - y), rtol=1e-6
    )
    np.testing.assert_allclose(angle(a, b, masks), _angle(x, y), rtol=1e-6)
    assert l2_distance(a, b, masks).dtype == angle(a, b, masks).dtype == jnp.float32


def test_a_tree_is_at_no_distance_and_angle_from_itself():
    a = _tree(0)
    assert float(l2_distance(a, a)) == float(angle(a, a)) == 0


@pytest.mark.parametrize(
    ("scale", "expected"), [(4.0, 0), (3.7, 0), (1e-12, 0), (1e12, 0), (-2.0, np.pi)]
)
def test_an_angle_does_not_see_lengths(scale, expected):
    a = _tree(0)
    b = jax.tree.map(lambda w: jnp.float32(scale) * w, a)
    np.testing.assert_allclose(angle(a, b), expected, atol=2e-7)


def test_orthogonal_trees_are_at_90_degrees():
    a = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([0.0, 1.0])}
    b = {"a": jnp.asarray([0.0, 5.0]), "b": jnp.asarray([2.0, 0.0])}
    assert float(jnp.degrees(angle(a, b))) == pytest.approx(90, abs=1e-5)


@pytest.mark.parametrize("small", [1e-2, 1e-4, 1e-6])
def test_small_angles_are_seen(small):
    """In float32 the cosine of 1e-4 is 1, and its arccosine 0."""
    a = {"w": jnp.asarray([1.0, 0.0])}
    b = {"w": jnp.asarray([np.cos(small), np.sin(small)], jnp.float32)}
    np.testing.assert_allclose(angle(a, b), small, rtol=1e-5)


def test_the_angle_of_nothing_is_not_a_number():
    a = _tree(0)
    assert np.isnan(angle(a, jax.tree.map(jnp.zeros_like, a)))


def test_what_is_masked_does_not_count_even_if_it_is_not_finite():
    a = {"w": jnp.asarray([3.0, jnp.nan, jnp.inf])}
    b = {"w": jnp.asarray([1.0, 0.0, 1.0])}
    masks = {"w": jnp.asarray([True, False, False])}
    assert float(l2_distance(a, b, masks)) == 2
    assert float(angle(a, b, masks)) == 0


def test_masks_of_another_shape_are_refused():
    with pytest.raises(jp.PruningError, match="'b'"):
        l2_distance(_tree(0), _tree(1), {**_masks(), "b": jnp.ones(2, bool)})


def _square(params):
    return sum(jnp.sum(jnp.square(w)) for w in jax.tree.leaves(params))


def test_the_barrier_of_a_bowl_is_zero_and_of_a_hill_a_quarter_of_the_distance():
    """-|x|^2 is above its chord by alpha (1 - alpha) |a - b|^2: at most a quarter."""
    a, b = _tree(0), _tree(1)
    assert float(interpolation_barrier(_square, a, b)) == 0
    hill = interpolation_barrier(lambda p: -_square(p), a, b)
    x, y = _flat(a), _flat(b)
    np.testing.assert_allclose(hill, np.sum((x - y) ** 2) / 4, rtol=1e-5)
    # With four points the middle is missed: alpha is 1/3.
    four = interpolation_barrier(lambda p: -_square(p), a, b, points=4)
    np.testing.assert_allclose(four, 2 / 9 * np.sum((x - y) ** 2), rtol=1e-5)


def test_the_barrier_is_above_the_chord_not_above_the_mean():
    a, b = {"w": jnp.float32(0)}, {"w": jnp.float32(3)}
    slope = interpolation_barrier(lambda p: 2 * p["w"], a, b)
    assert float(slope) == pytest.approx(0, abs=1e-6)

    def bump(p):  # chord 2 w, and 1 at the middle, alpha = 1/2, above it
        return 2 * p["w"] + 1 - jnp.abs(p["w"] - 1.5) / 1.5

    assert float(interpolation_barrier(bump, a, b)) == pytest.approx(1)


def test_there_is_no_barrier_between_a_tree_and_itself():
    a = _tree(0)
    assert float(interpolation_barrier(lambda p: jnp.sin(50 * _square(p)), a, a)) == 0


def test_ends_are_the_trees_to_the_bit_and_integers_stay():
    a = {"w": jnp.asarray([0.1, 0.3], jnp.bfloat16), "n": jnp.asarray(3)}
    b = {"w": jnp.asarray([0.7, -0.9], jnp.bfloat16), "n": jnp.asarray(5)}

    def inside(p):  # 0 at both ends, 1 elsewhere
        assert p["w"].dtype == jnp.bfloat16
        at = [jnp.all(p["w"] == end["w"]) for end in (a, b)]
        return jnp.where(at[0] | at[1], 0.0, 1.0) + 0.0 * p["n"].astype(jnp.float32)

    assert float(interpolation_barrier(inside, a, b, points=2)) == 0
    assert float(interpolation_barrier(inside, a, b)) == 1
    kept = interpolation_barrier(lambda p: p["n"].astype(jnp.float32), a, b)
    assert float(kept) == 0


def test_all_of_it_is_traced_once_and_batched():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def measure(a, b, masks):
        barrier = interpolation_barrier(lambda p: -_square(p), a, b)
        return l2_distance(a, b, masks), angle(a, b, masks), barrier

    pairs = [(_tree(i), _tree(i + 10), _masks(i)) for i in range(3)]
    alone = [measure(*pair) for pair in pairs]
    chex.clear_trace_counter()
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *pairs)
    found = jax.vmap(measure.__wrapped__)(*stacked)
    for i, one in enumerate(alone):
        np.testing.assert_allclose([x[i] for x in found], one, rtol=1e-5)
    chex.clear_trace_counter()


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_line_needs_two_points(points):
    with pytest.raises(jp.PruningError, match=f"got {points}"):
        interpolation_barrier(_square, _tree(0), _tree(1), points=points)
