"""State that a function changes in place moves in the small function, too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from jprune import graph as jg

nnx = pytest.importorskip("flax.nnx")

pytestmark = pytest.mark.others_code

X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
KEPT = np.array([0, 2, 3, 7])


def put(variable, array):
    """Replaces the array of a Variable; before Flax 0.12 by its property."""
    if hasattr(type(variable), "set_value"):
        variable.set_value(array)
    else:
        variable.value = array


class Net(nnx.Module):
    """A hidden layer with batch statistics and dropout."""

    def __init__(self, width, rate, rngs, dtype=jnp.float32):
        kinds = {"rngs": rngs, "dtype": dtype, "param_dtype": dtype}
        self.hidden = nnx.Linear(3, width, **kinds)
        self.norm = nnx.BatchNorm(width, momentum=0.8, **kinds)
        put(self.norm.mean, jnp.zeros(width, dtype))  # Flax makes float32
        put(self.norm.var, jnp.ones(width, dtype))
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.out = nnx.Linear(width, 2, **kinds)

    def __call__(self, x):
        return self.out(self.drop(nnx.relu(self.norm(self.hidden(x)))))


def forward(net, x):
    return net(x)


def batch(seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(6, 3)).astype(dtype)


def halved(net, x):
    graph = jg.trace(forward, net, x)
    (name,) = graph.groups
    return graph, *jg.shrink(graph, net, keep={name: KEPT}), {name: KEPT}


def test_batch_statistics_move_as_those_of_the_kept_channels():
    with X64(True):
        net = Net(8, 0.0, nnx.Rngs(0), jnp.float64)
        graph, small_fn, small, keep = halved(net, batch(0, float))
        kernel = np.asarray(net.hidden.kernel[...])[:, KEPT]
        mean, var = np.zeros(4), np.ones(4)
        narrow = Net(4, 0.0, nnx.Rngs(1), jnp.float64)
        nnx.update(narrow, nnx.state(small))
        without = jg.without_entries(graph, {n: np.isin(range(8), KEPT) for n in keep})
        for seed in range(3):
            x = batch(seed, float)
            found = small_fn(small, x)
            hidden = x @ kernel
            mean = 0.8 * mean + 0.2 * hidden.mean(axis=0)
            var = 0.8 * var + 0.2 * hidden.var(axis=0)
            np.testing.assert_allclose(small.norm.mean[...], mean, rtol=1e-12)
            np.testing.assert_allclose(small.norm.var[...], var, rtol=1e-12)
            np.testing.assert_allclose(found, narrow(x), rtol=1e-9)
            np.testing.assert_allclose(found, without(net, x), rtol=1e-9)
        np.testing.assert_allclose(net.norm.var[...][KEPT], var, rtol=1e-12)


def test_dropout_draws_anew_at_each_call_and_evaluation_is_left_alone():
    net = Net(8, 0.5, nnx.Rngs(0))
    graph, small_fn, small, _ = halved(net, batch(0))
    first, second = small_fn(small, batch(0)), small_fn(small, batch(0))
    assert not np.allclose(first, second)
    assert small.drop.rngs.count[...] == 2
    assert net.drop.rngs.count[...] == 0  # the full module is another object
    names = "drop/rngs/count, norm/mean, norm/var"
    assert jg.explain(graph).endswith(f"by the small function as well\n    {names}")
    net.eval()
    graph, small_fn, small, _ = halved(net, batch(0))
    assert graph.state == ()
    np.testing.assert_array_equal(small_fn(small, batch(1)), small_fn(small, batch(1)))
    assert (small.norm.mean[...] == 0).all()


def test_a_small_module_is_tuned_in_train_mode():
    """Under nnx.jit and nnx.grad the state moves, once a step, and Adam's, too."""
    net, x = Net(8, 0.5, nnx.Rngs(0)), batch(0)
    _, small_fn, small, _ = halved(net, x)
    optimizer = nnx.Optimizer(small, optax.adam(1e-2), wrt=nnx.Param)
    kernel = small.hidden.kernel[...]

    @nnx.jit
    def step(module, optimizer, x):
        loss = lambda module: jnp.mean(small_fn(module, x) ** 2)  # noqa: E731
        optimizer.update(module, nnx.grad(loss)(module))

    for i in range(1, 4):
        before = small.norm.mean[...]
        step(small, optimizer, batch(i))
        assert small.drop.rngs.count[...] == i
        assert not np.allclose(small.norm.mean[...], before)
    assert not np.allclose(small.hidden.kernel[...], kernel)


def test_state_is_no_weight_that_scores_count():
    class Scaled(nnx.Module):
        def __init__(self):
            self.w, self.v = nnx.Param(jnp.ones((3, 8))), nnx.Param(jnp.ones((8, 2)))
            self.seen = nnx.Variable(jnp.arange(8.0) * 100)

        def __call__(self, x):
            hidden = x @ self.w[...] + self.seen[...]
            self.seen[...] = hidden.mean(axis=0)
            return hidden @ self.v[...]

    net = Scaled()
    graph = jg.trace(forward, net, batch(0))
    (name,) = graph.groups
    np.testing.assert_allclose(jg.group_l2(graph, net)[name], np.ones(8))
    _, small = jg.shrink(graph, net, keep={name: KEPT})
    np.testing.assert_array_equal(small.seen[...], KEPT * 100.0)


