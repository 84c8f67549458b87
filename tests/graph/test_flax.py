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
