"""The data of these scripts: handwritten digits, enlarged to 32 by 32."""

import jax.numpy as jnp
from sklearn.datasets import load_digits


def load():
    """Returns images (n, 32, 32, 1) and labels (n,), for training and for testing."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).repeat(4, axis=1).repeat(4, axis=2)
    images, labels = jnp.asarray(images / 8 - 1, jnp.float32), jnp.asarray(labels)
    return (images[:1500], labels[:1500]), (images[1500:], labels[1500:])
