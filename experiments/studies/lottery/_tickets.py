"""Training, rewinding and measuring lottery tickets of a residual network.

The building blocks of the study `rewinding`. Everything is batched over seeds.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jprune as jp
from experiments.loops import train
from experiments.models import resnet
from experiments.tasks import data
from jprune.training import (
    TicketState,
    angle,
    interpolation_barrier,
    l2_distance,
    lottery_ticket,
)


class Settings(NamedTuple):
    """Settings of the study.

    Attributes:
      dataset: name of the data set, one of `data.SETS`.
      pool: side of the windows, in pixels, over which images are averaged.
      seeds: seeds of initialisation and batches; the splits have a fixed seed.
      steps: training steps of the dense network.
      batch_size: examples per step.
      learning_rate: initial learning rate of SGD with momentum; it drops to a tenth
        after half of the steps, and to a hundredth after three quarters.
      weight_decay: coefficient of the weight decay, which is added to the gradient.
      depth: depth of the residual network, 6n + 2.
      width: channels of its first stage.
      rewinds: rewind points as shares of the steps, ascending; the first is 0.
      per_round: share of the remaining weights that a round prunes.
      rounds: rounds whose tickets are reported, ascending.
      calibration: number of train images for the statistics of batch normalization.
      barrier_images: number of validation images for the barrier.
      points: number of points on the line between two networks.
    """

    dataset: str = "fashion-mnist"
    pool: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 0.5
    weight_decay: float = 1e-4
    depth: int = 8
    width: int = 8
    rewinds: tuple[float, ...] = (0.0, 0.03, 0.1, 0.25)
    per_round: float = 0.4
    rounds: tuple[int, ...] = (3, 5)
    calibration: int = 512
    barrier_images: int = 1_500
    points: int = 7


class Draws(NamedTuple):
    """Initial parameters, batches and keys; the leading axis of leaves is `(seeds,)`.

    Attributes:
      params: initial parameters.
      others: initial parameters for random reinitialization.
      batches: indices of examples, `(seeds, steps, batch_size)`.
      reordered: batches in another order.
      key: key for shuffled masks.
    """

    params: Any
    others: Any
    batches: jax.Array
    reordered: jax.Array
    key: jax.Array


class Ticket(NamedTuple):
    """The trained tickets of one round, of all seeds."""

    masks: Any
    params: Any


def pooled(window: int, x: np.ndarray) -> jax.Array:
    """Average-pools images; returns labels unchanged."""
    if x.ndim < 4 or window == 1:
        return jnp.asarray(x)
    n, height, width, channels = x.shape
    parts = (n, height // window, window, width // window, window, channels)
    return jnp.asarray(x.reshape(parts).mean((2, 4)))


def drawn(settings: Settings, examples: data.Examples) -> Draws:
    """Returns the initial parameters and the batches of all seeds."""
    init = functools.partial(
        resnet.init,
        image_shape=examples.images.shape[1:],
        classes=data.CLASSES,
        depth=settings.depth,
        width=settings.width,
    )
    batches = functools.partial(
        train.epoch_batches,
        n=len(examples.labels),
        batch_size=settings.batch_size,
        steps=settings.steps,
    )

    def one(seed: jax.Array) -> Draws:
        first, second, *rest = jax.random.split(jax.random.key(seed), 5)
        order, other, key = rest
        return Draws(init(first), init(second), batches(order), batches(other), key)

    return jax.jit(jax.vmap(one))(jnp.asarray(settings.seeds))


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """Returns SGD with momentum and two drops of the learning rate."""
    drops = {settings.steps // 2: 0.1, settings.steps * 3 // 4: 0.1}
    rate = optax.schedules.piecewise_constant_schedule(settings.learning_rate, drops)
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay), optax.sgd(rate, momentum=0.9)
    )


def optimizer_state(settings: Settings, params: Any) -> Any:
    """Returns the optimizer's state before the first step of each seed."""
    return jax.vmap(optimizer(settings).init)(params)


def anchors(
    settings: Settings, examples: data.Examples, draws: Draws, rewinds: list[int]
) -> dict[int, tuple[Any, Any]]:
    """Returns params and optimizer state of the dense run at each rewind step."""
    go = functools.partial(train.advance, resnet.apply, optimizer(settings))
    go = jax.jit(jax.vmap(go, in_axes=(None, 0, 0)))
    found = {0: (draws.params, optimizer_state(settings, draws.params))}
    for before, k in itertools.pairwise(rewinds):
        state = train.TrainState(*found[before])
        state, _ = go(examples, state, draws.batches[:, before:k])
        found[k] = (state.params, state.opt_state)
    return found


def pruner(settings: Settings) -> jp.Pruner:
    """Returns global magnitude pruning, with the same share in each round."""
    last = settings.rounds[-1]
    sparsity = 1 - (1 - settings.per_round) ** last
    schedule = jp.geometric(sparsity, steps=last, rounds=last)
    return jp.recipes.magnitude(schedule, scope="global")


