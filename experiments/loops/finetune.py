"""Fine-tuning and evaluating an encoder on sentences of different lengths.

Sentences of similar length share a batch and are padded to one of a few widths, so a
few compilations suffice. The last batch of a width is filled up with rows of weight 0.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.harness import resume
from experiments.loops.distillation import Lesson, exchange, output_losses, token_loss
from experiments.models import bert, encoder
from experiments.tasks.wordpiece import Examples

SAVED = 100  # steps between two checkpoints


class Batch(NamedTuple):
    """A batch of padded sentences.

    Attributes:
      ids: `(batch, width)`, int32.
      types: `(batch, width)`, int32.
      valid: `(batch, width)`, booleans.
      labels: `(batch,)`.
      weights: `(batch,)`, float32: 1, or 0 for a row that only fills the batch.
      rows: `(batch,)`, indices of the examples.
      own: `(batch,)`, booleans: whether the words are the example's own, so that its
        label is valid; otherwise only the teacher's outputs count.
    """

    ids: Any
    types: Any
    valid: Any
    labels: Any
    weights: Any
    rows: Any
    own: Any


class Kept(NamedTuple):
    """How attention is pruned and quantized; see `encoder.encode`.

    Attributes:
      pruning: how much to keep, traced arrays; None for everything.
      progressive: quantization of the operands, static; None for float32.
      shares: token shares of `pruning` as static numbers, so that arrays shrink; None
        for masks only.
    """

    pruning: encoder.Pruning | None = None
    progressive: encoder.Progressive | None = None
    shares: tuple[float, ...] | None = None


DENSE = Kept()


class State(NamedTuple):
    """State of the training; `fixed` params are not trained."""

    params: Any
    fixed: Any
    opt_state: Any


def widths_of(
    lengths: np.ndarray, quantiles: tuple[float, ...] = (0.4, 0.75, 0.95, 1.0)
) -> tuple[int, ...]:
    """Returns the widths that sentences are padded to, multiples of 8."""
    found = np.quantile(lengths, quantiles, method="higher")
    return tuple(sorted({8 * -(-int(width) // 8) for width in found}))


def batches(
    examples: Examples,
    widths: tuple[int, ...],
    size: int,
    rng: np.random.Generator | None = None,
) -> Iterator[Batch]:
    """Yields all examples once, in batches of similar length.

    Args:
      examples: sentences of any length; those beyond the last width are truncated.
      widths: padded widths, ascending.
      size: sentences per batch.
      rng: shuffles examples within their width, and then the batches; None for the
        given order.
    """
    tokens = examples.tokens
    places = np.searchsorted(np.asarray(widths), tokens.lengths)
    places = np.minimum(places, len(widths) - 1)
    found = []
    for place, width in enumerate(widths):
        rows = np.flatnonzero(places == place)
        if rng is not None:
            rows = rng.permutation(rows)
        found += [(rows[i : i + size], width) for i in range(0, len(rows), size)]
    order = range(len(found)) if rng is None else rng.permutation(len(found))
    for i in order:
        rows, width = found[i]
        yield batch_of(examples, rows, width, size)


def batch_of(examples: Examples, rows: np.ndarray, width: int, size: int) -> Batch:
    """Returns the examples of these rows, padded in both dimensions."""
    full = np.concatenate([rows, np.full(size - len(rows), rows[0])])
    tokens = jax.tree.map(lambda x: x[full], examples.tokens)
    short = max(width - tokens.ids.shape[1], 0)
    ids, types = (
        np.pad(x[:, :width], ((0, 0), (0, short))) for x in (tokens.ids, tokens.types)
    )
    valid = np.arange(width) < tokens.lengths[:, None]
    weights = (np.arange(size) < len(rows)).astype(np.float32)
    own = np.ones(size, bool)
    return Batch(ids, types, valid, examples.labels[full], weights, full, own)


def endless(
    examples: Examples, widths: tuple[int, ...], size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Yields the batches of all examples repeatedly, each time in a new order."""
    while True:
        yield from batches(examples, widths, size, rng)


def lessons(
    found: Iterator[Batch], rng: np.random.Generator, share: float, first_word: int
) -> Iterator[Batch]:
    """Yields the batches with exchanged words; see `distillation.exchange`."""
    for batch in found:
        ids, own = exchange(batch.ids, rng, share, first_word)
        yield batch._replace(ids=ids, own=own)


