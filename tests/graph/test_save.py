"""A shrunk model saved and restored: function, arrays and plan, and what is refused."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support import damage, restored_worker
from support.exact import assert_same, files_of

import jprune as jp
from jprune import graph as jg
from jprune.checkpoint import CheckpointError

nnx = pytest.importorskip("flax.nnx")

pytestmark = pytest.mark.others_code

RNG = np.random.default_rng(0)


def normal(*shape, dtype=jnp.bfloat16):
    return jnp.asarray(RNG.normal(size=shape) / 2, dtype)


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def decoder(params, tokens, key):
    """A layer in bfloat16 that returns a running mean, and drops with a key."""
    x = params["embed"][tokens]
    q, k, v = (x @ w for w in params["attend"][0])
    logits = jnp.einsum("btd,bsd->bts", q, k)
    t = tokens.shape[1]
    logits = jnp.where(jnp.tril(jnp.ones((t, t), bool)), logits, -1e9)
    x = x + jnp.einsum("bts,bsd->btd", jax.nn.softmax(logits), v)
    hidden = jax.nn.gelu(x @ params["up"][0])
    kept = jax.random.bernoulli(key, 0.5, (tokens.shape[0], 1, 1))
    logits = jnp.where(kept, hidden, 0) @ params["down"]
    mean = 0.9 * params["mean"] + 0.1 * hidden.mean((0, 1))
    return {"logits": logits, "new": (mean, None)}


def decoder_small():
    attend = [tuple(normal(6, 6) for _ in "qkv"), None]
    params = {"embed": normal(10, 6), "attend": attend, "down": normal(16, 10)}
    params |= {"up": {0: normal(6, 16)}, "mean": normal(16)}
    inputs = restored_worker.draw((2, 5))
    returned = {"shrinking": lambda path, leaf: path == "new/0"}
    small = jg.compress(decoder, params, *inputs, multiple_of=1, **returned)
    b, t = export.symbolic_shape("b, t")
    return small, (struct(b, t, dtype=jnp.int32), inputs[1])


def test_another_process_computes_the_same_values_and_gradients(tmp_path):
    """At three sizes; here, the model's own code runs on the small arrays."""
    small, inputs = decoder_small()
    assert small.cost_after < small.cost_before
    path = jg.save(tmp_path / "decoder", small, *inputs)
    subprocess.run([sys.executable, restored_worker.__file__, str(path)], check=True)
    for sizes in restored_worker.SIZES:
        inputs = restored_worker.draw(sizes)
        expected = restored_worker.measure(decoder, small.params, inputs)
        found = np.load(tmp_path / f"{sizes[0]}.npz")
        assert set(found.files) == set(expected)
        assert len(expected) == 7 + 2  # gradients and results
        for name, x in expected.items():
            scale = 0.01 * max(1, np.abs(x).max())  # bfloat16
            np.testing.assert_allclose(found[name], x, atol=scale, err_msg=name)


class Net(nnx.Module):
    """State is changed in place, and dropout draws from the module's own key."""

    def __init__(self, rngs):
        self.up = nnx.Linear(3, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(nnx.relu(self.norm(self.up(x)))))


def test_state_that_changes_in_place_is_returned(tmp_path):
    """Values, gradients, statistics and counts are those of the small module."""
    x = normal(4, 3, dtype=jnp.float32)
    small = jg.compress(lambda net, x: net(x), Net(nnx.Rngs(0)), x)
    (b,) = export.symbolic_shape("b")
    saved = jg.restore(jg.save(tmp_path / "m", small, struct(b, 3)))
    state = {"drop/rngs/count", "norm/mean", "norm/var"}
    assert set(about(tmp_path / "m")["state"]) == state

    def loss(params):
        results, params = saved.fn(params, x)
        return jnp.square(results).sum(), (results, params)

    @nnx.jit
    def expected(net):
        loss = lambda net: jnp.square(small.fn(net, x)).sum()  # noqa: E731
        return nnx.value_and_grad(loss)(net)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True))
    params, every = saved.params, []
    for _ in range(2):
        (value, (results, params)), grads = step(params)
        wanted, wanted_grads = expected(small.params)
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        for path, w in jp.tree.by_path(wanted_grads).items():
            np.testing.assert_allclose(jp.tree.by_path(grads)[path], w, atol=1e-5)
        for path in state:
            found, w = (jp.tree.by_path(p)[path] for p in (params, small.params))
            np.testing.assert_allclose(found, w, rtol=1e-6)
        every.append(results)
    assert (every[0] != every[1]).any()  # dropout drew anew
    back = jg.restore(tmp_path / "m", like=small.params).params
    assert type(back) is Net
    assert back.drop.rngs.count[...] == 0


