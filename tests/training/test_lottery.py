"""Lottery tickets: a round is what NumPy does by hand, and rewinding is exact."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.exact import assert_same

import jprune as jp
from jprune.training import lottery_ticket

pytestmark = pytest.mark.others_code

STEPS, ANCHOR_STEP, ROUNDS, SPARSITY = 12, 4, 4, 1 - 0.8**4
RATES = [0.1] * 6 + [0.05] * 6  # a schedule that a wrong clock would show


def _problem(seed=0):
    """Two kernels and a bias; the batches of every step."""
    rng = np.random.default_rng(seed)
    params = {
        "a": {"kernel": rng.normal(size=(6, 3)), "bias": rng.normal(size=3)},
        "b": {"kernel": rng.normal(size=(4, 3))},
    }
    batches = {
        "x": rng.normal(size=(STEPS, 8, 6)),
        "z": rng.normal(size=(STEPS, 8, 4)),
        "y": rng.normal(size=(STEPS, 8, 3)),
    }
    cast = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float32))
    return cast(params), cast(batches)


def _loss(params, batch):
    out = batch["x"] @ params["a"]["kernel"] + batch["z"] @ params["b"]["kernel"]
    return jnp.mean(jnp.square(out + params["a"]["bias"] - batch["y"])) / 2


def _optimizer():
    rate = optax.piecewise_constant_schedule(0.1, {6: 0.5})
    return optax.sgd(rate, momentum=0.9)


def _pruner(scope="global"):
    sparsity = jp.geometric(SPARSITY, steps=ROUNDS, rounds=ROUNDS)
    return jp.recipes.magnitude(sparsity, scope=scope)


def _run(tx, params, state, batches):
    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(_loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0]


def _until_anchor(params, batches):
    tx = _optimizer()
    first = jax.tree.map(lambda x: x[:ANCHOR_STEP], batches)
    return _run(tx, params, tx.init(params), first)


def _train(params, masks, opt_state, batches):
    """From the anchor's step to the end, with its optimizer state and its batches."""
    tx = jp.sparsify(_optimizer(), _pruner(), every=None)
    state = tx.init(params)._replace(masks=masks, inner=opt_state)
    rest = jax.tree.map(lambda x: x[ANCHOR_STEP:], batches)
    return _run(tx, params, state, rest)[0]


def _numpy_steps(params, velocity, masks, batches, steps):
    """Momentum SGD on the masked mean squared error, in float64, by hand."""
    w, v = dict(params), dict(velocity)
    for t in steps:
        x, z, y = (batches[name][t] for name in ("x", "z", "y"))
        error = (x @ w["a"] + z @ w["b"] + w["bias"] - y) / y.size
        grads = {"a": x.T @ error, "b": z.T @ error, "bias": error.sum(0)}
        for name in w:
            v[name] = 0.9 * v[name] + grads[name] * masks[name]
            w[name] = (w[name] - RATES[t] * v[name]) * masks[name]
    return w, v


def _numpy_rounds(params, batches):
    """Iterative magnitude pruning with rewinding; yields each round's outcome."""
    f64 = functools.partial(np.asarray, dtype=np.float64)
    w = {"a": f64(params["a"]["kernel"]), "b": f64(params["b"]["kernel"])}
    w["bias"] = f64(params["a"]["bias"])
    batches = jax.tree.map(f64, batches)
    masks = {name: np.ones_like(value) for name, value in w.items()}
    zeros = {name: np.zeros_like(value) for name, value in w.items()}
    anchor = _numpy_steps(w, zeros, masks, batches, range(ANCHOR_STEP))
    n = w["a"].size + w["b"].size
    for r in range(ROUNDS):
        start = {name: value * masks[name] for name, value in anchor[0].items()}
        rest = range(ANCHOR_STEP, STEPS)
        trained, _ = _numpy_steps(start, anchor[1], masks, batches, rest)
        keep = n - round(n * (1 - 0.8 ** (r + 1)))
        size = np.concatenate([np.abs(trained[k]).ravel() for k in ("a", "b")])
        cut = np.sort(size)[-keep]
        for name in ("a", "b"):
            masks[name] = masks[name] * (np.abs(trained[name]) >= cut)
        yield anchor[0], trained, masks, keep


def test_rounds_are_those_of_a_loop_by_hand():
    params, batches = _problem()
    anchor, opt_state = _until_anchor(params, batches)
    algorithm = lottery_ticket(_train, _pruner())
    state, step = algorithm.init(anchor), jax.jit(algorithm.step)
    for r, (_, trained, masks, keep) in enumerate(_numpy_rounds(params, batches)):
        state, info = step(state, opt_state, batches)
        for name in ("a", "b"):
            np.testing.assert_array_equal(state.masks[name]["kernel"], masks[name])
            ours = state.trained[name]["kernel"]
            np.testing.assert_allclose(ours, trained[name], rtol=1e-4, atol=1e-5)
            assert int(info.kept[name]["kernel"]) == masks[name].sum()
        assert state.masks["a"]["bias"].shape == ()
        assert float(info.sparsity) == pytest.approx(1 - keep / 30)
        assert int(state.count) == r + 1
    ticket, masks = algorithm.finish(state)
    assert_same(masks, state.masks)
    assert_same(state.anchor, anchor)  # to the bit, through all rounds
    assert_same(ticket["a"]["bias"], anchor["a"]["bias"])
    for name in ("a", "b"):
        kept = np.asarray(masks[name]["kernel"])
        expected = np.where(kept, anchor[name]["kernel"], np.float32(0))
        np.testing.assert_array_equal(ticket[name]["kernel"], expected)