def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Returns AdamW with a linear warm-up over a tenth, and a linear decay to zero."""
    warm = max(steps // 10, 1)
    pieces = (
        optax.linear_schedule(0.0, rate, warm),
        optax.linear_schedule(rate, 0.0, max(steps - warm, 1)),
    )
    schedule = optax.join_schedules(pieces, (warm,))
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01)
    )


def start(params: Any, tx: optax.GradientTransformation, *, fixed: bool) -> State:
    """Returns the initial state.

    Args:
      params: parameters of `bert`, with a head.
      tx: the optimizer.
      fixed: whether to freeze the embeddings, which are half of MiniLM's weights and
        change little on a small task.
    """
    stay = {"embed": params["embed"]} if fixed else {}
    free = {name: value for name, value in params.items() if name not in stay}
    # Copies, since a step donates the state and the next seed starts from the same.
    return jax.tree.map(jnp.copy, State(free, stay, tx.init(free)))


Found = tuple[jax.Array, encoder.Encoded]  # result of `outputs`
Step = Callable[..., tuple[State, jax.Array]]  # result of `make_step`


def outputs(params: Any, batch: Batch, heads: int, kept: Kept) -> Found:
    """Returns the outputs of a batch and the result of the encoder."""
    shares = kept.shares
    slots = None if shares is None else encoder.room(batch.ids.shape[1], shares)
    found = bert.encode(
        params,
        batch.ids,
        batch.types,
        batch.valid,
        heads=heads,
        pruning=kept.pruning,
        progressive=kept.progressive,
        slots=slots,
    )
    return bert.logits(params, found), found


def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each example, or its squared error (regression)."""
    if labels.dtype == jnp.float32:
        return jnp.square(logits[:, 0] - labels)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def make_step(tx: optax.GradientTransformation, heads: int, lesson: Lesson) -> Step:
    """Returns `(state, batch, kept, teacher) -> (state, loss)`, compiled per width.

    The teacher is given by all parameters of a network, which is evaluated dense;
    without a teacher only the labels count.
    """

    @functools.partial(jax.jit, static_argnums=(4, 5), donate_argnums=0)
    def step(
        state: State,
        batch: Batch,
        teacher: Any,
        pruning: Any,
        progressive: Any,
        shares: Any,
    ) -> tuple[State, jax.Array]:
        kept = Kept(pruning, progressive, shares)
        taught = None if teacher is None else outputs(teacher, batch, heads, DENSE)

        def loss(free: Any) -> jax.Array:
            found = outputs({**free, **state.fixed}, batch, heads, kept)
            return objective(found, batch, taught, lesson)

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, state.fixed, opt_state), value

    return lambda state, batch, kept=DENSE, teacher=None: step(
        state, batch, teacher, *kept
    )


def train(
    step: Step,
    state: State,
    found: Iterator[Batch],
    steps: int,
    *,
    kept: Kept = DENSE,
    teacher: Any = None,
    at: Path | None = None,
) -> State:
    """Runs training steps, resuming from the checkpoint of an earlier run.

    Args:
      step: training step, from `make_step`; it donates the state.
      state: state before the first step.
      found: iterator over at least `steps` batches.
      steps: number of steps.
      kept: how attention is pruned.
      teacher: all parameters of the teacher, or None.
      at: path of the checkpoint without its suffix, or None for no checkpoints.
    """
    before = 0
    if at is not None:
        (free, opt_state), before = resume.load(at, (state.params, state.opt_state))
        state = State(free, state.fixed, opt_state)
    for done, batch in enumerate(itertools.islice(found, steps), 1):
        if done > before:
            state, _ = step(state, batch, kept, teacher)
            if at is not None and (done % SAVED == 0 or done == steps):
                resume.save(at, (state.params, state.opt_state), done)
    return state


def objective(
    found: Found, batch: Batch, taught: Found | None, lesson: Lesson
) -> jax.Array:
    """Returns the mean loss of a batch.

    Args:
      found: outputs of the network.
      batch: the batch, with its labels.
      taught: outputs of the teacher, or None for labels only.
      lesson: weights of the distillation.
    """
    logits, encoded = found
    each, tokens = losses(logits, batch.labels), 0.0
    if taught is not None:
        soft = output_losses(logits, taught[0])
        teacher = jnp.where(batch.own, lesson.outputs, 1.0)
        each = (1 - teacher) * each + teacher * soft
        tokens = lesson.tokens * token_loss(encoded, taught[1], batch.weights)
    return (each * batch.weights).sum() / batch.weights.sum() + tokens


class Judged(NamedTuple):
    """Evaluation of an encoder on all examples, on the host.

    Attributes:
      logits: `(n, outputs)`.
      loss: mean loss.
      counts: operation counts of each layer, summed over the examples: `(layers,)`,
        int64.
      alive: `(n, layers, width)`: tokens that remain after the attention of each layer.
    """

    logits: np.ndarray
    loss: float
    counts: encoder.Counts
    alive: np.ndarray


def make_judge(heads: int, widths: tuple[int, ...], size: int) -> Callable[..., Judged]:
    """Returns `(params, examples, kept) -> Judged`, compiled per width."""

    @functools.partial(jax.jit, static_argnums=(3, 4))
    def run(
        params: Any, batch: Batch, pruning: Any, progressive: Any, shares: Any
    ) -> Any:
        kept = Kept(pruning, progressive, shares)
        logits, found = outputs(params, batch, heads, kept)
        each = losses(logits, batch.labels)
        weights = batch.weights.astype(jnp.int32)
        counts = jax.tree.map(lambda x: (x * weights).sum(-1), found.counts)
        return logits, each, found.alive.swapaxes(0, 1), counts

    def judge(params: Any, examples: Examples, kept: Kept = DENSE) -> Judged:
        found, counts, rows = [], [], []
        for batch in batches(examples, widths, size):
            *some, count = jax.device_get(run(params, batch, *kept))
            real = batch.weights > 0
            rows.append(batch.rows[real])
            some[2] = _wide(some[2], widths[-1])
            found.append([x[real] for x in some])
            counts.append(jax.tree.map(lambda x: x.astype(np.int64), count))
        order = np.argsort(np.concatenate(rows))
        logits, each, alive = (
            np.concatenate(parts)[order] for parts in zip(*found, strict=True)
        )
        total = jax.tree.map(lambda *x: sum(x), *counts)
        return Judged(logits, float(each.mean()), total, alive)

    return judge


def _wide(alive: np.ndarray, width: int) -> np.ndarray:
    return np.pad(alive, ((0, 0), (0, 0), (0, width - alive.shape[2])))
