"""Pruners on some leaves, pruning once, and finding masks in optimizer states."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune as jp

PARAMS = {
    "dense": {"kernel": jnp.arange(1.0, 9).reshape(4, 2), "bias": jnp.ones(2)},
    "head": {"kernel": jnp.arange(6.0).reshape(2, 3)},
    "table": jnp.arange(5),
}
KEEP_HALF = jp.recipes.magnitude(0.5)


def _shapes(masks):
    return {
        path: m.shape
        for path, m in zip(
            jp.tree.leaf_paths(masks), jax.tree.leaves(masks), strict=True
        )
    }


def test_other_leaves_get_a_scalar_true():
    pruner = jp.select(KEEP_HALF, jp.excluding("head/.*"))
    for update in (pruner.update, jax.jit(pruner.update)):
        masks, _ = update(None, pruner.init(PARAMS), PARAMS)
        jp.masks.check(PARAMS, masks)
        assert masks["dense"]["kernel"].tolist() == [[False] * 2] * 2 + [[True] * 2] * 2
        assert _shapes(masks) == {
            "dense/bias": (),
            "dense/kernel": (4, 2),
            "head/kernel": (),
            "table": (),
        }
        assert all(bool(m.all()) for m in (masks["head"]["kernel"], masks["table"]))


def test_what_is_hidden_does_not_compete():
    everything, _ = jp.prune(PARAMS, jp.recipes.magnitude(0.5, scope="global"))
    only, masks = jp.prune(
        PARAMS,
        jp.recipes.magnitude(0.5, scope="global"),
        where=jp.matching("head/.*"),
    )
    assert int(jnp.sum(everything["head"]["kernel"] == 0)) == 4  # 0 1 2 3 against 1-8
    assert only["head"]["kernel"].tolist() == [[0, 0, 0], [3, 4, 5]]
    np.testing.assert_array_equal(only["dense"]["kernel"], PARAMS["dense"]["kernel"])
    assert float(jp.sparsity(PARAMS, masks)) == 0.5


def test_prune_once():
    pruned, masks = jp.prune(PARAMS, KEEP_HALF)
    assert pruned["dense"]["kernel"].tolist() == [[0, 0], [0, 0], [5, 6], [7, 8]]
    assert pruned["head"]["kernel"].tolist() == [[0, 0, 0], [3, 4, 5]]
    assert pruned["dense"]["bias"].tolist() == [1, 1]
    assert pruned["table"].dtype == jnp.int32
    jitted, _ = jax.jit(lambda p: jp.prune(p, KEEP_HALF))(PARAMS)
    for a, b in zip(jax.tree.leaves(pruned), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_array_equal(a, b)
    again, same = jp.prune(pruned, KEEP_HALF)
    for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(again) == jax.tree.structure(PARAMS)


def test_gradients_and_keywords_reach_the_links():
    floats = {k: v for k, v in PARAMS.items() if k != "table"}
    grads = jax.tree.map(lambda w: -w[::-1], floats)
    _, masks = jp.prune(floats, jp.recipes.snip(0.5), grads)
    product = np.concatenate(
        [np.ravel(floats[k]["kernel"] * grads[k]["kernel"]) for k in ("dense", "head")]
    )
    found = np.concatenate([np.ravel(masks[k]["kernel"]) for k in ("dense", "head")])
    assert found.sum() == 7
    assert np.abs(product)[found].min() >= np.abs(product)[~found].max()
    clocked = optax.chain(jp.score_by_magnitude(), jp.keep_top(lambda step: step / 8))
    _, masks = jp.prune(
        floats, clocked, step=jnp.int32(6), where=jp.matching("dense/k.*")
    )
    assert int(masks["dense"]["kernel"].sum()) == 2


def test_misuse_is_refused_by_name():
    bad = jax.tree.map(lambda w: w, PARAMS)
    bad["head"]["kernel"] = bad["head"]["kernel"].at[0, 1].set(jnp.nan)
    with pytest.raises(jp.NonFiniteScoreError, match=r"'head/kernel' \(1 of 6\)"):
        jp.prune(bad, KEEP_HALF)
    with pytest.raises(jp.PruningError, match="scores by gradients and got none"):
        jp.prune(PARAMS, jp.recipes.snip(0.5))
    with pytest.raises(jp.PruningError, match="selects nothing"):
        jp.prune({"bias": jnp.ones(3)}, KEEP_HALF)
    with pytest.raises(jp.PruningError, match="'table' has type int32"):
        jp.prune(PARAMS, KEEP_HALF, where=lambda path, leaf: True)
    pruner = jp.select(KEEP_HALF, jp.is_kernel)
    with pytest.raises(jp.PruningError, match="needs the params"):
        pruner.update(None, pruner.init(PARAMS))
    pruner = jp.select(KEEP_HALF, jp.matching("heads/.*"))
    with pytest.raises(jp.PruningError, match=r"pattern 'heads/\.\*' matches no leaf"):
        pruner.init(PARAMS)


FLOATS = {k: v for k, v in PARAMS.items() if k != "table"}
SPARSE = jp.sparsify(optax.adam(0.1), KEEP_HALF, end=0)


MEANT = jp.label(FLOATS, [("dense/.*", True), (".*", False)])


def _after_one_step(tx, params=FLOATS):
    return jax.jit(tx.update)(params, tx.init(params), params)[1]


def _partition():
    labels = jp.label(FLOATS, [("dense/.*", "sparse"), (".*", "dense")])
    return optax.partition({"sparse": SPARSE, "dense": optax.sgd(0.1)}, labels)


def _two_pruners():
    labels = jp.label(FLOATS, [("dense/.*", "half"), (".*", "third")])
    third = jp.sparsify(optax.sgd(0.1), jp.recipes.magnitude(1 / 3), end=0)
    return optax.partition({"half": SPARSE, "third": third}, labels)


@pytest.mark.others_code
@pytest.mark.parametrize(
    ("tx", "dense", "head"),
    [
        (SPARSE, 4, 3),
        (optax.chain(optax.clip(1.0), SPARSE), 4, 3),
        (optax.MultiSteps(SPARSE, 1), 4, 3),
        (optax.apply_if_finite(SPARSE, 3), 4, 3),
        (_partition(), 4, None),
        (_two_pruners(), 4, 4),
        (optax.masked(SPARSE, MEANT), 4, None),
    ],
    ids=["alone", "chain", "steps", "finite", "partition", "two", "masked"],
)
def test_masks_are_found_in_any_state(tx, dense, head):
    tx = optax.GradientTransformation(tx.init, tx.update)
    masks = jp.masks_of(_after_one_step(tx))
    jp.masks.check(FLOATS, masks)
    assert int(masks["dense"]["kernel"].sum()) == dense
    assert masks["dense"]["bias"].shape == ()
    if head is None:
        assert masks["head"]["kernel"].shape == ()
    else:
        assert int(masks["head"]["kernel"].sum()) == head


@pytest.mark.others_code
def test_states_without_or_with_too_many_masks():
    plain = optax.adam(0.1).init(FLOATS)
    with pytest.raises(jp.PruningError, match="contains no SparsifyState"):
        jp.masks_of(plain)
    with pytest.raises(jp.PruningError, match="this one has 0"):
        jp.refresh(KEEP_HALF, plain, FLOATS)
    with pytest.raises(jp.PruningError, match="this one has 2"):
        jp.refresh(KEEP_HALF, _two_pruners().init(FLOATS), FLOATS)
    for pruner, where in (
        (KEEP_HALF, jp.matching("head/.*")),
        (optax.chain(jp.pool_over_axes(), jp.keep_top(0.5)), jp.is_kernel),
    ):
        with pytest.raises(jp.PruningError, match="masks or state have other shapes"):
            jp.refresh(pruner, SPARSE.init(FLOATS), FLOATS, FLOATS, where=where)
    with pytest.raises(jp.PruningError, match="sparsify needs the params"):
        SPARSE.update(FLOATS, SPARSE.init(FLOATS))
    with pytest.raises(jp.PruningError, match="selects nothing"):
        SPARSE.init({"bias": jnp.ones(2)})
    pinned = jp.recipes.random_erk(0.5, jax.random.key(0), pins=[("no/such", 0.0)])
    with pytest.raises(jp.PruningError, match="rule 'no/such' applies"):
        jp.sparsify(optax.sgd(0.1), pinned).init(FLOATS)