def test_rewinding_with_full_masks_is_the_rest_of_the_dense_run():
    """Weights, momentum, the schedule's clock and the batches are all restored.

    To the bit: both runs have the same step, as XLA rounds two programs differently.
    """
    params, batches = _problem()
    tx = jp.sparsify(_optimizer(), _pruner(), every=None)  # masks that keep all
    run = jax.jit(functools.partial(_run, tx))
    dense, _ = run(params, tx.init(params), batches)
    first = jax.tree.map(lambda x: x[:ANCHOR_STEP], batches)
    anchor, opt_state = run(params, tx.init(params), first)
    opt_state = opt_state.inner
    algorithm = lottery_ticket(_train, _pruner())
    state, _ = jax.jit(algorithm.step)(algorithm.init(anchor), opt_state, batches)
    assert_same(state.trained, dense)
    clock = [x for x in jax.tree.leaves(opt_state) if x.dtype == jnp.int32]
    assert [int(x) for x in clock] == [ANCHOR_STEP]


def test_scanned_rounds_and_batched_seeds_are_those_one_by_one():
    seeds = [_problem(seed) for seed in range(3)]
    algorithm = lottery_ticket(_train, _pruner())

    def find(params, batches):
        anchor, opt_state = _until_anchor(params, batches)
        state, info = jax.lax.scan(
            lambda state, _: algorithm.step(state, opt_state, batches),
            algorithm.init(anchor),
            length=ROUNDS,
        )
        return algorithm.finish(state), info

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    (tickets, masks), info = jax.jit(jax.vmap(find))(*stacked)
    assert info.sparsity.shape == (3, ROUNDS)
    for i, (params, batches) in enumerate(seeds):
        anchor, opt_state = _until_anchor(params, batches)
        state, step = algorithm.init(anchor), jax.jit(algorithm.step)
        for r in range(ROUNDS):
            state, alone = step(state, opt_state, batches)
            assert float(alone.sparsity) == float(info.sparsity[i, r])
        ticket, own = algorithm.finish(state)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), masks, own
        )
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-5),
            tickets,
            ticket,
        )


def test_a_round_is_traced_once():
    params, batches = _problem()
    anchor, opt_state = _until_anchor(params, batches)
    algorithm = lottery_ticket(_train, _pruner())
    step = jax.jit(chex.assert_max_traces(algorithm.step, n=1))
    state = algorithm.init(anchor)
    for _ in range(ROUNDS):
        before = jax.tree.map(jax.typeof, state)
        state, _ = step(state, opt_state, batches)
        assert jax.tree.map(jax.typeof, state) == before
    chex.clear_trace_counter()