def test_params_and_plan_come_back_to_the_bit(tmp_path):
    """A dict with a number as a key has a string; `like` gives the old structure."""
    small, inputs = decoder_small()
    saved = jg.restore(jg.save(tmp_path / "m", small, *inputs))
    assert jg.dumps(saved.plan) == jg.dumps(small.plan)
    assert_same(saved.params, small.params | {"up": {"0": small.params["up"][0]}})
    assert jp.tree.leaf_paths(saved.params) == jp.tree.leaf_paths(small.params)
    again = jg.restore(tmp_path / "m", like=small.params)
    assert_same(again.params, small.params)
    x, key = restored_worker.draw((2, 3))
    found = saved.fn(saved.params, x, key)
    assert found["new"][0].shape == small.params["mean"].shape
    assert_same(found, saved.fn(small.params, x, key))  # in either structure


# ---- what can be exported ----


def linear(fn=lambda y: y):
    """A model of one product, and what becomes of it."""
    params = {"w": normal(3, 3, dtype=jnp.float32)}
    return jg.Saved(lambda p, x: fn(x @ p["w"]), params, {"w": {}})


def about(path):
    return json.loads((path / "manifest.json").read_text())["function"]


def test_platforms_are_those_for_which_the_function_lowers(tmp_path):
    small = linear(lambda y: jax.scipy.linalg.schur(y)[0])  # of CPUs only
    path = jg.save(tmp_path / "schur", small, struct(3, 3))
    assert about(path)["platforms"] == ["cpu"]
    assert set(about(path)["left_out"]) == {"cuda", "tpu", "gradient"}
    np.testing.assert_allclose(
        jg.restore(path).fn(small.params, jnp.eye(3)),
        small.fn(small.params, jnp.eye(3)),
        atol=1e-6,
    )
    with pytest.raises(jp.PruningError, match=r"for tpu: .*platforms="):
        jg.save(tmp_path / "tpu", small, struct(3, 3), platforms=["tpu"])
    path = jg.save(tmp_path / "all", linear(), struct(2, 3))
    assert about(path)["platforms"] == ["cpu", "cuda", "tpu"]
    assert about(path)["left_out"] == {}
    assert about(path)["inputs"] == ["float32[2, 3]"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all", "schur"]


def test_what_no_platform_can_run_elsewhere_is_refused(tmp_path):
    def called_back(y):
        return jax.pure_callback(lambda y: y, y, y)

    with pytest.raises(jp.PruningError, match=r"cannot be exported for cpu, cuda, tpu"):
        jg.save(tmp_path / "m", linear(called_back), struct(2, 3))
    assert not list(tmp_path.iterdir())


def test_types_that_files_lack_and_empty_arrays_come_back(tmp_path):
    """Also a tree that is one number, and arrays of several devices."""
    mesh = jax.make_mesh((8,), ("d",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    params = [
        jnp.ones((0, 3)),
        jnp.arange(3).astype(jnp.float8_e4m3fn),
        jnp.arange(3).astype(jnp.int4),
        jnp.arange(3) * (1 + 2j),
        jax.random.key(3, impl="rbg"),
        jax.device_put(jnp.arange(8.0), rows),
    ]
    small = jg.Saved(lambda p, x: x + p[-1].sum(), params, {})
    saved = jg.restore(jg.save(tmp_path / "m", small, 1.0))
    assert_same(saved.params, params)
    assert saved.fn(saved.params, 1.0) == 29
    assert jg.restore(tmp_path / "m", like=params).params[-1].sharding == rows
    one = jg.Saved(lambda p, x: p * x, jnp.float32(2), {"": {}})
    saved = jg.restore(jg.save(tmp_path / "one", one, 1.0))
    assert saved.fn(saved.params, 3.0) == 6


def test_a_function_without_a_gradient_is_saved_without(tmp_path):
    def double(y):
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: 2 * y, y)

    small, x = linear(double), jnp.ones((2, 3))
    small = small._replace(params={"w": jnp.ones((3, 3))})
    saved = jg.restore(jg.save(tmp_path / "m", small, x))
    assert about(tmp_path / "m")["vjp_order"] == 0
    assert_same(saved.fn(saved.params, x), 3 * jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="VJP"):
        jax.grad(lambda p: saved.fn(p, x).sum())(saved.params)
    with pytest.raises(jp.PruningError, match=r"vjp_order=1.*vjp_order=0 saves"):
        jg.save(tmp_path / "other", small, x, vjp_order=1)


def test_second_derivatives_are_saved_where_they_are_asked_for(tmp_path):
    """d2/dw2 of w^3 is 6 w; the model is saved once more as it was restored."""
    small = jg.Saved(lambda p, x: x * p["w"] ** 3, {"w": jnp.float32(2)}, {"w": {}})
    saved = jg.restore(jg.save(tmp_path / "m", small, jnp.float32(1), vjp_order=2))
    saved = jg.restore(jg.save(tmp_path / "again", saved, jnp.float32(1), vjp_order=2))
    second = jax.grad(jax.grad(lambda w: saved.fn({"w": w}, jnp.float32(1))))
    assert second(jnp.float32(2)) == 12


def test_state_that_lies_in_an_input_is_named(tmp_path):
    small = jg.Saved(lambda p, m, x: m(x) * p, jnp.float32(1), {"": {}})
    with pytest.raises(jp.PruningError, match=r"0/norm/mean.*part of the params"):
        jg.save(tmp_path / "m", small, Net(nnx.Rngs(0)), struct(4, 3))
    assert not list(tmp_path.iterdir())


# ---- what is refused ----


def refuses(match, call, *args, **kwargs):
    with pytest.raises(CheckpointError, match=match):
        call(*args, **kwargs)


def test_nothing_is_written_over_and_nothing_is_left_behind(tmp_path):
    small, x = linear(), jnp.ones((2, 3))
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "long"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    jg.save(tmp_path / "model", small, x)
    jg.save(tmp_path / "long" / ("m" * 255), small, x)
    before = files_of(tmp_path)
    for name in ("file", "folder", "link", "model"):
        refuses(f"cannot save .*{name}: it exists", jg.save, tmp_path / name, small, x)
    refuses("No such file", jg.save, tmp_path / "none" / "m", small, x)
    refuses("too long", jg.save, tmp_path / ("m" * 256), small, x)
    refuses("is a URL", jg.save, "gs://bucket/m", small, x)
    gone = linear()
    gone.params["w"].delete()
    refuses("leaf 'w': .*deleted", jg.save, tmp_path / "m", gone, x)
    reserved = jg.Saved(lambda p, x: x, {"__metadata__": x}, {})
    refuses("leaf '__metadata__': .*rename", jg.save, tmp_path / "m", reserved, x)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", ["function.stablehlo", "arrays.safetensors"])
def test_a_damaged_or_foreign_file_is_named(name, tmp_path):
    path = jg.save(tmp_path / "m", linear(), jnp.ones((2, 3)))
    whole = (path / name).read_bytes()
    damage.flip(path / name, 8 * (len(whole) // 2))
    refuses(f"cannot restore {path}: its file {name} does not match", jg.restore, path)
    (path / name).unlink()
    refuses(f"its file {name} is missing", jg.restore, path)
    (path / name).write_bytes(whole)
    (path / "notes.txt").touch()
    refuses("notes.txt.*foreign", jg.restore, path)
    (path / "notes.txt").unlink()
    (path / name).write_bytes(b"another one")
    damage.seal(path, lambda manifest: None)
    refuses(r"function.stablehlo, of JAX|SafetensorError", jg.restore, path)


def test_what_save_did_not_make_is_refused(tmp_path):
    refuses("has no manifest", jg.restore, tmp_path)
    path = jp.checkpoint.save(tmp_path, 1, {"w": jnp.ones(3)})
    refuses("a jprune checkpoint, and no model", jg.restore, path)


def test_params_of_another_structure_shape_or_type_are_refused(tmp_path):
    path = jg.save(tmp_path / "m", linear(), jnp.ones((2, 3)))
    for like, match in [
        ({"v": struct(3, 3)}, r"missing leaves \['w'\], unknown leaves \['v'\]"),
        ({"w": struct(3, 4)}, r"shape \(3, 3\) at w; got \(3, 4\)"),
        ({"w": struct(3, 3, dtype=jnp.bfloat16)}, "w has dtype float32, and bfloat16"),
    ]:
        refuses(match, jg.restore, path, like)
    saved = jg.restore(path)
    with pytest.raises(jp.PruningError, match=r"shape \(3, 3\) at w"):
        saved.fn({"w": jnp.ones((3, 4))}, jnp.ones((2, 3)))


def test_params_that_are_numbers_come_back_as_arrays(tmp_path):
    params = {"w": jnp.ones((2, 1)), "scale": 0.5, "shift": np.ones(1)}
    fn = lambda p, x: p["scale"] * (x @ p["w"]) + p["shift"]  # noqa: E731
    path = jg.save(tmp_path / "m", jg.Saved(fn, params, {}), struct(3, 2))
    saved = jg.restore(path, like=params)
    assert saved.params["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(saved.fn(saved.params, jnp.ones((3, 2))), [[2.0]] * 3)


def test_what_a_function_does_to_a_dict_is_its_own_matter(tmp_path):
    """As under `jax.jit`: what comes back is the state of the module."""

    def fn(params, x):
        out = params["net"](x @ params["w"])
        params["w"] = 2 * params.pop("w")
        return out

    norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    params = {"net": norm, "w": jnp.ones((2, 2))}
    path = jg.save(tmp_path / "m", jg.Saved(fn, params, {}), struct(3, 2))
    saved = jg.restore(path)
    x = jnp.arange(6.0).reshape(3, 2)
    _, new = saved.fn(saved.params, x)
    np.testing.assert_array_equal(new["w"], params["w"])
    mean = np.full(2, 0.01 * 5.0)  # of rows 1, 5, 9, with a momentum of 0.99
    np.testing.assert_allclose(new["net"]["mean"], mean, rtol=1e-6)
    again, _ = saved.fn(new, x)
    np.testing.assert_allclose(again, norm(x @ params["w"]), rtol=1e-6)


class Twice(nnx.Module):
    """One normalization under two names."""

    def __init__(self):
        self.norm = self.again = nnx.BatchNorm(2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.again(self.norm(x))


def test_what_could_not_be_restored_right_is_refused(tmp_path):
    def saved(fn, params, **options):
        jg.save(tmp_path / "m", jg.Saved(fn, params, {}), struct(3, 2), **options)

    with pytest.raises(jp.PruningError, match=r"again/mean.*norm/mean is the same"):
        saved(lambda net, x: net(x), Twice())
    with pytest.raises(ValueError, match="sorting"):
        saved(lambda p, x: {1: x, "x": p}, jnp.ones(2))
    for wrong in ("cpu", []):
        with pytest.raises(jp.PruningError, match="list of names"):
            saved(lambda p, x: x * p, jnp.ones(2), platforms=wrong)
    assert files_of(tmp_path) == {}
