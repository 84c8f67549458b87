"""A module rebuilt at the kept widths takes the small arrays, without jprune."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jprune import graph as jg

nn = pytest.importorskip("flax.linen")

pytestmark = pytest.mark.others_code


class Net(nn.Module):
    """Convolutions with normalization, and two dense layers."""

    widths: tuple[int, int, int] = (8, 12, 20)

    @nn.compact
    def __call__(self, x):
        for i, n in enumerate(self.widths[:2]):
            x = nn.Conv(n, (3, 3), name=f"conv{i}")(x)
            x = nn.BatchNorm(use_running_average=True, name=f"norm{i}")(x)
            x = nn.relu(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.widths[2], name="hidden")(x))
        return nn.Dense(10, name="out")(x)


def test_a_flax_module_rebuilt_at_the_kept_widths_is_the_small_function():
    x = jax.random.normal(jax.random.key(1), (4, 6, 6, 3))
    variables = Net().init(jax.random.key(0), x)
    graph = jg.trace(Net().apply, variables, x)
    assert [g.size for g in graph.groups.values()] == [8, 12, 20]
    scores = jg.group_scores(graph, jax.tree.map(np.square, jax.device_get(variables)))
    plan = jg.make_plan(graph, jg.choose(graph, scores, 0.6, cost=jg.multiply_adds))
    small_fn, small = jg.shrink(graph, variables, plan)
    names = ("conv0", "conv1", "hidden")
    kept = jg.widths(plan, variables)
    widths = tuple(kept[f"params/{n}/kernel"][-1] for n in names)
    assert sum(widths) < 40
    rebuilt = Net(widths)
    expected = jax.tree.map(jnp.shape, rebuilt.init(jax.random.key(0), x))
    assert jax.tree.map(jnp.shape, small) == expected
    np.testing.assert_allclose(
        rebuilt.apply(small, x), small_fn(small, x), rtol=1e-5, atol=1e-6
    )


class Normed(nn.Module):
    """A residual block whose statistics are those of all devices."""

    widths: tuple[int, int] = (6, 8)

    @nn.compact
    def __call__(self, x):
        for i, n in enumerate(self.widths):
            h = nn.Conv(n, (3, 3), use_bias=False, name=f"conv{i}")(x)
            h = nn.BatchNorm(False, momentum=0.9, axis_name="batch", name=f"n{i}")(h)
            x = nn.relu(h) + (h if i else 0)
        return nn.Dense(3, name="out")(x.mean((1, 2)))


def _train_step(apply_fn, variables, batch):
    """One step of a device: gradients and statistics are means over all devices."""

    def loss(params):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, new = apply_fn(given, batch)
        return jnp.square(logits).mean(), new["batch_stats"]

    grads, stats = jax.grad(loss, has_aux=True)(variables["params"])
    grads = jax.lax.pmean(grads, "batch")
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
    return {"params": moved, "batch_stats": jax.lax.pmean(stats, "batch")}


def test_a_training_step_with_statistics_of_all_devices():
    """As in Flax's ImageNet example, whose model is applied under an axis name."""
    x = jax.random.normal(jax.random.key(1), (4, 2, 5, 5, 3))

    def apply_fn(net):
        return lambda v, x: net.apply(v, x, mutable=["batch_stats"])

    variables = jax.vmap(
        lambda x: Normed().init(jax.random.key(0), x),
        axis_name="batch",
        out_axes=None,
    )(x)
    graph = jg.trace(
        apply_fn(Normed()),
        variables,
        x[0],
        axis_env={"batch": 4},
        shrinking=lambda path, _: "batch_stats" in path,
    )
    keep = {name: range(1, g.size - 1) for name, g in graph.groups.items()}
    keep = {name: list(kept) for name, kept in keep.items()}
    assert len(keep) == 2
    small_fn, small = jg.shrink(graph, variables, keep=keep)
    assert small["batch_stats"]["n1"]["mean"].shape == (6,)

    def step(apply_fn):
        mapped = jax.vmap(
            lambda v, x: _train_step(apply_fn, v, x),
            in_axes=(None, 0),
            out_axes=None,
            axis_name="batch",
        )
        return jax.jit(mapped)(small, x)

    found, expected = step(small_fn), step(apply_fn(Normed((4, 6))))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
