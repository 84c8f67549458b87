"""The methods that `bip_vs_imp` compares, as pure functions of a key and rates.

Each trains one network and returns it sparse. `vmap` over keys runs several seeds, and
over rates the trials of a search. For the same key, all methods have the same initial
weights and batches. Cost is counted in gradient evaluations.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jprune as jp
from experiments import models
from experiments.loops import train
from experiments.tasks import data
from jprune import training
from jprune.learned import bilevel


class Task(NamedTuple):
    """The task; everything except the examples is static.

    Attributes:
      examples: train images and labels, on the device.
      batch_size: examples per gradient evaluation.
      steps: gradient evaluations of the dense training, and of one round of IMP.
      rewind: step that IMP rewinds to.
      hidden: widths of the network's hidden layers.
      min_kept: minimum number of weights that BiP keeps in each layer.
    """

    examples: data.Examples
    batch_size: int
    steps: int
    rewind: int
    hidden: tuple[int, ...]
    min_kept: int


class Rates(NamedTuple):
    """The tuned hyper-parameters of a method.

    Attributes:
      weights: peak learning rate of SGD for the weights.
      decay: weight decay.
      scores: learning rate of the scores, for methods with scores.
    """

    weights: Any
    decay: Any
    scores: Any


class Draws(NamedTuple):
    """Initial params, and keys of the batches and masks."""

    params: Any
    dense: jax.Array
    lower: jax.Array
    upper: jax.Array
    masks: jax.Array


def draws(task: Task, key: jax.Array) -> Draws:
    """Returns the initial params and the keys of one seed."""
    first, *rest = jax.random.split(key, 5)
    shape = task.examples.images.shape[1:]
    return Draws(models.mlp.init(first, shape, data.CLASSES, hidden=task.hidden), *rest)


def loss(params: Any, batch: Any) -> jax.Array:
    """Returns the mean cross-entropy of a batch."""
    logits = models.mlp.apply(params, batch.images)
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, batch.labels
    ).mean()


def sgd(rates: Rates, steps: int) -> optax.GradientTransformation:
    """Returns SGD with momentum, weight decay, a short warm-up and a cosine decay."""
    unit = optax.schedules.warmup_cosine_decay_schedule(
        0.0, 1.0, warmup_steps=max(steps // 20, 1), decay_steps=steps
    )
    rate = lambda step: rates.weights * unit(step)  # noqa: E731
    return optax.chain(
        optax.add_decayed_weights(rates.decay), optax.sgd(rate, momentum=0.9)
    )


def indices(task: Task, key: jax.Array, steps: int) -> jax.Array:
    """Returns the batches of a training as indices `(steps, batch_size)`."""
    return train.epoch_batches(key, len(task.examples.labels), task.batch_size, steps)


def fit(task: Task, tx: Any, params: Any, state: Any, batches: jax.Array):
    """Returns params and optimizer state after training on the batches."""
    begin = train.TrainState(params, state)
    after, _ = train.advance(models.mlp.apply, tx, task.examples, begin, batches)
    return after.params, after.opt_state


def dense(task: Task, rates: Rates, drawn: Draws, trained: Any, sparsity: Any) -> Any:
    """Returns the dense network, from which other methods start."""
    del trained, sparsity
    tx = sgd(rates, task.steps)
    batches = indices(task, drawn.dense, task.steps)
    return fit(task, tx, drawn.params, tx.init(drawn.params), batches)[0]


def holding(tx: optax.GradientTransformation, params: Any, masks: Any):
    """Returns an optimizer with fixed masks, and its state."""
    tx = jp.sparsify(tx, jp.recipes.magnitude(0.0), every=None)
    state: Any = tx.init(params)
    return tx, state._replace(masks=masks)


def fine_tuned(task: Task, rates: Rates, params: Any, masks: Any, key: Any, steps: int):
    """Returns a masked network after further training."""
    tx, state = holding(sgd(rates, steps), params, masks)
    params = jp.apply(params, masks)
    return fit(task, tx, params, state, indices(task, key, steps))[0]


def one_shot(task: Task, rates: Rates, drawn: Draws, trained: Any, sparsity: Any):
    """Prunes the dense network by global magnitude, and fine-tunes."""
    pruned, masks = jp.prune(trained, jp.recipes.magnitude(sparsity, scope="global"))
    return fine_tuned(task, rates, pruned, masks, drawn.lower, task.steps)


def random(task: Task, rates: Rates, drawn: Draws, trained: Any, sparsity: Any):
    """Trains a random mask with Erdos-Renyi densities from initialization."""
    del trained
    pruner = jp.recipes.random_erk(sparsity, drawn.masks)
    pruned, masks = jp.prune(drawn.params, pruner)
    return fine_tuned(task, rates, pruned, masks, drawn.lower, 2 * task.steps)


def hydra(task: Task, rates: Rates, drawn: Draws, trained: Any, sparsity: Any):
    """Learns the mask of the frozen dense network by scores, then fine-tunes."""
    search = jp.recipes.hydra(
        loss, sparsity, steps=task.steps, learning_rate=rates.scores
    )
    rows = indices(task, drawn.upper, task.steps)
    state = search.init(trained, drawn.masks)
    state, _ = jax.lax.scan(
        lambda s, row: search.step(s, jax.tree.map(lambda x: x[row], task.examples)),
        state,
        rows,
    )
    params, masks = search.finish(state)
    return fine_tuned(task, rates, params, masks, drawn.lower, task.steps)


def bip(
    task: Task,
    rates: Rates,
    drawn: Draws,
    trained: Any,
    sparsity: Any,
    *,
    steps: int,
    climb: float = 0.0,
    hypergradient: bilevel.Hypergradient = bilevel.direct_gradient,
    tied: bool = False,
):
    """Alternates updates of mask and weights, two gradient evaluations per step.

    Args:
      task: the task.
      rates: hyper-parameters.
      drawn: initial params and keys.
      trained: the dense network.
      sparsity: target sparsity.
      steps: number of BiP steps, with two gradient evaluations each.
      climb: share of the steps in which the sparsity increases to the target by the
        cubic schedule; 0 for the target from step 0, as published.
      hypergradient: gradient of the upper level.
      tied: as in `jprune.learned.bilevel.bip`.
    """
    target = sparsity
    if climb:
        target = jp.cubic(sparsity, begin=0, steps=max(round(climb * steps), 1))
    fall = optax.schedules.cosine_decay_schedule(1.0, steps)
    method = bilevel.bip(
        loss,
        jp.keep_top(target, scope="global", min_kept=task.min_kept),
        lower=sgd(rates, steps),
        upper=optax.sgd(lambda step: rates.scores * fall(step), momentum=0.9),
        hypergradient=hypergradient,
        tied=tied,
    )

    def step(state: Any, rows: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        lower, upper = (
            jax.tree.map(lambda x, row=row: x[row], task.examples) for row in rows
        )
        lower = jax.tree.map(lambda x: x[None], lower)  # one lower step
        return method.step(state, lower, upper)[0], None

    rows = (indices(task, drawn.lower, steps), indices(task, drawn.upper, steps))
    state, _ = jax.lax.scan(step, method.init(trained), rows)
    return method.finish(state)[0]


def rounds(sparsities: tuple[float, ...], rate: float = 0.2) -> tuple[float, ...]:
    """Returns the sparsity after each round of IMP, including all targets.

    Between two targets, all rounds prune the same share of the remaining weights, as
    close to the rate as a whole number of rounds allows.
    """
    found, before = [], 0.0
    for target in sparsities:
        left = (1 - target) / (1 - before)
        count = max(round(math.log(left) / math.log(1 - rate)), 1)
        found += [1 - (1 - before) * left ** ((i + 1) / count) for i in range(count)]
        found[-1], before = target, target
    return tuple(found)


def imp(
    task: Task,
    rates: Rates,
    drawn: Draws,
    trained: Any,
    sparsity: Any,
    *,
    schedule: tuple[float, ...],
    steps: int,
):
    """Prunes in rounds, rewinding weights, optimizer and batches to an early step.

    Args:
      task: the task.
      rates: hyper-parameters.
      drawn: initial params and keys.
      trained: unused, since the first round trains the dense network.
      sparsity: unused, since the schedule determines it.
      schedule: sparsity after each round.
      steps: training steps of each round, counted from the first step.

    Returns:
      The trained tickets, stacked, one for each sparsity of the schedule.
    """
    del trained, sparsity
    tx = sgd(rates, steps)
    rewind = min(task.rewind, steps // 4)
    batches = indices(task, drawn.dense, steps)
    anchor, clock = fit(task, tx, drawn.params, tx.init(drawn.params), batches[:rewind])
    tx, held = holding(tx, anchor, None)

    def train_ticket(params: Any, masks: Any) -> Any:
        # Momentum, step count and batches are those of the rewind step.
        state = held._replace(masks=masks, inner=clock)
        return fit(task, tx, params, state, batches[rewind:])[0]

    level = jnp.asarray((*schedule, schedule[-1]), jnp.float32)
    pruner = jp.recipes.magnitude(lambda step: level[step], scope="global")
    method = training.lottery_ticket(train_ticket, pruner)

    def one_round(state: Any, _: None) -> tuple[Any, Any]:
        state, _ = method.step(state)
        return state, state.trained

    state = method.init(anchor)
    _, each = jax.lax.scan(one_round, state, length=len(schedule) + 1)
    return jax.tree.map(lambda leaf: leaf[1:], each)


def accuracy(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the accuracy in [0, 1]."""
    found = train.classes(models.mlp.apply, params, images)
    return (found == labels).mean()


def bip_variants() -> dict[str, Callable[..., Any]]:
    """Returns the variants of BiP, by implicit term and sparsity schedule."""
    true = functools.partial(bilevel.implicit_gradient, gamma=1.0)
    reference = functools.partial(bilevel.reference_gradient, gamma=1e4)
    return {
        "BiP": bip,
        "BiP, implicit term": functools.partial(bip, hypergradient=true),
        "BiP as in its code": functools.partial(
            bip, hypergradient=reference, tied=True
        ),
        "BiP, climbing": functools.partial(bip, climb=0.5),
    }
