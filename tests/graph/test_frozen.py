"""What jprune cannot follow is frozen, and a note says where and why."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.reasons import reasons

from jprune import graph as jg

HERE = pathlib.Path(__file__).name
RNG = np.random.default_rng(0)

opaque = jax.extend.core.Primitive("jprune_test_opaque")
opaque.def_impl(lambda x: x[..., ::-1])
opaque.def_abstract_eval(lambda x: x)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / 2, jnp.float32)


def cholesky(h):
    gram = jnp.einsum("bi,bj->ij", h, h) + 5 * jnp.eye(h.shape[-1], dtype=h.dtype)
    return h @ jnp.linalg.cholesky(gram)


def callback(h):
    result = jax.ShapeDtypeStruct(h.shape, h.dtype)
    return jax.pure_callback(lambda x: np.asarray(x) * 2, result, h)


@jax.custom_batching.custom_vmap
def batched(h):
    return jnp.sin(h)


batched.def_vmap(lambda size, mapped, h: (jnp.sin(h), mapped[0]))


UNKNOWN = {
    "custom_vmap_call": batched,
    "custom_linear_solve": lambda h: lax.custom_linear_solve(
        lambda v: 2 * v, h, lambda matvec, b: b / 2, symmetric=True
    ),
    "cholesky": cholesky,
    "qr": lambda h: h[:, :1] * jnp.linalg.qr(h)[0][:1, :1] + h,
    "pure_callback": callback,
    "sort": lambda h: jnp.sort(h, axis=-1),
    "top_k": lambda h: lax.top_k(h, h.shape[-1])[0],
    "fft": lambda h: jnp.fft.fft(h).real,
    "jprune_test_opaque": lambda h: opaque.bind(h),
    "argmax": lambda h: h + jnp.argmax(h, -1, keepdims=True).astype(h.dtype),
    "rev": lambda h: h[:, ::-1],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_axes_that_meet_it_are_frozen(name):
    """The hidden axis before it stays; those before and after shrink."""

    def fn(p, x):
        h = jnp.tanh(x @ p["a"]) @ p["b"]
        return jnp.tanh(UNKNOWN[name](h) @ p["c"]) @ p["d"]

    params = {"a": normal(3, 8), "b": normal(8, 6), "c": normal(6, 10)}
    params["d"] = normal(10, 2)
    x = normal(6, 3)
    graph = jg.trace(fn, params, x)
    assert list(graph.groups) == ["a[1]", "c[1]"]
    notes = [n for n in graph.notes if n.kind == "frozen" and name in n.what]
    assert notes
    assert HERE in notes[0].where
    (why,) = [why for why, names in reasons(graph).items() if "b[1]" in names]
    assert name in why
    assert HERE in why
    plan = jg.make_plan(graph, {"a[1]": [1, 4, 5], "c[1]": [0, 9]})
    small, p = jg.shrink(graph, params, plan)
    assert jax.tree.map(jnp.shape, p) == {
        "a": (3, 3),
        "b": (3, 6),
        "c": (6, 2),
        "d": (2, 2),
    }
    np.testing.assert_allclose(small(p, x), fn(p, x), rtol=1e-5, atol=1e-6)


def test_what_is_computed_in_vain_freezes_nothing():
    def fn(p, x):
        h = x @ p["a"]
        jnp.linalg.eigh(h.T @ h)
        return h @ p["b"]

    graph = jg.trace(fn, {"a": normal(3, 4), "b": normal(4, 2)}, normal(5, 3))
    assert list(graph.groups) == ["a[1]"]
    assert not graph.notes


def test_prints_freeze_nothing(capfd):
    def fn(p, x):
        h = x @ p["a"]
        jax.debug.print("shape {}", h.shape[-1])
        jax.debug.callback(lambda h: print("seen", h.shape), h)
        return h @ p["b"]

    params, x = {"a": normal(3, 4), "b": normal(4, 2)}, normal(5, 3)
    graph = jg.trace(fn, params, x)
    small, p = jg.shrink(graph, params, jg.make_plan(graph, {"a[1]": [0, 2]}))
    np.testing.assert_allclose(jax.jit(small)(p, x), x @ p["a"] @ p["b"], rtol=1e-5)
    jax.effects_barrier()
    assert "seen (5, 2)" in capfd.readouterr().out


def test_inputs_results_and_keys_are_protected():
    def fn(p, x):
        noise = jax.random.normal(p["key"][0], (p["a"].shape[1],))
        h = (x @ p["a"] + noise[None]) * p["count"].astype(x.dtype)
        return h @ p["b"]

    params = {"a": normal(3, 4), "b": normal(4, 2), "count": jnp.array(2)}
    params |= {"key": jax.random.split(jax.random.key(0), 2), "none": normal(0, 3)}
    x = normal(5, 3)
    graph = jg.trace(fn, params, x)
    assert list(graph.groups) == ["a[1]"]
    text = jg.explain(graph)
    for why, name in (("an input", "a[0]"), ("the result ''", "b[1]")):
        assert f"frozen: it is an axis of {why}\n    {name}\n" in text
    assert "    key[0]" in text
    small, p = jg.shrink(graph, params, jg.make_plan(graph, {"a[1]": [0, 2]}))
    assert small(p, x).shape == (5, 2)
    assert p["none"].shape == (0, 3)
    for leaf in ("key", "count"):
        assert p[leaf].dtype == params[leaf].dtype


def test_a_derivative_may_hold_what_never_goes():
    """A single entry is never pruned, so it may be frozen later than its function."""

    @jax.custom_jvp
    def relu(x):
        return jnp.maximum(x, 0.0)

    def gate(x):  # pads: where the row before is far above 0
        return jnp.pad(x[:, 1:], ((0, 0), (1, 0), (0, 0))) > 9

    relu.defjvps(lambda t, out, x: jnp.where(gate(x), jnp.zeros_like(t), t))

    def fn(p, x):
        h = jnp.einsum("nd,dtc->ntc", x, p["a"])
        h = jnp.concatenate([h[:, 1:], h[:, :1]], axis=1)  # two rows, each alone
        return relu(h).sum(1) @ p["b"]

    params, x = {"a": normal(3, 2, 8), "b": normal(8, 2)}, normal(5, 3)
    graph = jg.trace(fn, params, x)
    left = list(range(0, 8, 2))
    small, p = jg.shrink(graph, params, jg.make_plan(graph, {"a[2]": left}))
    found = jax.grad(lambda p: small(p, x).sum())(p)
    expected = jax.grad(lambda p: fn(p, x).sum())(
        {"a": params["a"][:, :, ::2], "b": params["b"][::2]}
    )
    for name in ("a", "b"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "shape", "gone"),
    [
        # 4 and 8 entries are 2 and 4 times 2, which is no 2 x 3 times 2.
        ((4, 8), (2, 3, 2), {"c[3]": (2, 1)}),
        # 6 and 12 are 1 and 2 times 3 times 2: the first axis is a concatenation.
        ((6, 12), (3, 3, 2), {"c[2]": (1, 1), "c[3]": (2, 1), "b[1]": (0, 2)}),
    ],
)
def test_concatenations_that_meet_products(sizes, shape, gone):
    """Entry 1 of each group is removed: of `out`, a slice of one of the axes."""

    def fn(p, x):
        h = jnp.concatenate([x @ p["a"], x @ p["b"]], axis=1)
        h += jnp.einsum("nd,dijk->nijk", x, p["c"]).reshape(h.shape)
        return jnp.tanh(h) @ p["out"].reshape(h.shape[1], -1)

    params = {"a": normal(3, sizes[0]), "b": normal(3, sizes[1])}
    params |= {"c": normal(3, *shape), "out": normal(*shape, 2)}
    x = normal(5, 3)
    graph = jg.trace(fn, params, x)
    assert set(graph.groups) == set(gone)
    keep = {n: np.arange(g.size) != 1 for n, g in graph.groups.items()}
    small, p = jg.shrink(graph, params, keep=keep)
    assert p["b"].size < params["b"].size
    out = np.array(params["out"])
    for axis, entry in gone.values():
        np.moveaxis(out, axis, 0)[entry] = 0
    expected = fn(params | {"out": jnp.asarray(out)}, x)
    np.testing.assert_allclose(small(p, x), expected, rtol=1e-5, atol=1e-6)
    full = jg.without_entries(graph, keep)(params, x)
    np.testing.assert_allclose(full, expected, rtol=1e-5, atol=1e-6)
