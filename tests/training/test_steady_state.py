"""What a compiled step costs when no refresh is due: facts, not timings."""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

import jprune as jp

pytestmark = [pytest.mark.others_code, pytest.mark.optimized]

N, LAYERS = 128, 2
WEIGHTS = LAYERS * N * N
SLACK = 4096  # bytes: scalars and alignment
PLAIN = optax.adamw(1e-3)
PRUNER = optax.chain(jp.score_by_magnitude(), jp.keep_above(0.5))  # compiles quickly
FORMS = {
    "bool": {},
    "packed": {"packed": True},
    "zero moments": {"moments": "zero"},
    "packed, zero moments": {"packed": True, "moments": "zero"},
}


def _params():
    leaf = jax.ShapeDtypeStruct((N, N), jnp.float32)
    return {f"layer_{i}": {"kernel": leaf} for i in range(LAYERS)}


def _loss(params, x):
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"])
    return jnp.mean(jnp.square(x))


@functools.cache
def _compiled(form, every, *, forward=True, scanned=False, pruner=PRUNER):
    """A donating train step, or just the optimizer's, compiled but never run."""
    tx = PLAIN
    if form != "plain":
        tx = jp.sparsify(PLAIN, pruner, every=every, **FORMS[form])

    def step(params, state, x):
        grads = jax.grad(_loss)(params, x) if forward else x
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def steps(params, state, x):
        body = lambda carry, _: (step(*carry, x), None)  # noqa: E731
        return lax.scan(body, (params, state), length=7)[0]

    params = _params()
    x = jax.ShapeDtypeStruct((16, N), jnp.float32) if forward else params
    run = jax.jit(steps if scanned else step, donate_argnums=(0, 1))
    return run.lower(params, jax.eval_shape(tx.init, params), x).compile()


def _temp(compiled):
    return compiled.memory_analysis().temp_size_in_bytes


def _copies(compiled):
    """Shapes that are copied, such as `pred[128,128]`, but for scalars."""
    found = re.findall(r"= (\w+\[[\d,]+\])\S* copy(?:-start)?\(", compiled.as_text())
    return sorted(found)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("forward", [True, False], ids=["train step", "optimizer"])
def test_without_refresh_nothing_is_allocated_and_nothing_copied(form, forward):
    plain = _compiled("plain", None, forward=forward)
    ours = _compiled(form, None, forward=forward)
    assert abs(_temp(ours) - _temp(plain)) <= SLACK
    assert _copies(ours) == _copies(plain)
    assert "conditional(" not in ours.as_text()
    bare, sparse = plain.memory_analysis(), ours.memory_analysis()
    masks = WEIGHTS // 8 if "packed" in form else WEIGHTS
    for size in ("argument_size_in_bytes", "output_size_in_bytes"):
        assert 0 <= getattr(sparse, size) - getattr(bare, size) - masks <= SLACK
    # All that is given out lies where the donated arguments were.
    assert 0 <= sparse.output_size_in_bytes - sparse.alias_size_in_bytes <= SLACK


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scanned", [False, True], ids=["step", "scan"])
def test_only_masks_cross_the_branch_and_none_is_copied(form, scanned):
    plain = _compiled("plain", None, scanned=scanned)
    ours = _compiled(form, 100, scanned=scanned)
    text = ours.as_text()
    mask = rf"u8\[{N},{N // 8}\]" if "packed" in form else rf"pred\[{N},{N}\]"
    crossing = [
        types
        for types in re.findall(r"= \((.*?)\) conditional\(", text)
        if re.search(mask, types)
    ]
    assert len(crossing) == 1  # the refresh; what is in it may branch on its own
    arrays = re.findall(r"\w+\[[\d,]+\]", crossing[0])
    assert len(arrays) == LAYERS
    assert all(re.fullmatch(mask, shape) for shape in arrays)
    assert _copies(ours) == _copies(plain)
    alias = ours.memory_analysis().alias_size_in_bytes
    assert 0 <= ours.memory_analysis().output_size_in_bytes - alias <= SLACK


def test_the_branch_takes_what_a_refresh_takes_alone():
    """Temporary memory is static: the step's own, or the refresh's beside it."""
    pruner = jp.recipes.gradual_magnitude(0.9, begin=10, steps=100)
    tx, params = jp.sparsify(PLAIN, pruner, every=None), _params()
    refresh = jax.jit(functools.partial(jp.refresh, pruner), donate_argnums=(0, 1))
    alone = refresh.lower(jax.eval_shape(tx.init, params), params).compile()
    step = _compiled("bool", None)
    with_branch = _compiled("bool", 100, pruner=pruner)
    assert _temp(with_branch) <= _temp(step) + _temp(alone) + SLACK


def test_packing_and_unpacking_make_no_arrays_on_the_way():
    shape = (256, 520)
    w = jax.ShapeDtypeStruct(shape, jnp.float32)
    mask, bits = (
        jax.ShapeDtypeStruct(shape, bool),
        jax.ShapeDtypeStruct((256, 65), jnp.uint8),
    )
    for function, args in (
        (lambda w: jp.masks.pack([w > 0], [w]), (w,)),
        (lambda m: jp.masks.pack([m], [m]), (mask,)),
        (lambda w, b: jp.apply([w], jp.masks.unpack([b], [w])), (w, bits)),
        (lambda w, b: jp.masks.unpack([b], [w]), (w, bits)),
    ):
        compiled = jax.jit(function).lower(*args).compile()
        assert _temp(compiled) <= SLACK
