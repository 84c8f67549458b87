"""Wrong arguments of pruners: the message names what is wrong, and the remedy."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.experimental import checkify

import jprune as jp

PARAMS = {
    "body": {"kernel": jnp.arange(1.0, 7).reshape(2, 3), "bias": jnp.ones(3)},
    "head": {"kernel": jnp.arange(1.0, 7).reshape(3, 2)},
}
HALF = jp.recipes.magnitude(0.5)
SGD = optax.sgd(0.1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            jp.recipes.magnitude,
            r"function 'magnitude', .* pass magnitude\(\.\.\.\)",
        ),
        ("magnitude", "it is the string 'magnitude'"),
        (PARAMS, "it is a value of type dict"),
        (0.9, "it is a value of type float"),
        (jp.recipes.lottery_ticket(lambda p, m: p, 0.5), "Algorithm, which has a loop"),
    ],
)
def test_what_is_no_pruner_is_refused_at_construction(wrong, message):
    for call in (
        lambda: jp.sparsify(SGD, wrong),
        lambda: jp.select(wrong, jp.is_kernel),
        lambda: jp.prune(PARAMS, wrong),
        lambda: jp.learned.score_ranked(wrong),
        lambda: jp.training.lottery_ticket(lambda p, m: p, wrong),
        lambda: jp.learned.bilevel.bip(lambda p, x: 0.0, wrong, lower=SGD, upper=SGD),
    ):
        with pytest.raises(jp.PruningError, match=message):
            call()


def test_swapped_arguments_are_refused():
    with pytest.raises(jp.PruningError, match=r"sparsify\(optimizer, pruner\)"):
        jp.sparsify(HALF, SGD).init(PARAMS)
    with pytest.raises(jp.PruningError, match=r"params first: prune\(params, pruner\)"):
        jp.prune(HALF, PARAMS)
    with pytest.raises(jp.PruningError, match="returned float32 at 'body/kernel'"):
        jp.prune(PARAMS, SGD, PARAMS)
    with pytest.raises(
        jp.PruningError, match=r"optimizer is no Optax .* function 'sgd'"
    ):
        jp.sparsify(optax.sgd, HALF)


BLOCK = r"pool_over_blocks\(\(4, 4\), jnp\.sum\); got block="


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jp.pool_over_blocks(jp.l2_norm, (4, 4)), BLOCK + "l2_norm"),
        (lambda: jp.pool_over_blocks(4), BLOCK + "4"),
        (lambda: jp.pool_over_blocks("44"), BLOCK + "44"),
        (lambda: jp.pool_over_blocks(()), BLOCK + r"\(\)"),
        (lambda: jp.pool_over_blocks((4, 0)), BLOCK + r"\(4, 0\)"),
        (lambda: jp.pool_over_blocks((4, 1.5)), BLOCK + r"\(4, 1.5\)"),
        (lambda: jp.pool_over_blocks((4, "4")), BLOCK + r"\(4, '4'\)"),
        (lambda: jp.pool_over_blocks((4,), (4,)), r"reduce is a function .*\(4,\), of"),
        (lambda: jp.pool_over_axes("output"), r"reduce is .*jnp.sum.* got 'output'"),
        (lambda: jp.pool_over_axes((0, 1)), r"reduce is a function .*type tuple"),
        (lambda: jp.pool_over_axes(layout=(0, 1)), "layout is a .*-> KernelAxes; got"),
        (lambda: jp.normalize_by_leaf_norm(2), "norm is .*jprune.l2_norm; got 2, of"),
    ],
)
def test_arguments_of_the_middle_links(call, message):
    with pytest.raises(jp.PruningError, match=message):
        call()


OTHER = {"body": PARAMS["body"], "tail": PARAMS["head"]}
NARROW = PARAMS | {"head": {"kernel": jnp.ones((3, 1))}}
CUT = PARAMS | {"head": {"kernel": None}}


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        (
            OTHER,
            "^The gradients have no leaf 'head/kernel', .*; they have 'tail/",
        ),
        (CUT, "^The gradients have no leaf 'head/kernel', which the params have"),
        (
            NARROW,
            r"^The gradients have shape \(3, 1\) at 'head/kernel', where",
        ),
    ],
    ids=["names", "none", "shape"],
)
def test_gradients_that_do_not_fit_name_the_first_leaf(grads, message):
    tx = jp.sparsify(SGD, HALF)
    state = tx.init(PARAMS)
    snip = jp.recipes.snip(0.5)
    for call in (
        lambda: tx.update(grads, state, PARAMS),
        lambda: jax.jit(tx.update)(grads, state, PARAMS),
        lambda: jp.prune(PARAMS, snip, grads),
        lambda: jp.score_by_taylor().update(grads, optax.EmptyState(), PARAMS),
    ):
        with pytest.raises(jp.PruningError, match=message):
            call()


def test_scores_that_do_not_fit_name_the_first_leaf():
    link = jp.keep_top(0.5)
    for scores, message in (
        (OTHER, "^The scores have no leaf 'head/kernel'"),
        (NARROW, None),  # pooled over an axis
        (
            PARAMS | {"head": {"kernel": jnp.ones(2)}},
            r"'head/kernel' have shape \(2,\)",
        ),
        (PARAMS | {"head": {"kernel": jnp.ones((2, 2))}}, "divide the shape"),
    ):
        if message is None:
            link.update(scores, link.init(PARAMS), PARAMS)
            continue
        with pytest.raises(jp.PruningError, match=message):
            link.update(scores, link.init(PARAMS), PARAMS)


def test_masks_that_do_not_fit_the_params_of_an_update():
    tx = jp.sparsify(SGD, HALF, every=None)
    with pytest.raises(jp.PruningError, match="masks have no leaf 'tail"):
        tx.update(OTHER, tx.init(PARAMS), OTHER)


def test_the_message_is_short_however_large_the_trees():
    layers = {f"layer_{i:03}": {"kernel": jnp.ones((2, 2))} for i in range(300)}
    grads = {name: dict(layer) for name, layer in layers.items()}
    grads["layer_123"] = {"weight": grads["layer_123"]["kernel"]}
    tx = jp.sparsify(SGD, HALF, every=None)
    with pytest.raises(jp.PruningError, match="no leaf 'layer_123/kernel'") as found:
        tx.update(grads, tx.init(layers), layers)
    assert len(str(found.value)) < 200


def test_the_key_of_random_scores_is_a_key():
    for wrong in (0, jnp.float32(0.5), jnp.arange(3)):
        with pytest.raises(jp.PruningError, match=r"pass jax.random.key\(0\)"):
            jp.recipes.random_erk(0.5, wrong)
    for right in (jax.random.key(0), jax.random.PRNGKey(0)):
        jp.prune(PARAMS, jp.recipes.random_erk(0.5, right))


def test_the_numbers_of_an_n_of_m_pattern_are_static():
    with pytest.raises(jp.PruningError, match=r"static Python integers; got .*Tracer"):
        jax.jit(lambda n: jp.prune(PARAMS, jp.recipes.n_of_m(n, 2))[1])(1)
    with pytest.raises(jp.PruningError, match=r"static Python integers; got 1\.0:2"):
        jp.keep_n_of_m(1.0, 2)


@pytest.mark.parametrize("wrong", ["0.9", True, None, 1.5, float("nan"), 90, [0.5]])
def test_what_is_no_sparsity_is_refused_at_construction(wrong):
    loss = lambda p, x: 0.0  # noqa: E731
    for call in (
        lambda: jp.recipes.magnitude(wrong),
        lambda: jp.recipes.global_magnitude(wrong),
        lambda: jp.recipes.gradual_magnitude(wrong, begin=0, steps=1),
        lambda: jp.recipes.snip(wrong),
        lambda: jp.recipes.random_erk(wrong, jax.random.key(0)),
        lambda: jp.recipes.random_erk(0.5, jax.random.key(0), pins=[("a", wrong)]),
        lambda: jp.recipes.bip(loss, wrong, steps=1),
        lambda: jp.recipes.hydra(loss, wrong, steps=1),
        lambda: jp.recipes.lottery_ticket(loss, wrong),
        lambda: jp.learned.thresholded(wrong),
        lambda: jp.geometric(wrong, steps=1),
    ):
        with pytest.raises(jp.PruningError, match=r"a number in \[0, 1\]; got"):
            call()


def test_numbers_that_are_none_or_too_large():
    for wrong in ("1", True, None, 10**400, -(10**400)):
        with pytest.raises(jp.PruningError, match=r"A threshold is a number"):
            jp.keep_above(wrong)
    for wrong in ("1", True, None, -1):
        with pytest.raises(jp.PruningError, match=r"A budget is a number >= 0"):
            jp.keep_within_budget(wrong)
    # A budget that no tree exhausts keeps everything.
    _, masks = jp.prune(PARAMS, jp.keep_within_budget(10**400), PARAMS)
    assert all(m.all() for m in jax.tree.leaves(masks))


@pytest.mark.parametrize("make", [jp.keep_within_budget, jp.keep_above])
def test_traced_nan_is_reported_and_prunes_nothing(make):
    @jax.jit
    def masks(number):
        return make(number).update(PARAMS, jp.KeepState(0), PARAMS)[0]

    assert all(m.all() for m in jax.tree.leaves(masks(jnp.nan)))
    error, _ = checkify.checkify(masks)(jnp.nan)
    assert "got nan" in error.get()
    assert checkify.checkify(masks)(3.0)[0].get() is None
    with pytest.raises(jp.PruningError, match="got nan"):
        jp.prune(PARAMS, make(jnp.float32(jnp.nan)), PARAMS)


def test_a_traced_negative_budget_is_reported_and_prunes_nothing():
    @jax.jit
    def masks(number):
        return jp.keep_within_budget(number).update(PARAMS, jp.KeepState(0), PARAMS)[0]

    for wrong in (-1, -0.5):
        assert all(m.all() for m in jax.tree.leaves(masks(wrong)))
        assert "got -" in checkify.checkify(masks)(wrong)[0].get()
