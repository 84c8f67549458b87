"""Training a residual network, pruning its channels at full size, and training on.

Pruned channels are taken out of every sum (`jprune.graph.without_entries`) while all
arrays keep their sizes, so one compilation serves every choice of what to keep.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.loops import train
from experiments.models import resnet
from experiments.tasks import data
from jprune import graph as jg


class Course(NamedTuple):
    """Training settings of a residual network.

    Attributes:
      steps: training steps of the dense network.
      extra: training steps after pruning.
      batch_size: examples per step.
      depth: layers of the residual network.
      width: channels of its first stage.
      rate: peak learning rate.
    """

    steps: int = 300
    extra: int = 150
    batch_size: int = 64
    depth: int = 8
    width: int = 16
    rate: float = 0.1


def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Returns SGD with momentum, warm-up and a cosine decay."""
    schedule = optax.schedules.warmup_cosine_decay_schedule(
        0.0, rate, warmup_steps=max(steps // 10, 1), decay_steps=steps
    )
    decayed = optax.add_decayed_weights(1e-4)
    return optax.chain(decayed, optax.sgd(schedule, momentum=0.9))


def trainer(
    tx: optax.GradientTransformation,
    splits: data.Splits,
    init: Any,
    steps: int,
    batch_size: int,
    apply: train.Apply = resnet.apply,
) -> Callable[[jax.Array], Any]:
    """Returns the jitted training of a dense network, `key -> params`.

    Args:
      tx: the optimizer.
      splits: the data; the train split is used.
      init: `key -> params`.
      steps: number of training steps.
      batch_size: examples per step.
      apply: `(params, images) -> logits`.
    """

    @jax.jit
    def fit(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        state, _ = train.fit(
            apply,
            tx,
            init(first),
            splits.train,
            second,
            steps=steps,
            batch_size=batch_size,
        )
        return state.params

    return fit


def logits_of(params: Any, calibration: jax.Array, images: jax.Array) -> jax.Array:
    """Returns logits with normalization statistics of the calibration images."""
    return resnet.apply(params, images, resnet.batch_stats(params, calibration))


def tuned(
    course: Course, splits: data.Splits, params: Any, keep: Any, key: jax.Array
) -> tuple[float, float]:
    """Returns the test accuracy right after pruning, and after training on.

    Args:
      course: training settings.
      splits: the data.
      params: parameters of the trained network.
      keep: a boolean mask for each group of the network.
      key: PRNG key of the batches.

    Returns:
      Two accuracies in percent.
    """
    images = splits.train.images
    go = _compiled(course, len(images), images.shape[1:], len(splits.test.labels))
    before, after = go(params, keep, splits, key)
    return float(before), float(after)


@functools.lru_cache(maxsize=1)
def _compiled(course: Course, count: int, shape: Any, test: int) -> Any:
    """One compilation of fine-tuning and evaluation for all choices of what to keep."""
    training, judging = _graphs(course, count, shape, test)
    tx = optimizer(course.rate, course.extra)

    @jax.jit
    def go(params: Any, keep: Any, splits: data.Splits, key: jax.Array) -> Any:
        judge = jg.without_entries(judging, keep)

        def percent(params: Any) -> jax.Array:
            found = judge(params, splits.train.images, splits.test.images)
            return 100 * (found.argmax(-1) == splits.test.labels).mean()

        state, _ = train.fit(
            jg.without_entries(training, keep),
            tx,
            params,
            splits.train,
            key,
            steps=course.extra,
            batch_size=course.batch_size,
        )
        return percent(params), percent(state.params)

    return go


def _graphs(
    course: Course, count: int, shape: Any, test: int
) -> tuple[jg.Graph, jg.Graph]:
    """Traces of a training step and of the evaluation on the test split."""

    def images(n: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, *shape), jnp.float32)

    init = functools.partial(
        resnet.init, image_shape=shape, depth=course.depth, width=course.width
    )
    params = jax.eval_shape(init, jax.random.key(0))
    training = jg.trace(resnet.apply, params, images(course.batch_size))
    return training, jg.trace(logits_of, params, images(count), images(test))
