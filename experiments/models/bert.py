"""BERT as pure functions over a plain dict of arrays."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.models import encoder, layers

EPSILON = 1e-12  # epsilon of BERT's normalizations
Params = dict[str, Any]


def init(
    key: jax.Array, *, vocabulary: int, length: int, width: int, depth: int
) -> Params:
    """Returns random parameters, float32.

    Args:
      key: PRNG key.
      vocabulary: size of the vocabulary.
      length: maximum length of a sentence.
      width: width of the residual stream; feed-forward layers are four times as wide.
      depth: number of layers.
    """
    keys = jax.random.split(key, 4 + depth)
    tables = {"words": vocabulary, "positions": length, "types": 2}
    embed: Params = {
        name: 0.02 * jax.random.normal(k, (rows, width), jnp.float32)
        for k, (name, rows) in zip(keys, tables.items(), strict=False)
    }
    return {
        "embed": embed | {"norm": layers.init_norm(width)},
        "layers": [encoder.init_layer(k, width, 4 * width) for k in keys[4:]],
        "pooler": layers.init_dense(keys[3], width, width),
    }


def load(path: Path) -> Params:
    """Loads the parameters of a BERT in the safetensors format, float32.

    Names are those of the published checkpoints (`encoder.layer.0.attention...`).
    """
    from safetensors.numpy import load_file

    found = {name: jnp.asarray(value) for name, value in load_file(path).items()}
    depth = 1 + max(
        int(name.split(".")[2]) for name in found if name.startswith("encoder.layer.")
    )

    def dense(name: str) -> Params:
        kernel = found[f"{name}.weight"].T  # published as (outputs, inputs)
        return {"kernel": kernel, "bias": found[f"{name}.bias"]}

    def norm(name: str) -> Params:
        return {"scale": found[f"{name}.weight"], "bias": found[f"{name}.bias"]}

    def layer(name: str) -> Params:
        return {
            "q": dense(f"{name}.attention.self.query"),
            "k": dense(f"{name}.attention.self.key"),
            "v": dense(f"{name}.attention.self.value"),
            "o": dense(f"{name}.attention.output.dense"),
            "norm1": norm(f"{name}.attention.output.LayerNorm"),
            "up": dense(f"{name}.intermediate.dense"),
            "down": dense(f"{name}.output.dense"),
            "norm2": norm(f"{name}.output.LayerNorm"),
        }

    tables = {"words": "word", "positions": "position", "types": "token_type"}
    embed: Params = {
        name: found[f"embeddings.{old}_embeddings.weight"]
        for name, old in tables.items()
    }
    return {
        "embed": embed | {"norm": norm("embeddings.LayerNorm")},
        "layers": [layer(f"encoder.layer.{i}") for i in range(depth)],
        "pooler": dense("pooler.dense"),
    }


def embed(params: Params, ids: jax.Array, types: jax.Array) -> jax.Array:
    """Returns the input of the first layer, `(batch, length, width)`."""
    tables = params["embed"]
    x = tables["words"][ids] + tables["types"][types]
    x = x + tables["positions"][None, : ids.shape[1]]
    return layers.layer_norm(tables["norm"], x, EPSILON)


def encode(
    params: Params,
    ids: jax.Array,
    types: jax.Array,
    valid: jax.Array,
    **options: Any,
) -> encoder.Encoded:
    """Encodes sentences, pruned or not.

    Args:
      params: parameters, from `init` or `load`.
      ids: `(batch, length)`, integers.
      types: `(batch, length)`, 0 or 1.
      valid: `(batch, length)`, False for padding.
      **options: arguments of `encoder.encode`: `heads` and how to prune.
    """
    x = embed(params, ids, types)
    return encoder.encode(
        params["layers"], x, valid, after=True, epsilon=EPSILON, **options
    )


def logits(params: Params, found: encoder.Encoded) -> jax.Array:
    """Returns the outputs `(batch, outputs)` of the first token, through the pooler."""
    pooled = jnp.tanh(layers.dense(params["pooler"], found.x[:, 0]))
    return layers.dense(params["head"], pooled)


def with_head(params: Params, key: jax.Array, outputs: int) -> Params:
    """Returns the parameters with a new output layer of small weights."""
    width = params["pooler"]["bias"].shape[0]
    kernel = 0.02 * jax.random.normal(key, (width, outputs), jnp.float32)
    head = {"kernel": kernel, "bias": jnp.zeros(outputs, jnp.float32)}
    return {**params, "head": head}


def mean_embedding(found: encoder.Encoded) -> jax.Array:
    """Returns the mean over the tokens as unit vectors `(batch, width)`."""
    weight = found.valid.astype(found.x.dtype)[..., None]
    mean = (found.x * weight).sum(1) / weight.sum(1)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
