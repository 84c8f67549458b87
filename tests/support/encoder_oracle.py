"""Pieces of encoders, and BERT whole, in float64 NumPy."""

import math

import jax
import numpy as np


def norm64(layer, x, epsilon):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * layer["scale"] + layer["bias"]


def softmax64(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu64(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def bert64(params, ids, types, heads):
    """One sentence without padding, as the paper has it, all in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]  # noqa: E731
    tables = p["embed"]
    x = tables["words"][ids] + tables["positions"][: len(ids)] + tables["types"][types]
    x = norm64(tables["norm"], x, 1e-12)
    for layer in p["layers"]:
        q, k, v = (dense(layer[n], x) for n in "qkv")
        dim = q.shape[1] // heads
        said = []
        for h in range(heads):
            own = slice(h * dim, (h + 1) * dim)
            probs = softmax64(q[:, own] @ k[:, own].T / math.sqrt(dim))
            said.append(probs @ v[:, own])
        x = norm64(layer["norm1"], x + dense(layer["o"], np.hstack(said)), 1e-12)
        hidden = gelu64(dense(layer["up"], x))
        x = norm64(layer["norm2"], x + dense(layer["down"], hidden), 1e-12)
    return x, dense(p["head"], np.tanh(dense(p["pooler"], x[0])))
