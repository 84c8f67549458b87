"""An encoder whose attention prunes tokens and heads and fetches fewer values and bits.

Built on `jprune.attention`, with each of SpAtten's techniques switched on its own:

- tokens: after the attention of a layer the least important tokens leave, and take no
  part in that layer's output projection and feed-forward half nor in anything later;
- heads: likewise the least important heads, of each sentence, before a layer;
- values: of each row of probabilities only the largest fetch their values;
- bits: queries, keys and values in few bits, of keys the upper ones first.

How much is kept is data (`Pruning`, arrays), so one compilation serves all schedules,
and a sentence keeps a share of its own tokens, whatever it is padded to. What is
pruned is masked; where `slots` says how many tokens a layer has room for, survivors
are also moved together and the arrays shrink. That changes no result: it is what makes
pruning fast.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.models import layers
from jprune import attention as ja
from jprune.attention import cascade, scores, softmax, sort_keys, top_mask

Params = dict[str, Any]


class Pruning(NamedTuple):
    """How much of each layer is kept; may be traced.

    Attributes:
      tokens: `(layers,)`, the share of a sentence's own tokens that leaves the
        attention of each layer; not increasing.
      heads: `(layers,)`, how many heads each layer computes; not increasing, the
        first one all.
      values: `(layers,)`, the share of a row's keys whose values are fetched.
    """

    tokens: jax.Array
    heads: jax.Array
    values: jax.Array


class Progressive(NamedTuple):
    """How attention's operands are fetched; static.

    Attributes:
      bits: Of each.
      threshold: A row whose largest probability is below fetches the keys' lower bits.
    """

    bits: ja.Bits
    threshold: float = 0.1


class Counts(NamedTuple):
    """What a layer worked with, `(batch,)` each; `(layers, batch)` in the end.

    Attributes:
      tokens: Tokens in attention.
      after: Tokens that leave it.
      heads: Heads.
      spoken: Tokens that leave it, over heads.
      pairs: Pairs of a query and a key that were multiplied, over heads.
      products: Pairs of a query and a value that were multiplied, over heads.
      unsure: Rows of probabilities, over heads, that asked for the lower bits.
      fetched: Rows of queries, keys, lower bits and values, over heads, that were
        read; those of a head are read once for all queries.
    """

    tokens: jax.Array
    after: jax.Array
    heads: jax.Array
    spoken: jax.Array
    pairs: jax.Array
    products: jax.Array
    unsure: jax.Array
    fetched: ja.Fetched


class Encoded(NamedTuple):
    """What the last layer gives.

    Attributes:
      x: `(batch, slots, width)`.
      valid: `(batch, slots)`, False where a slot is empty.
      alive: `(layers, batch, length)`: which tokens leave the attention of each
        layer, by their places in the sentence.
      counts: Of each layer.
      states: Of each layer, its output `(batch, slots, width)`; with `slots`, of the
        tokens that it had room for.
    """

    x: jax.Array
    valid: jax.Array
    alive: jax.Array
    counts: Counts
    states: tuple[jax.Array, ...]


def init_layer(key: jax.Array, width: int, hidden: int) -> Params:
    """Returns the parameters of a layer."""
    keys = jax.random.split(key, 6)
    sizes = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    sizes |= {"up": (width, hidden), "down": (hidden, width)}
    drawn: Params = {
        name: layers.init_dense(k, *size)
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    return drawn | {f"norm{i}": layers.init_norm(width) for i in (1, 2)}


def encode(
    params: Sequence[Params],
    x: jax.Array,
    valid: jax.Array,
    *,
    heads: int,
    after: bool,
    epsilon: float = 1e-5,
    pruning: Pruning | None = None,
    progressive: Progressive | None = None,
    slots: tuple[int, ...] | None = None,
) -> Encoded:
    """Returns the last layer's tokens.

    Args:
      params: Of the layers, see `init_layer`.
      x: `(batch, length, width)`.
      valid: `(batch, length)`, False where a sentence is padded. The first token is
        never pruned: it is what a classifier reads.
      heads: Number of heads.
      after: Normalize after each sum, as BERT does; otherwise before each half.
      epsilon: Of the normalizations.
      pruning: What to keep; all of it by default.
      progressive: How operands are fetched; whole by default.
      slots: Static, the room for tokens after each layer's attention, see `room`; by
        default there is room for all, and pruned tokens are only masked.

    Returns:
      The tokens, and what each layer worked with.
    """
    first = jnp.arange(x.shape[1]) == 0
    protected = jnp.broadcast_to(first, valid.shape)
    state = cascade.start(x, heads, valid=valid, protected=protected, per_sample=True)
    own = valid.sum(-1).astype(jnp.float32)
    counts, alive, states = [], [], []
    for i, layer in enumerate(params):
        share = None if pruning is None else jax.tree.map(lambda a, i=i: a[i], pruning)
        if share is not None:
            count = share.heads.astype(jnp.int32)
            state = state._replace(
                alive=ja.keep_heads(state.head_scores, count, state.alive)
            )
        y = state.x if after else layers.layer_norm(layer["norm1"], state.x, epsilon)
        said, seen = attention(layer, y, state, share, progressive)
        state = cascade.credit(state, said, seen.probs)
        if share is not None:
            size = None if slots is None else slots[i]
            state, said = drop(state, said, kept(share.tokens, own), size)
        counts.append(counted(seen, state))
        alive.append(standing(state, x.shape[1]))
        state = state._replace(x=finish(layer, state.x, said, epsilon, after))
        states.append(state.x)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *counts)
    return Encoded(state.x, state.valid, jnp.stack(alive), stacked, tuple(states))


def finish(
    layer: Params, x: jax.Array, said: jax.Array, epsilon: float, after: bool
) -> jax.Array:
    """Returns a layer's output: its projection and its feed-forward half.

    Args:
      layer: Its parameters.
      x: `(batch, slots, width)`, its input.
      said: `(batch, heads, slots, dim)`, what its heads say.
      epsilon: Of the normalizations.
      after: Normalize after each sum, not before each half.
    """

    def norm(name: str, x: jax.Array) -> jax.Array:
        return layers.layer_norm(layer[name], x, epsilon)

    def forward(x: jax.Array) -> jax.Array:
        hidden = jax.nn.gelu(layers.dense(layer["up"], x), approximate=False)
        return layers.dense(layer["down"], hidden)

    x = x + layers.dense(layer["o"], layers.merge_heads(said))
    if after:
        x = norm("norm1", x)
        return norm("norm2", x + forward(x))
    return x + forward(norm("norm2", x))


class Seen(NamedTuple):
    """What attention saw, for scores and counts.

    Attributes:
      probs: `(batch, heads, queries, keys)`, float32; 0 for what takes no part.
      part: The same shape: what takes part.
      kept: The same shape: whose values were multiplied.
      unsure: `(batch, heads, queries)`: rows that asked for the keys' lower bits.
    """

    probs: jax.Array
    part: jax.Array
    kept: jax.Array
    unsure: jax.Array


def attention(
    layer: Params,
    x: jax.Array,
    state: cascade.Cascade,
    share: Pruning | None,
    progressive: Progressive | None,
) -> tuple[jax.Array, Seen]:
    """Returns the heads' outputs `(batch, heads, slots, dim)`, 0 of pruned heads.

    Args:
      layer: Its parameters.
      x: `(batch, slots, width)`, the input of its projections.
      state: Who takes part.
      share: What this layer keeps, or None for all.
      progressive: How operands are fetched, or None for whole.
    """
    heads, valid = state.alive.shape[-1], state.valid
    q, k, v = (layers.split_heads(layers.dense(layer[n], x), heads) for n in "qkv")
    part = state.alive[:, :, None, None] & valid[:, None, :, None]
    part = part & valid[:, None, None, :]
    unsure = jnp.zeros(part.shape[:-1], bool)
    if progressive is None:
        probs = softmax(scores(q, k), part)
    else:
        bits, threshold = progressive
        options: Any = {"bits": bits, "threshold": threshold}
        real = valid[:, None, :, None]
        q = jnp.where(real, q, 0)  # padding is not to stretch the unit
        k = ja.center_keys(k, valid)  # no softmax sees it, and the range is smaller
        found = ja.progressive_attend(q, k, v, mask=part, keys=valid, **options)
        probs, unsure = found.probs, found.refetched
        v = ja.fake_quantize(v, bits.value, where=real)
    kept = part
    if share is not None:
        count = ja.count_values(share.values, valid)[:, None, None]
        kept = part & ja.keep_values(probs, count)
    return ja.weigh_values(probs, v, kept), Seen(probs, part, kept, unsure)


def kept(share: jax.Array, own: jax.Array) -> jax.Array:
    """Returns `ceil(share * own)`, one at least; 0.7 of 10 is 7 in float32, too."""
    return jnp.maximum(jnp.ceil(share * own - 1e-4), 1).astype(jnp.int32)


def room(length: int, shares: Any) -> tuple[int, ...]:
    """Returns slots that hold these shares of every sentence up to a length.

    Args:
      length: Of the longest sentence.
      shares: Of tokens that leave each layer, numbers.
    """
    counts = (max(math.ceil(float(s) * length - 1e-4), 1) for s in shares)
    return tuple(min(length, count) for count in counts)


def drop(
    state: cascade.Cascade, said: jax.Array, count: jax.Array, size: int | None
) -> tuple[cascade.Cascade, jax.Array]:
    """Returns what is left without the least important tokens.

    Args:
      state: With this layer's scores.
      said: `(batch, heads, slots, dim)`, which goes along.
      count: `(batch,)`, how many of each sentence stay.
      size: Static, the slots afterwards; None leaves all where they are.
    """
    keys = sort_keys(state.scores, valid=state.valid, protected=state.protected)
    state = state._replace(valid=state.valid & top_mask(keys, count))
    return cascade.prune_tokens(state, size, said)


def standing(state: cascade.Cascade, length: int) -> jax.Array:
    """Returns which tokens of the sentence take part, `(batch, length)`."""
    none = jnp.zeros((state.valid.shape[0], length), bool)
    rows = jnp.arange(len(none))[:, None]
    return none.at[rows, state.positions].max(state.valid)


def counted(seen: Seen, state: cascade.Cascade) -> Counts:
    """Returns what a layer worked with, `(batch,)` each."""
    sees = seen.part.any(-1)
    read = ja.fetched(seen.part, sees.shape[1], refetched=seen.unsure, kept=seen.kept)
    after, heads = state.valid.sum(-1), sees.any(-1).sum(-1)
    return Counts(
        tokens=sees.any(1).sum(-1),
        after=after,
        heads=heads,
        spoken=after * heads,
        pairs=seen.part.sum((-3, -2, -1)),
        products=seen.kept.sum((-3, -2, -1)),
        unsure=(seen.unsure & sees).sum((-2, -1)),
        fetched=jax.tree.map(lambda rows: rows.sum(-1), read),
    )
