"""Restores a saved model and classifies digits, in batches of several sizes.

    python predict.py /tmp/vit

The process has none of the model's code: the function comes from the directory.
"""

import sys

import digits
import jax

from jprune import graph as jg


def main(path):
    _, (images, labels) = digits.load()
    saved = jg.restore(path)
    predict = jax.jit(lambda params, x: saved.fn(params, x).argmax(axis=-1))
    for batch in 1, 30, len(images):
        right = predict(saved.params, images[:batch]) == labels[:batch]
        print(f"batch of {batch}: accuracy {right.mean():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