def ticket(settings: Settings) -> jp.Algorithm:
    """Returns the algorithm; its rounds have the arguments of `train_masked`."""
    tx = jp.sparsify(optimizer(settings), pruner(settings), every=None)

    def train_masked(params, masks, opt_state, batches, examples):
        held: Any = tx.init(params)
        held = held._replace(masks=masks, inner=opt_state)
        state = train.TrainState(params, held)
        return train.advance(resnet.apply, tx, examples, state, batches)[0].params

    return lottery_ticket(train_masked, pruner(settings))


def round_of(
    settings: Settings, examples: data.Examples, told: Callable[[], None]
) -> Callable[..., TicketState]:
    """Returns `(state, opt_state, batches) -> state`, a round of all seeds."""

    def one(state, opt_state, batches, examples):
        return ticket(settings).step(state, opt_state, batches, examples)[0]

    over = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))

    def step(state, opt_state, batches):
        state = jax.block_until_ready(over(state, opt_state, batches, examples))
        told()
        return state

    return step


def find(
    settings: Settings,
    step: Callable[..., TicketState],
    anchor: tuple[Any, Any],
    batches: jax.Array,
) -> dict[int, Ticket]:
    """Returns the tickets of the reported rounds, and of round 0 (dense)."""
    params, opt_state = anchor
    state = jax.jit(jax.vmap(ticket(settings).init))(params)
    tickets = {}
    for r in range(settings.rounds[-1] + 1):
        masks, state = state.masks, step(state, opt_state, batches)
        if r in (0, *settings.rounds):
            tickets[r] = Ticket(masks, state.trained)
    return tickets


def retrained(
    settings: Settings,
    step: Callable[..., TicketState],
    anchor: tuple[Any, Any],
    tickets: dict[int, Ticket],
    batches: jax.Array,
) -> dict[int, Ticket]:
    """Returns the reported tickets after another training, from an anchor."""
    params, opt_state = anchor
    state = jax.jit(jax.vmap(ticket(settings).init))(params)
    found = {}
    for r in settings.rounds:
        masks = tickets[r].masks
        trained = step(state._replace(masks=masks), opt_state, batches).trained
        found[r] = Ticket(masks, trained)
    return found


def figures_of(
    settings: Settings,
    splits: data.Splits,
    tickets: dict[int, Ticket],
    again: dict[int, Ticket] | None = None,
) -> dict[str, Any]:
    """Returns accuracies in percent and stabilities, `[rounds][seeds]`.

    Args:
      settings: settings of the study.
      splits: data to measure on.
      tickets: tickets by round; round 0 is dense, and skipped if there are others.
      again: tickets after training with another order of the batches; None to skip
        the stabilities.
    """
    rounds = [r for r in tickets if r > 0] or [0]
    params = [tickets[r].params for r in rounds]
    calibration = splits.train.images[: settings.calibration]
    right = functools.partial(right_answers, calibration)
    found = {
        f"{name}_accuracy": [
            percent(right(w, split.images, split.labels)) for w in params
        ]
        for name, split in (("validation", splits.validation), ("test", splits.test))
    }
    if again is None:
        return found
    some = jax.tree.map(lambda x: x[: settings.barrier_images], splits.validation)
    for r in rounds:
        (masks, one), other = tickets[r], again[r].params
        measured = {
            "pruning": distances(masks, one, tickets[0].params),
            "order": distances(masks, one, other),
            "order_barrier": barriers(settings.points, calibration, some, one, other),
        }
        for name, value in plain(measured).items():
            found.setdefault(name, []).append(value)
    return found


def plain(measured: dict[str, Any]) -> dict[str, list[float]]:
    """Returns the measurements as flat lists, one number per seed."""
    flat = {
        f"{name}_{unit}": value
        for name in ("pruning", "order")
        for unit, value in zip(("l2", "degrees"), measured[name], strict=True)
    }
    flat["order_barrier"] = measured["order_barrier"]
    return {
        name: np.round(np.asarray(x, np.float64), 4).tolist()
        for name, x in flat.items()
    }


@jax.jit
@jax.vmap
def distances(masks: Any, a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the L2 distance and the angle in degrees, on the kept weights."""
    return l2_distance(a, b, masks), jnp.degrees(angle(a, b, masks))


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, None, None))
def right_answers(
    calibration: jax.Array, params: Any, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Returns whether each image is classified correctly, `(seeds, n)`."""
    stats = resnet.batch_stats(params, calibration)
    apply = functools.partial(resnet.apply, stats=stats)
    return train.classes(apply, params, images) == labels


@functools.partial(jax.jit, static_argnums=0)
def barriers(
    points: int, calibration: jax.Array, examples: data.Examples, a: Any, b: Any
) -> jax.Array:
    """Returns the error barrier between networks in points, `(seeds,)`."""

    def one(a: Any, b: Any) -> jax.Array:
        def error(params: Any) -> jax.Array:
            one_net = jax.tree.map(lambda w: w[None], params)
            right = right_answers(calibration, one_net, *examples)
            return 100 * (1 - right.mean())

        return interpolation_barrier(error, a, b, points=points)

    return jax.vmap(one)(a, b)


def percent(right: jax.Array) -> list[float]:
    """Returns the share of True along the last axis in percent."""
    return np.round(100 * np.asarray(right).mean(-1), 3).tolist()
