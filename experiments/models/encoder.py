"""A transformer encoder with token, head and value pruning and quantized attention.

Built on `jprune.attention`. Each of SpAtten's techniques can be enabled on its own:

- tokens: after the attention of a layer, the least important tokens are pruned. They
  take no part in that layer's output projection and feed-forward layer, nor in any
  later layer;
- heads: the least important heads of each sentence are pruned before a layer;
- values: for each row of probabilities, only the values of the largest are fetched;
- bits: queries, keys and values have few bits, and the upper bits of keys come first.

How much is kept is data (`Pruning`, arrays), so one compilation serves all schedules,
and a sentence keeps a share of its own tokens, whatever its padding. Pruning is by
masks. If `slots` gives the number of tokens that a layer has room for, the remaining
tokens are also compacted and the arrays shrink: the results are the same, but pruning
is then fast.
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
    """How much each layer keeps; may be traced.

    Attributes:
      tokens: `(layers,)`, share of a sentence's own tokens that remain after the
        attention of each layer; non-increasing.
      heads: `(layers,)`, number of heads that each layer computes; non-increasing,
        and all heads in the first layer.
      values: `(layers,)`, share of a row's keys whose values are fetched.
    """

    tokens: jax.Array
    heads: jax.Array
    values: jax.Array


class Progressive(NamedTuple):
    """Progressive quantization of the operands of attention; static.

    Attributes:
      bits: bits of queries, keys and values.
      threshold: rows whose largest probability is below it fetch the keys' lower bits.
    """

    bits: ja.Bits
    threshold: float = 0.1


class Counts(NamedTuple):
    """Operation counts, `(batch,)` for a layer or `(layers, batch)` for an encoder.

    Attributes:
      tokens: tokens in attention.
      after: tokens that remain after attention.
      heads: heads that are computed.
      spoken: tokens that remain after attention, summed over heads.
      pairs: query-key pairs that are multiplied, summed over heads.
      products: query-value pairs that are multiplied, summed over heads.
      unsure: rows of probabilities that fetch the lower bits, summed over heads.
      fetched: rows of queries, keys, lower bits and values that are read, summed over
        heads; the rows of a head are read once for all queries.
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
    """Result of an encoder.

    Attributes:
      x: output of the last layer, `(batch, slots, width)`.
      valid: `(batch, slots)`, False for empty slots.
      alive: `(layers, batch, length)`: tokens that remain after the attention of each
        layer, by their positions in the sentence.
      counts: operation counts of each layer.
      states: output of each layer, `(batch, slots, width)`; with `slots`, of the
        tokens that it has room for.
    """

    x: jax.Array
    valid: jax.Array
    alive: jax.Array
    counts: Counts
    states: tuple[jax.Array, ...]


def init_layer(key: jax.Array, width: int, hidden: int) -> Params:
    """Returns random parameters of a layer."""
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
    """Returns the output of the last layer, and the operation counts of all layers.

    Args:
      params: parameters of the layers, see `init_layer`.
      x: `(batch, length, width)`.
      valid: `(batch, length)`, False for padding. The first token is never pruned,
        since classifiers read it.
      heads: number of heads.
      after: whether to normalize after each sum, as in BERT, instead of before each
        sublayer.
      epsilon: epsilon of the normalizations.
      pruning: how much to keep; default: everything.
      progressive: quantization of the operands; default: none.
      slots: number of tokens that each layer has room for after its attention; static,
        see `room`. By default there is room for all, and pruned tokens are only
        masked.

    Returns:
      `Encoded`.
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
    """Applies the output projection and the feed-forward layer.

    Args:
      layer: parameters of the layer.
      x: `(batch, slots, width)`, input of the layer.
      said: `(batch, heads, slots, dim)`, outputs of its heads.
      epsilon: epsilon of the normalizations.
      after: whether to normalize after each sum instead of before each sublayer.
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
    """Intermediate results of attention, for scores and counts.

    Attributes:
      probs: `(batch, heads, queries, keys)`, float32; 0 for masked pairs.
      part: pairs that take part; same shape.
      kept: pairs whose values are multiplied; same shape.
      unsure: `(batch, heads, queries)`: rows that fetch the keys' lower bits.
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
    """Returns the outputs of the heads, `(batch, heads, slots, dim)`; 0 if pruned.

    Args:
      layer: parameters of the layer.
      x: `(batch, slots, width)`, input of its projections.
      state: tokens and heads that take part.
      share: how much this layer keeps, or None for everything.
      progressive: quantization of the operands, or None.
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
        q = jnp.where(real, q, 0)  # padding must not enlarge the quantization step
        k = ja.center_keys(k, valid)  # a smaller range; softmax is invariant to it
        found = ja.progressive_attend(q, k, v, mask=part, keys=valid, **options)
        probs, unsure = found.probs, found.refetched
        v = ja.fake_quantize(v, bits.value, where=real)
    kept = part
    if share is not None:
        count = ja.count_values(share.values, valid)[:, None, None]
        kept = part & ja.keep_values(probs, count)
    return ja.weigh_values(probs, v, kept), Seen(probs, part, kept, unsure)


def kept(share: jax.Array, own: jax.Array) -> jax.Array:
    """Returns `ceil(share * own)`, at least 1; 0.7 of 10 is 7 in float32, too."""
    return jnp.maximum(jnp.ceil(share * own - 1e-4), 1).astype(jnp.int32)


def room(length: int, shares: Any) -> tuple[int, ...]:
    """Returns the slots that hold these shares of every sentence up to a length.

    Args:
      length: length of the longest sentence.
      shares: share of tokens that remain after each layer, Python numbers.
    """
    counts = (max(math.ceil(float(s) * length - 1e-4), 1) for s in shares)
    return tuple(min(length, count) for count in counts)


def drop(
    state: cascade.Cascade, said: jax.Array, count: jax.Array, size: int | None
) -> tuple[cascade.Cascade, jax.Array]:
    """Prunes the least important tokens.

    Args:
      state: state with the scores of this layer.
      said: `(batch, heads, slots, dim)`, outputs of the heads; pruned alike.
      count: `(batch,)`, number of tokens of each sentence to keep.
      size: number of slots afterwards, static; None to only mask.
    """
    keys = sort_keys(state.scores, valid=state.valid, protected=state.protected)
    state = state._replace(valid=state.valid & top_mask(keys, count))
    return cascade.prune_tokens(state, size, said)


def standing(state: cascade.Cascade, length: int) -> jax.Array:
    """Returns the mask `(batch, length)` of the tokens that take part."""
    none = jnp.zeros((state.valid.shape[0], length), bool)
    rows = jnp.arange(len(none))[:, None]
    return none.at[rows, state.positions].max(state.valid)


def counted(seen: Seen, state: cascade.Cascade) -> Counts:
    """Returns the operation counts of a layer, `(batch,)` each."""
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
