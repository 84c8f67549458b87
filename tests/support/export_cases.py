"""What the tests of exported files share: two models, and how a file is refused."""

import jax.numpy as jnp
import pytest

from jprune import formats
from jprune.checkpoint import CheckpointError
from support.exact import files_of
from support.format_cases import RULES, model


def packed_model():
    return formats.pack_tree(*model(), RULES)


def small():
    """Few bytes, so that many of the flips hit what is not data."""
    w, m = jnp.arange(12, dtype=jnp.bfloat16).reshape(4, 3), jnp.ones((4, 3), bool)
    pattern = jnp.tile(jnp.array([[True], [False]]), (2, 3))
    return {
        "bits": formats.pack_bits(w, m.at[1].set(False)),
        "pattern": formats.pack_n_of_m(1, 2)(w.astype(jnp.float8_e4m3fn), pattern),
        "blocks": formats.pack_blocks(2, 3)(w.astype(jnp.float32), m.at[2:].set(False)),
        "bias": formats.pack_dense(jnp.ones(3), True),
    }


def refuses(path, match, load=formats.load_packed, **kwargs):
    before = files_of(path.parent)
    with pytest.raises(CheckpointError, match=match) as caught:
        load(path, **kwargs)
    assert str(path) in str(caught.value)
    assert files_of(path.parent) == before