def test_new_state_shrinks_with_the_leaf_that_it_replaces():
    """Even if nothing in the function relates the two."""

    class Last(nnx.Module):
        def __init__(self):
            self.w, self.v = nnx.Param(jnp.ones((3, 8))), nnx.Param(jnp.ones((8, 2)))
            self.seen = nnx.Variable(jnp.zeros(8))

        def __call__(self, x):
            hidden = x @ self.w[...]
            self.seen[...] = hidden.mean(axis=0)
            return hidden @ self.v[...]

    net, x = Last(), batch(0)
    graph = jg.trace(forward, net, x)
    (group,) = graph.groups.values()
    assert {m.path for m in group.members} == {"w", "v", "seen"}
    small_fn, small = jg.shrink(graph, net, keep={group.name: KEPT})
    small_fn(small, x)
    np.testing.assert_allclose(small.seen[...], x.sum(axis=1).mean() * np.ones(4), 1e-5)


def test_heads_of_a_cache_in_a_module():
    """Of the four heads two stay: the cache holds these, and decoding goes on."""
    net = nnx.MultiHeadAttention(4, 8, decode=True, rngs=nnx.Rngs(0))
    net.init_cache((2, 5, 8))
    x = jax.random.normal(jax.random.key(1), (3, 2, 1, 8))
    graph = jg.trace(forward, net, x[0])
    (name,) = [n for n, g in graph.groups.items() if g.kind == "heads"]
    small_fn, small = jg.shrink(graph, net, keep={name: [0, 2]})
    kernel = net.out.kernel[...]
    net.out.kernel[...] = kernel.at[jnp.array([1, 3])].set(0.0)  # heads without effect
    for token in x:
        np.testing.assert_allclose(small_fn(small, token), net(token), 1e-4, 1e-6)
    assert small.cached_key.shape == (2, 5, 2, 2)
    np.testing.assert_allclose(small.cached_key[...], net.cached_key[:, :, ::2], 1e-5)
    assert small.cache_index[...] == 3


def test_a_removed_branch_takes_its_statistics_along():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.BatchNorm(3, rngs=rngs)
            self.inside = nnx.Linear(3, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            x = self.first(x)
            return x + self.norm(self.inside(x))

    net, x = Block(nnx.Rngs(0)), batch(0)
    graph = jg.trace(forward, net, x)
    (name,) = jg.branches(graph)
    fn, rest = jg.without_branches(graph, net, [name])
    found = fn(rest, x)
    np.testing.assert_allclose(found, net.first(x), rtol=1e-6)
    np.testing.assert_allclose(rest.first.mean[...], 0.01 * x.mean(axis=0), 1e-5)
    assert rest.norm.mean.shape == rest.inside.kernel.shape == (0,)


class Sows(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones((3, 2)))

    def __call__(self, x):
        self.hidden = nnx.Intermediate(x @ self.w[...])
        return self.hidden[...]


class Counts(Sows):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x @ self.w[...]


class Grows(Sows):
    def __init__(self):
        super().__init__()
        self.seen = nnx.Variable(jnp.zeros((0, 2)))

    def __call__(self, x):
        out = x @ self.w[...]
        put(self.seen, jnp.concatenate([self.seen[...], out]))
        return out


class Shares(Sows):
    def __init__(self):
        super().__init__()
        self.norm = self.again = nnx.BatchNorm(2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.again(self.norm(x @ self.w[...]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Sows, r"adds hidden to its argument.*nnx.split.*nnx.merge"),
        (Counts, r"beside arrays, such as an attribute.*make it an array"),
        (Grows, r"shape of seen in place from \(0, 2\) to \(6, 2\).*nnx.split"),
        (Shares, r"changes again/mean in place, and norm/mean is the same.*nnx.split"),
    ],
)
def test_state_that_would_be_lost_is_an_error(make, message):
    with pytest.raises(jp.PruningError, match=message):
        jg.trace(forward, make(), batch(0))


def test_what_the_error_says_to_write_works():
    graphdef, state = nnx.split(Shares())
    x = batch(0)

    def fn(state, x):
        module = nnx.merge(graphdef, state)
        return module(x), nnx.state(module)

    graph = jg.trace(fn, state, x)
    small_fn, small = jg.shrink(graph, state, keep={})
    _, new = small_fn(small, x)
    once = x @ np.ones((3, 2))
    np.testing.assert_allclose(  # momentum 0.99; the second call sees a mean of 0
        new["again"]["mean"][...], 0.99 * 0.01 * once.mean(axis=0), rtol=1e-4
    )


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass
class Box:
    """A class without names of its leaves."""

    w: jax.Array

    def tree_flatten(self):
        return (self.w,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_a_class_that_names_no_attributes_is_an_error():
    def fn(box, x):
        box.w = box.w + 1
        return x @ box.w

    with pytest.raises(jp.PruningError, match="Box does not name its leaves"):
        jg.trace(fn, Box(jnp.ones((3, 2))), batch(0))


def test_dicts_and_lists_are_the_function_s_own():
    """As under jit, which hands it copies."""

    def fn(params, x, options):
        params["w"] = params["w"] * 2
        options["scale"] = [params.pop("scale")]
        return x @ params["w"] * options["scale"][0]

    params = {"w": jnp.ones((3, 2)), "scale": jnp.float32(3)}
    graph = jg.trace(fn, params, batch(0), {})
    small_fn, small = jg.shrink(graph, params, keep={})
    np.testing.assert_allclose(
        small_fn(small, batch(0), {}), batch(0) @ np.full((3, 2), 6.0), rtol=1e-5
    )
    assert set(small) == {"w", "scale"}
    assert (small["w"] == 1).all()
