"""The training loop of image classifiers: pure, scanned over steps, and batched.

`fit` trains one network. `fit_grid` runs the same loop for a grid of networks, one per
(level, seed), in a single compilation: the level is any number that the optimizer is
built from, such as a traced sparsity.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.tasks.data import Examples

Apply = Callable[[Any, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """State of the training."""

    params: Any
    opt_state: Any


class Curves(NamedTuple):
    """Loss and accuracy of each step on its batch, `(steps,)` per network."""

    loss: jax.Array
    accuracy: jax.Array


class Grid(NamedTuple):
    """Result of `fit_grid`; the leading axes of arrays are `(levels, seeds)`.

    Attributes:
      state: final params and optimizer state.
      curves: loss and accuracy of each step.
      seconds: wall-clock time of the training, without compilation.
      compile_seconds: wall-clock time of the compilation.
    """

    state: TrainState
    curves: Curves
    seconds: float
    compile_seconds: float


def epoch_batches(key: jax.Array, n: int, batch_size: int, steps: int) -> jax.Array:
    """Returns example indices `(steps, batch_size)`: one fresh permutation per epoch.

    The permutations are concatenated before they are cut into batches, so every
    example is drawn once per epoch even if `batch_size` does not divide `n`.
    """
    epochs = -(-steps * batch_size // n)
    keys = jax.random.split(key, epochs)
    stream = jax.vmap(lambda k: jax.random.permutation(k, n))(keys).reshape(-1)
    return stream[: steps * batch_size].reshape(steps, batch_size)


def advance(
    apply: Apply,
    tx: optax.GradientTransformation,
    examples: Examples,
    state: TrainState,
    batches: jax.Array,
) -> tuple[TrainState, Curves]:
    """Returns the state after one step per row of `batches`, and the curves."""

    def loss_fn(params: Any, images: jax.Array, labels: jax.Array):
        logits = apply(params, images)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return loss.mean(), (logits.argmax(-1) == labels).mean()

    def step(state: TrainState, batch: jax.Array):
        images, labels = examples.images[batch], examples.labels[batch]
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        figures, grads = grad_fn(state.params, images, labels)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state), Curves(*figures)

    return jax.lax.scan(step, state, batches)


def fit(
    apply: Apply,
    tx: optax.GradientTransformation,
    params: Any,
    examples: Examples,
    key: jax.Array,
    *,
    steps: int,
    batch_size: int,
) -> tuple[TrainState, Curves]:
    """Trains one network; a pure function, for `jit` and `vmap`.

    Args:
      apply: `(params, images) -> logits`.
      tx: optimizer, sparsified or not.
      params: initial parameters.
      examples: train images and labels, on the device.
      key: PRNG key of the batches.
      steps: number of updates.
      batch_size: examples per update.

    Returns:
      The final state and the curves.
    """
    state = TrainState(params, tx.init(params))
    batches = epoch_batches(key, len(examples.labels), batch_size, steps)
    return advance(apply, tx, examples, state, batches)


def fit_grid(
    apply: Apply,
    tx_for: Callable[[jax.Array], optax.GradientTransformation],
    params: Any,
    examples: Examples,
    keys: jax.Array,
    levels: jax.Array,
    *,
    steps: int,
    batch_size: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Grid:
    """Trains one network per (level, seed) in one compilation.

    Seed `i` has the same batches at every level, so levels can be compared in pairs.

    Args:
      apply: `(params, images) -> logits`.
      tx_for: `level -> optimizer`; the level is traced.
      params: initial parameters; the leading axis of leaves is `(seeds,)`.
      examples: train images and labels, on the device.
      keys: `(seeds,)` PRNG keys of the batches.
      levels: `(levels,)` numbers.
      steps: number of updates of each network.
      batch_size: examples per update.
      on_progress: called with the number of finished steps, up to 20 times.

    Returns:
      States and curves with leading axes `(levels, seeds)`, and times.
    """

    def start(level: jax.Array, params: Any) -> TrainState:
        return TrainState(params, tx_for(level).init(params))

    def go(level: jax.Array, state: TrainState, batches: jax.Array, data: Examples):
        return advance(apply, tx_for(level), data, state, batches)

    axes = network_axes(jax.eval_shape(start, levels[0], one_network(params)))
    over_seeds = jax.vmap(start, in_axes=(None, 0), out_axes=axes)
    begin_all = jax.vmap(over_seeds, in_axes=(0, None), out_axes=axes)
    state = jax.jit(begin_all)(levels, params)
    count = len(examples.labels)
    draw = jax.vmap(lambda key: epoch_batches(key, count, batch_size, steps))
    batches = jax.jit(draw)(keys)

    over_seeds = jax.vmap(go, in_axes=(None, axes, 0, None), out_axes=(axes, 0))
    grid = jax.vmap(over_seeds, in_axes=(0, axes, None, None), out_axes=(axes, 0))
    # Python runs the scan in equal pieces, to report progress without a callback in
    # the compiled loop.
    piece = steps // max(k for k in range(1, 21) if steps % k == 0)
    begin = time.perf_counter()
    compiled = (
        jax.jit(grid).lower(levels, state, batches[:, :piece], examples).compile()
    )
    ready = time.perf_counter()
    curves = []
    for first in range(0, steps, piece):
        rows = batches[:, first : first + piece]
        state, part = jax.block_until_ready(compiled(levels, state, rows, examples))
        curves.append(part)
        on_progress(first + piece)
    end = time.perf_counter()
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), *curves)
    return Grid(state, joined, end - ready, ready - begin)


def network_axes(state: TrainState) -> TrainState:
    """Returns the `vmap` axis of each leaf: None for step counts, else 0.

    All networks are at the same step. With a single count, a `lax.cond` on it stays a
    branch; with a count per network it would become a select, which computes the masks
    at every step only to discard them.
    """

    def axis(path: Any, leaf: Any) -> int | None:
        del leaf
        return None if getattr(path[-1], "name", None) == "count" else 0

    return jax.tree_util.tree_map_with_path(axis, state)


def one_network(params: Any) -> Any:
    """Returns the parameters of the first network of a batch."""
    return jax.tree.map(lambda leaf: leaf[0], params)


def classes(apply: Apply, params: Any, images: jax.Array) -> jax.Array:
    """Returns the most likely class of each image, `(n,)`."""
    n, piece = len(images), 256  # in pieces, to bound the memory
    rows = -(-n // piece)
    indices = jnp.arange(rows * piece).reshape(rows, piece) % n
    found = jax.lax.map(lambda row: apply(params, images[row]).argmax(-1), indices)
    return found.reshape(-1)[:n]


def grid_classes(apply: Apply, params: Any, images: jax.Array) -> jax.Array:
    """Returns the predicted classes of a grid of networks, `(levels, seeds, n)`."""

    def one(params: Any, images: jax.Array) -> jax.Array:
        return classes(apply, params, images)

    over = jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(0, None))
    return jax.jit(over)(params, images)
