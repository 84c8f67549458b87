"""Halves a vision transformer of Flax NNX, fine-tunes it and saves it.

pip install 'jprune[export]' flax scikit-learn
python shrink_vit.py /tmp/vit    # quick look: /tmp/vit-quick 32 1 20
python predict.py /tmp/vit       # another process, without this model and Flax
"""

import os
import sys

import digits
import jax
import numpy as np
import optax
from flax import nnx

from jprune import graph as jg


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.drop(self.down(nnx.gelu(self.up(self.norm2(x)))))


class ViT(nnx.Module):
    def __init__(self, width, depth, rngs):
        self.patches = nnx.Conv(1, width, (8, 8), strides=(8, 8), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.position = nnx.Param(0.02 * rngs.params.normal((16, width)))
        self.blocks = nnx.Sequential(*[Block(width, rngs) for _ in range(depth)])
        self.out = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.patches(x))
        x = x.reshape(x.shape[0], 16, -1) + self.position[...]
        return self.out(self.blocks(x).mean(axis=1))


def forward(vit, x):
    return vit(x)


def fit(fn, vit, images, labels, steps):
    """Trains in place: a step moves the statistics and draws new dropout masks."""
    optimizer = nnx.Optimizer(vit, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(vit, optimizer, x, y):
        def loss(vit):
            logits = fn(vit, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        optimizer.update(vit, nnx.grad(loss)(vit))

    for batch in np.random.default_rng(0).integers(0, len(images), (steps, 64)):
        step(vit, optimizer, images[batch], labels[batch])


def main(path, width=128, depth=4, steps=300):
    if os.path.exists(path):
        sys.exit(f"{path} exists")
    (images, labels), test = digits.load()
    x, vit = images[:64], ViT(width, depth, nnx.Rngs(0))
    fit(forward, vit, images, labels, steps)

    # In train mode: what a call changes in the module is recorded, and shrinks with it.
    small = jg.compress(forward, vit, x, remove=0.5)
    fit(small.fn, small.params, images, labels, steps)

    # The same plan serves evaluation mode. The batch is symbolic, and may be any.
    vit.eval()
    small.params.eval()
    eval_fn, _ = jg.shrink(jg.trace(forward, vit, x), vit, small.plan)
    batch = jax.export.symbolic_shape("b, 32, 32, 1")
    small = small._replace(fn=eval_fn)
    jg.save(path, small, jax.ShapeDtypeStruct(batch, x.dtype))

    for name, fn, params in ("full", forward, vit), ("small", eval_fn, small.params):
        right = nnx.jit(fn)(params, test[0]).argmax(axis=-1) == test[1]
        print(f"{name}: accuracy {right.mean():.3f}")
    print(f"multiply-adds: {small.cost_before:,} -> {small.cost_after:,}")
    return small


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
