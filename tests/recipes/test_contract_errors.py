"""The contract's errors name the check that failed: one broken pruner for each."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jprune as jp
from jprune import testing

pytestmark = pytest.mark.others_code
PARAMS = {"kernel": jnp.arange(1.0, 65.0).reshape(8, 8)}


def pruner(masks_of, state=()):
    """A pruner from `(scores, step) -> masks`; its state is the scores' tree."""

    def update(updates, state, params=None, step=0, **extra):
        del updates, extra
        state = jax.tree.map(lambda x: x + 1, state)
        return jax.tree.map(lambda w: masks_of(w, step), params), state

    return optax.GradientTransformationExtraArgs(lambda params: state, update)


def traced(w):
    return isinstance(w, jax.core.Tracer)


BROKEN = {
    "masks": (pruner(lambda w, step: w[0] > 9), PARAMS, r"'kernel' has shape \(8,\)"),
    "jit": (
        pruner(lambda w, step: (w > 9) if traced(w) else (w > 20)),
        PARAMS,
        "not equal",
    ),
    "abstract_init": (
        pruner(lambda w, step: w > 9, jnp.asarray(0)),
        PARAMS,
        "Weakly typed state",
    ),
    "training": (
        pruner(lambda w, step: w < 60),
        {"kernel": PARAMS["kernel"].at[0, 0].set(jnp.inf)},
        "'kernel' is not zero where pruned",  # but NaN
    ),
    "sharding": (
        pruner(
            lambda w, step: w > (9 if jax.sharding.get_abstract_mesh().empty else 20)
        ),
        PARAMS,
        "not equal",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_that_fails_is_named(name):
    broken, params, why = BROKEN[name]
    said = rf"(?is)^The pruner fails the check '{name}': .*{why}"
    with pytest.raises(AssertionError, match=said) as caught:
        testing.check_pruner(broken, params)
    assert caught.value.__cause__ is not None


def test_errors_of_the_pruner_pass_with_a_note():
    def by_value(w, step):
        return (w > 9) if w.sum() > 0 else (w > 20)  # no traced bool

    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        testing.check_pruner(pruner(by_value), PARAMS)
    (note,) = [n for n in caught.value.__notes__ if "jprune" in n]
    assert note == "The pruner raised this in the check 'jit' of jprune.testing."
    for wrong in (jp.recipes.magnitude, jp.keep_n_of_m(2, 5), jp.score_by_magnitude()):
        with pytest.raises((jp.PruningError, AssertionError)) as caught:
            testing.check_pruner(wrong, PARAMS)
        said = [str(caught.value), *getattr(caught.value, "__notes__", [])]
        assert any("the check 'masks'" in text for text in said)


def test_the_check_of_an_algorithm_that_fails_is_named():
    def loss(params, x):
        return jnp.mean(jnp.square(x @ params["kernel"]))

    method = jp.recipes.edge_popup(loss, 0.5, steps=2)
    batches = [(jnp.full((2, 8), i / 3),) for i in range(2)]
    wrong = {
        "form": method._replace(step=lambda state, x: (state.params, {})),
        "loop": method._replace(step=jax.jit(method.step, donate_argnums=())),
        "finish": method._replace(finish=lambda state: (PARAMS, {"kernel": PARAMS})),
    }
    for name, broken in wrong.items():
        said = f"^The algorithm fails the check '{name}': "
        with pytest.raises(AssertionError, match=said):
            testing.check_algorithm(broken, broken.init, batches, PARAMS)
    said = "^The algorithm fails the check 'finish': 32 of 64 are kept, not 16"
    with pytest.raises(AssertionError, match=said):
        testing.check_algorithm(method, method.init, batches, PARAMS, sparsity=0.75)
