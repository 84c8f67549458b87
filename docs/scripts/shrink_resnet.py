"""Halves a ResNet-50 of Flax Linen, fine-tunes it and saves it.

pip install 'jprune[export]' flax scikit-learn
python shrink_resnet.py /tmp/resnet    # quick look: /tmp/resnet-quick 16 20 1 1
python predict.py /tmp/resnet          # another process, without this model and Flax
"""

import os
import sys

import digits
import flax.linen as nn
import jax
import optax

from jprune import graph as jg


class ResNet(nn.Module):
    """ResNet-50, for the width 64 and (3, 4, 6, 3) blocks."""

    width: int
    blocks: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train):
        def conv(x, features, size, stride=1):
            x = nn.Conv(features, (size, size), stride, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        x = nn.relu(conv(x, self.width, 7, 2))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                features, stride = self.width * 2**stage, 1 + (stage > 0 and block == 0)
                y = nn.relu(conv(x, features, 1))
                y = nn.relu(conv(y, features, 3, stride))
                y = conv(y, 4 * features, 1)
                x = x if block else conv(x, 4 * features, 1, stride)
                x = nn.relu(x + y)
        x = nn.Dropout(0.2, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(10)(x)


def fit(fn, variables, images, labels, steps):
    """Trains: a step returns new statistics and draws a new dropout mask."""
    tx = optax.adam(1e-3)

    @jax.jit
    def step(variables, opt_state, x, y, key):
        def loss(params):
            logits, new = fn({**variables, "params": params}, x, key)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), new

        grads, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **new}, opt_state

    opt_state = tx.init(variables["params"])
    for key in jax.random.split(jax.random.key(0), steps):
        batch = jax.random.choice(key, len(images), (64,))
        x, y = images[batch], labels[batch]
        variables, opt_state = step(variables, opt_state, x, y, key)
    return variables


def main(path, width=64, steps=200, *blocks):
    if os.path.exists(path):
        sys.exit(f"{path} exists")
    (images, labels), test = digits.load()
    resnet = ResNet(width, blocks or (3, 4, 6, 3))
    x, key = images[:64], jax.random.key(0)

    def train_fn(variables, x, key):
        rngs = {"dropout": key}
        return resnet.apply(variables, x, True, mutable=["batch_stats"], rngs=rngs)

    def eval_fn(variables, x):
        return resnet.apply(variables, x, False)

    variables = jax.jit(resnet.init, static_argnums=2)(key, x, False)
    variables = fit(train_fn, variables, images, labels, steps)

    # Of the results, (logits, new statistics), the statistics shrink with the channels.
    is_new = lambda path, leaf: path.startswith("1/")
    small = jg.compress(train_fn, variables, x, key, remove=0.5, shrinking=is_new)
    tuned = fit(small.fn, small.params, images, labels, steps)

    # The same plan serves evaluation mode. The batch is symbolic, and may be any.
    small_fn, _ = jg.shrink(jg.trace(eval_fn, variables, x), variables, small.plan)
    batch = jax.export.symbolic_shape("b, 32, 32, 1")
    saved = small._replace(fn=small_fn, params=tuned)
    jg.save(path, saved, jax.ShapeDtypeStruct(batch, x.dtype))

    for name, fn, arrays in ("full", eval_fn, variables), ("small", small_fn, tuned):
        right = jax.jit(fn)(arrays, test[0]).argmax(axis=-1) == test[1]
        print(f"{name}: accuracy {right.mean():.3f}")
    print(f"multiply-adds: {small.cost_before:,} -> {small.cost_after:,}")
    return small, tuned


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
