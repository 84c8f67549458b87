"""Bounds of a KV cache: shapes, positions, and writes that stay inside.

Shapes are static and raise. Positions may be traced: one outside of the bounds raises
where its value is known, and is otherwise a `checkify` debug check beside a defined
result, which the docstrings of `jprune.attention.cache` state.
"""

from typing import Any

import jax

from jprune._core import base, checks


def check_start(batch: int, length: int, scores: Any, position: Any) -> None:
    """Raises unless the arrays of a stream have its sizes and lie within its length.

    Args:
      batch: number of sequences.
      length: number of positions.
      scores: `(batch, prompt)`.
      position: `(batch,)`, the next position, in [0, length].

    Raises:
      PruningError: names the sizes, or the positions.
    """
    if batch < 0 or length < 1:
        raise base.PruningError(
            f"A stream needs a positive length; got batch={batch}, length={length}."
        )
    if scores.shape[0] != batch or position.shape != (batch,):
        raise base.PruningError(
            f"A stream of {batch} sequences needs scores ({batch}, prompt) and "
            f"positions ({batch},); got {scores.shape} and {position.shape}."
        )
    if scores.shape[1] > length:
        raise base.PruningError(
            f"A prompt of {scores.shape[1]} tokens does not fit a length of {length}."
        )
    checks.check_value(
        lambda x: (x >= 0) & (x <= length),
        position,
        f"The next position has to be in [0, {length}], the length; got {{value}}.",
    )


def check_prompt(
    keys: jax.Array, values: jax.Array, positions: jax.Array | None, stream: Any
) -> None:
    """Raises unless a prompt's rows match each other and fit the stream.

    Args:
      keys: `(batch, kv_heads, prompt, dim)`.
      values: the same shape.
      positions: `(batch, prompt)`; None for those from 0 on.
      stream: `Stream` after the prompt.

    Raises:
      PruningError: names the shapes.
    """
    batch, length = stream.scores.shape
    if keys.ndim != 4 or values.shape != keys.shape or keys.shape[0] != batch:
        raise base.PruningError(
            f"A prompt of {batch} sequences has keys and values of one shape "
            f"({batch}, kv_heads, prompt, dim); got {keys.shape} and {values.shape}."
        )
    if positions is not None and positions.shape != (batch, keys.shape[2]):
        raise base.PruningError(
            f"Keys {keys.shape} need positions {(batch, keys.shape[2])}; got "
            f"{positions.shape}."
        )
    if positions is None and keys.shape[2] > length:
        raise base.PruningError(
            f"A prompt of {keys.shape[2]} tokens does not fit the stream's length of "
            f"{length}: start it with a larger `length`."
        )


def check_batch(cache: Any, stream: Any) -> None:
    """Raises unless a cache and a stream have as many sequences.

    Args:
      cache: a `Cache`.
      stream: a `Stream`.

    Raises:
      PruningError: names both numbers.
    """
    held, batch = cache.positions.shape[0], stream.scores.shape[0]
    if held != batch:
        raise base.PruningError(
            f"The cache holds {held} sequences; the stream has {batch}."
        )


def check_token(cache: Any, k: jax.Array, v: jax.Array) -> None:
    """Raises unless the rows of a token match a cache.

    Args:
      cache: a `Cache`.
      k: `(batch, kv_heads, dim)`.
      v: `(batch, kv_heads, dim)`.

    Raises:
      PruningError: names the shapes.
    """
    batch, heads, dim = sizes(cache, k.shape[1] if k.ndim == 3 else 0)
    if k.shape != (batch, heads, dim) or v.shape[:-1] != k.shape[:-1]:
        raise base.PruningError(
            f"The cache holds {batch} sequences, {heads} KV heads, dim {dim}; got keys "
            f"{k.shape} and values {v.shape}."
        )


def sizes(cache: Any, heads: int) -> tuple[int, int, int]:
    """Returns batch, KV heads and dim of a cache.

    Args:
      cache: a `Cache`.
      heads: what to take for KV heads if the batch is empty, which hides them.

    Returns:
      Three integers.
    """
    rows, dim, _ = cache.keys.shape
    batch = cache.positions.shape[0]
    return batch, rows // batch if batch else heads, dim


def check_used(cache: Any) -> None:
    """Reports a number of used slots that a cache does not have.

    Args:
      cache: a `Cache`.

    Raises:
      PruningError: if `used` is known and below 0 or above the number of slots.
    """
    slots = cache.positions.shape[1]
    checks.check_value(
        lambda x: (x >= 0) & (x <= slots),
        cache.used,
        f"The cache has {slots} slots; used is {{value}}.",
    )


def fits(cache: Any, stream: Any) -> jax.Array:
    """Returns whether a token at the stream's position can be written.

    Its position is one of the stream's, and a slot is free or may be overwritten: a
    cache of `length` slots or more evicts nothing.

    Args:
      cache: a `Cache`.
      stream: a `Stream`.

    Returns:
      `(batch,)` booleans.
    """
    slots, length = cache.positions.shape[1], stream.scores.shape[1]
    room = cache.used < slots if slots >= length else True
    return within(stream.position, length) & room


def within(position: Any, length: int) -> Any:
    """Returns which positions are in [0, length).

    Args:
      position: integers.
      length: number of positions.

    Returns:
      Booleans in the shape of `position`.
    """
    return (position >= 0) & (position < length)


def check_fits(cache: Any, stream: Any) -> None:
    """Reports a token that cannot be written.

    Args:
      cache: a `Cache`.
      stream: a `Stream`.

    Raises:
      PruningError: if the position is known and outside of the stream, or all slots are
        known to be used in a cache that evicts nothing.
    """
    slots, length = cache.positions.shape[1], stream.scores.shape[1]
    checks.check_value(
        lambda x: within(x, length),
        stream.position,
        f"Positions from {length} on, the stream's length, cannot be decoded; got "
        "{value}. Start the stream with a larger `length`.",
    )
    if slots >= length:
        checks.check_value(
            lambda x: x < slots,
            cache.used,
            f"All {slots} slots are used ({{value}}), before as many positions: call "
            "`advance` after the last layer of each token.",
        )


@jax.vmap
def write(x: jax.Array, row: jax.Array, slot: jax.Array) -> jax.Array:
    """Replaces one row of each array; a row whose slot does not exist is dropped.

    Args:
      x: `(rows, slots, ...)`.
      row: `(rows, ...)`, one for each.
      slot: `(rows,)` int32, not negative.

    Returns:
      The array in the shape and type of `x`.
    """
    # Not a select between the row and the one that it replaces: XLA shares the reading
    # of a large array between threads, which takes a CPU longer than all the rest.
    return x.at[slot].set(row.astype(x.dtype), mode="drop")


@jax.vmap
def write_column(x: jax.Array, column: jax.Array, slot: jax.Array) -> jax.Array:
    """Replaces one column of each matrix, as `write`.

    Args:
      x: `(rows, dim, slots)`.
      column: `(rows, dim)`, one for each.
      slot: `(rows,)` int32, not negative.

    Returns:
      The array in the shape and type of `x`.
    """
    return x.at[:, slot].set(column.astype(x.dtype), mode="drop")