@pytest.mark.parametrize("scope", ["leaf", "global"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_pruned_stays_pruned_where_all_weights_tie_at_zero(scope, dtype):
    """Without the nudge a pruned zero would win ties against a surviving one."""
    sizes = np.sort(np.random.default_rng(3).random(50)) + 1  # the first go first
    anchor = {
        "a": {"kernel": jnp.asarray(sizes[:30].reshape(6, 5), dtype)},
        "b": {"kernel": jnp.asarray(sizes[30:].reshape(5, 4), dtype)},
    }
    alive = iter([6, 0, 3, 0])  # rows that are not exactly 0 after each round

    def train(params, masks):
        rows = next(alive)
        return jax.tree.map(lambda w: w.at[rows:].set(0), params)

    algorithm = lottery_ticket(train, _pruner(scope))
    state, before = algorithm.init(anchor), None
    for r in range(ROUNDS):
        state, _ = algorithm.step(state)
        kept = {k: np.asarray(m["kernel"]) for k, m in state.masks.items()}
        sparsity = 1 - 0.8 ** (r + 1)
        if scope == "leaf":
            for m in kept.values():
                assert abs(m.sum() - m.size * (1 - sparsity)) < 1
        assert sum(m.sum() for m in kept.values()) == 50 - round(50 * sparsity)
        if before is not None:
            assert not any((kept[k] & ~before[k]).any() for k in kept)
        before = kept


def test_what_train_leaves_under_the_mask_does_not_count():
    """Neither weights that came back nor NaNs; and nothing of it comes out."""
    anchor = {"kernel": jnp.asarray([[1.0, 2.0, 3.0, 4.0, 5.0]])}

    def train(params, masks):
        bad = jnp.asarray([[9.0, jnp.nan, 9.0, 9.0, 9.0]])
        return {"kernel": jnp.where(masks["kernel"], params["kernel"], bad)}

    sparsity = jp.geometric(0.6, steps=3, rounds=3)
    algorithm = lottery_ticket(train, jp.recipes.magnitude(sparsity))
    state = algorithm.init(anchor)
    for keep in (4, 3, 2):  # round(5 * 0.4^(r/3)), by hand
        state, _ = algorithm.step(state)
        expected = [i >= 5 - keep for i in range(5)]
        assert state.masks["kernel"].tolist() == [expected]
    assert state.trained["kernel"].tolist() == [[0, 0, 3, 4, 5]]
    assert algorithm.finish(state)[0]["kernel"].tolist() == [[0, 0, 0, 4, 5]]


@pytest.mark.parametrize(
    ("pruner", "shape"),
    [
        (jp.recipes.n_of_m(2, 4), (8, 6)),
        (
            optax.chain(
                jp.score_by_magnitude(),
                jp.pool_over_axes(),
                jp.keep_top(0.5),
            ),
            (1, 6),
        ),
    ],
)
def test_masks_have_the_shapes_of_the_pruners(pruner, shape):
    anchor = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)))}
    algorithm = lottery_ticket(lambda params, masks: params, pruner)
    state = algorithm.init(anchor)
    assert state.masks["kernel"].shape == shape
    assert bool(state.masks["kernel"].all())
    for _ in range(2):  # a second round with the same weights changes nothing
        state, info = jax.jit(algorithm.step)(state)
        assert state.masks["kernel"].shape == shape
        assert float(info.sparsity) == 0.5


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [PartitionSpec("d"), PartitionSpec(None, "d")])
def test_channel_masks_have_one_sharding_in_all_rounds(spec, axis_type):
    """On an explicit mesh it is part of the type: rounds could not be scanned."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    host = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    channels = optax.chain(
        jp.score_by_magnitude(), jp.pool_over_axes(), jp.keep_top(0.5)
    )
    algorithm = lottery_ticket(lambda params, masks: params, channels)
    with jax.set_mesh(mesh):
        anchor = {"kernel": jax.device_put(host, NamedSharding(mesh, spec))}
        start = algorithm.init(anchor)
        state, _ = jax.lax.scan(lambda s, _: algorithm.step(s), start, length=2)
        trained = jp.sparsify(optax.sgd(0.1), channels).init(anchor)
    types = [jax.typeof(x.masks["kernel"]) for x in (start, state, trained)]
    assert types[0] == types[1] == types[2], "and those of sparsify"
    best = np.sort(np.abs(host).sum(0))[8:]
    kept = np.abs(host).sum(0) >= best.min()
    np.testing.assert_array_equal(state.masks["kernel"][0], kept)


def test_init_is_abstract_and_owns_its_buffers():
    anchor, _ = _problem()
    algorithm = lottery_ticket(lambda params, masks: params, _pruner())
    shapes = jax.eval_shape(algorithm.init, anchor)
    state = algorithm.init(anchor)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    jax.jit(algorithm.step, donate_argnums=0)(state)  # no buffer is in it twice


def test_misuse_is_refused_at_init():
    params, _ = _problem()
    algorithm = lottery_ticket(lambda p, m: p, _pruner(), where=jp.matching("c/.*"))
    with pytest.raises(jp.PruningError, match=r"'c/\.\*' matches no leaf"):
        algorithm.init(params)


# The random ticket.


def test_a_shuffled_mask_keeps_as_much_of_each_leaf():
    rng = np.random.default_rng(0)
    masks = {
        "a": jnp.asarray(rng.random((30, 20)) < 0.3),
        "b": jnp.asarray(rng.random((1, 16)) < 0.5),
        "c": jnp.asarray(True),
        "d": jnp.asarray(rng.random((30, 20)) < 0.3),
    }
    random = jp.masks.shuffle(masks, jax.random.key(1))
    for m, r in zip(*map(jax.tree.leaves, (masks, random)), strict=True):
        assert (r.shape, r.dtype, int(r.sum())) == (m.shape, m.dtype, int(m.sum()))
    assert (random["a"] != masks["a"]).any()
    same = {"x": masks["a"], "y": masks["a"]}
    two = jp.masks.shuffle(same, jax.random.key(2))
    assert (two["x"] != two["y"]).any()  # leaves are shuffled independently
    again = jax.jit(jp.masks.shuffle)(masks, jax.random.key(1))
    assert_same(again, random)


def test_a_shuffled_mask_is_equally_likely_everywhere():
    mask = {"w": jnp.asarray([[True, True, False, False], [False] * 4])}
    keys = jax.random.split(jax.random.key(0), 4_000)
    share = jax.vmap(lambda key: jp.masks.shuffle(mask, key))(keys)["w"].mean(0)
    # 2 of 8, within five standard deviations of a mean of 4,000.
    np.testing.assert_allclose(share, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 4_000))
