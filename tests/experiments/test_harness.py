"""The train loop, the results, the README's tables and the command line."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp
from experiments import ExperimentError, tables
from experiments.harness import results, stats
from experiments.harness.catalogue import Claim
from experiments.loops import train
from experiments.models import CNN, MLP, cnn, layers
from experiments.tasks import data

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.others_code


def toy(n=50, side=8):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n).astype(np.int32)
    images = rng.normal(size=(n, side, side, 1)).astype(np.float32)
    return data.Examples(jnp.asarray(images), jnp.asarray(labels))


# The networks.


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (5, 3)])
def test_convolution_is_that_of_lax(window):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 3)), jnp.float32)
    layer = {
        "kernel": jnp.asarray(rng.normal(size=(*window, 3, 4)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
    }
    expected = jax.lax.conv_general_dilated(
        x,
        layer["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    np.testing.assert_allclose(
        layers.conv(layer, x), expected + layer["bias"], rtol=1e-4, atol=1e-4
    )


def test_pooling_takes_the_largest_of_four():
    x = jnp.asarray([[1, 5, 0, -1], [2, 3, -2, -7]], jnp.float32)
    pooled = layers.max_pool(x.reshape(1, 2, 4, 1))
    assert pooled.ravel().tolist() == [5, 0]


@pytest.mark.parametrize("model", [CNN, MLP])
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3)])
def test_networks_give_a_logit_per_class(model, shape):
    params = model.init(jax.random.key(0), shape, 7)
    assert model.apply(params, jnp.ones((2, *shape))).shape == (2, 7)
    assert all(set(layer) == {"kernel", "bias"} for layer in params.values())


def test_sides_that_cannot_be_pooled_twice_are_refused():
    with pytest.raises(ValueError, match=r"\(30, 32, 3\)"):
        cnn.init(jax.random.key(0), (30, 32, 3))


# The train loop.


def test_each_epoch_draws_every_example_once():
    batches = train.epoch_batches(jax.random.key(0), n=10, batch_size=4, steps=5)
    assert batches.shape == (5, 4)
    stream = np.asarray(batches).ravel()
    first, second = stream[:10], stream[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()


def sparse(level):
    pruner = jp.recipes.gradual_magnitude(level, begin=1, steps=4, scope="global")
    return jp.sparsify(optax.adamw(1e-2), pruner, every=2, begin=1, end=5)


@functools.cache
def small_grid():
    """Two sparsities by three seeds, and what they were trained from."""
    init = functools.partial(MLP.init, image_shape=(8, 8, 1), hidden=(16,))
    params = jax.vmap(init)(jax.random.split(jax.random.key(0), 3))
    keys = jax.random.split(jax.random.key(1), 3)
    levels = jnp.asarray([0.5, 0.9])
    seen = []
    grid = train.fit_grid(
        MLP.apply,
        sparse,
        params,
        toy(),
        keys,
        levels,
        steps=8,
        batch_size=16,
        on_progress=seen.append,
    )
    return grid, params, keys, levels, seen


@pytest.mark.parametrize(("level", "seed"), [(0, 0), (1, 2)])
def test_a_grid_trains_each_network_as_if_alone(level, seed):
    grid, params, keys, levels, _ = small_grid()
    alone, curves = jax.jit(
        lambda params, key: train.fit(
            MLP.apply, sparse(levels[level]), params, toy(), key, steps=8, batch_size=16
        )
    )(jax.tree.map(lambda leaf: leaf[seed], params), keys[seed])
    np.testing.assert_allclose(grid.curves.loss[level, seed], curves.loss, rtol=1e-3)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(
        lambda ours, theirs: same(ours[level, seed], theirs),
        grid.state.params,
        alone.params,
    )


def test_a_grid_is_as_sparse_as_its_levels_with_exact_zeros():
    grid, *_ = small_grid()
    masks = jp.masks_of(grid.state.opt_state)
    kernels = [(grid.state.params[k]["kernel"], masks[k]["kernel"]) for k in masks]
    for level, sparsity in enumerate((0.5, 0.9)):
        for seed in range(3):
            size = sum(w[level, seed].size for w, _ in kernels)
            kept = sum(int(m[level, seed].sum()) for _, m in kernels)
            assert abs(kept - (1 - sparsity) * size) <= 1
            for w, m in kernels:
                assert not np.asarray(w[level, seed])[~np.asarray(m[level, seed])].any()


def test_progress_counts_up_to_the_last_step():
    *_, seen = small_grid()
    assert seen == list(range(1, 9))


def test_a_shared_step_count_keeps_the_refresh_a_branch():
    params = MLP.init(jax.random.key(0), (2, 2, 1), hidden=(3,))
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)

    def step(axes):
        def update(state):
            return sparse(0.5).update(state.params, state.opt_state, state.params)[1]

        def one(params):
            return train.TrainState(params, sparse(0.5).init(params))

        shared = train.network_axes(jax.eval_shape(one, train.one_network(params)))
        start = jax.vmap(one, out_axes=shared)(params)
        own = jax.tree.map(lambda _: 0, start)
        if axes == "own":
            start = jax.vmap(one)(params)
        run = jax.vmap(update, in_axes=(shared if axes == "shared" else own,))
        return str(jax.make_jaxpr(run)(start))

    assert " cond[" in step("shared")
    assert " cond[" not in step("own")


@pytest.mark.parametrize("n", [1, 256, 300])
def test_classes_are_found_in_pieces(n):
    params = MLP.init(jax.random.key(0), (8, 8, 1), hidden=(5,))
    images = toy(n).images
    expected = MLP.apply(params, images).argmax(-1)
    found = train.classes(MLP.apply, params, images)
    np.testing.assert_array_equal(found, expected)


# Results.


def record(name="one", **changes):
    return {
        "name": name,
        "title": "A title",
        "date": "2026-01-02T03:04:05+00:00",
        "seconds": 1.5,
        "seeds": [0],
        "settings": {},
        "versions": {"jax": "0.7.2"},
        "device": {"kind": "cpu", "count": 1},
        "figures": {"accuracy": 98.0},
        "tables": {
            "main": {"columns": ["a", "b"], "rows": [["x|y", "1"]], "caption": "C."}
        },
        "claims": [
            {
                "claim": "Good",
                "source": "jprune",
                "published": None,
                "target": "> 97",
                "ours": 98.0,
                "spread": 0.5,
                "holds": True,
            }
        ],
        **changes,
    }


def test_a_record_is_read_as_it_was_written(tmp_path):
    results.write(tmp_path / "one.json", record())
    assert results.read(tmp_path / "one.json") == record()
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    "bad", [{"figures": {"accuracy": float("nan")}}, {"claims": [{}]}, {"seeds": 3}]
)
def test_a_record_that_cannot_be_leaves_the_old_one(tmp_path, bad):
    path = tmp_path / "one.json"
    results.write(path, record())
    with pytest.raises(ValueError, match=r"one\.json|JSON"):
        results.write(path, record(**bad))
    assert results.read(path) == record()
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', "\x00"])
def test_a_broken_record_is_named(tmp_path, text):
    path = tmp_path / "one.json"
    path.write_text(text)
    with pytest.raises(ExperimentError, match="broken") as error:
        results.read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("target", "holds"),
    [((">", 97), False), ((">=", 97), True), (("<", 97), False), (("<=", 97), True)],
)
def test_a_claim_is_held_against_its_target(target, holds):
    claim = Claim("c", "s", target, lambda figures: (figures["x"], None))
    checked = claim.check({"x": 97})
    assert checked["holds"] is holds
    assert checked["target"] == f"{target[0]} 97"


def test_spread_is_the_sample_standard_deviation():
    assert stats.mean_and_spread([1.0, 2.0, 6.0]) == (3.0, 2.6458)  # sqrt(14 / 2)
    assert stats.mean_and_spread([4.0]) == (4.0, None)
    assert stats.plus_minus([1.0, 2.0, 6.0]) == "3.00 ± 2.65"


# The README's tables.

README = """# Title
<!-- table:one -->
old
<!-- /table -->
between
<!-- table:claims -->
<!-- /table -->
<!-- table:methods -->
<!-- /table -->
end
"""


def test_tables_are_remade_once_and_nothing_else_changes(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    results.write(tmp_path / "one.json", record())
    assert tables.update(readme, tmp_path, check=True) == ["one", "claims", "methods"]
    assert readme.read_text() == README
    assert tables.update(readme, tmp_path) == ["one", "claims", "methods"]
    made = readme.read_text()
    assert "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n\nC. `python -m exp" in made
    assert "| Good | jprune |  | > 97 | 98.00 ± 0.50 | yes |" in made
    assert tables.update(readme, tmp_path) == []
    assert readme.read_text() == made
    kept = [line for line in README.splitlines() if line and line != "old"]
    assert [line for line in made.splitlines() if line in kept] == kept


def test_a_table_says_which_tasks_were_run(tmp_path):
    results.write(tmp_path / "one.json", record() | {"options": ["--tasks", "RTE"]})
    made = tables.table_named("one", tmp_path)
    assert "`python -m experiments one --tasks RTE`" in made


def test_the_table_of_methods_has_every_recipe_and_its_paper(tmp_path):
    lines = tables.methods_table().splitlines()[2:]
    names = jp.recipes.__all__
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        assert f"`jp.recipes.{name}(" in line
        assert "https://arxiv.org/abs/" in line
    (gradual,) = (line for line in lines if "gradual_magnitude" in line)
    assert "`jp.recipes.gradual_magnitude(sparsity, begin=..., steps=...)`" in gradual
    assert "model compression, 2017, [arXiv:1710.01878](" in gradual


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no marks\n", "no <!-- table:NAME -->"),
        ("<!-- table:one -->\n", "'one' is never closed"),
        ("\n<!-- /table -->\n", "line 2: .*no table is open"),
        (
            "<!-- table:one -->\n<!-- table:claims -->\n",
            "line 2: .*'one' is still open",
        ),
        ("<!-- table:other -->\n<!-- /table -->\n", "no table 'other'.*known: .*one"),
    ],
)
def test_a_readme_that_cannot_be_filled_stays_as_it_was(tmp_path, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    results.write(tmp_path / "one.json", record())
    with pytest.raises(ExperimentError, match=message):
        tables.update(readme, tmp_path)
    assert readme.read_text() == text
