"""The pretrained encoder, where its package is, against float64 and published rank."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from support.encoder_oracle import bert64

from experiments.models import bert
from experiments.tasks import glue, wordpiece
from experiments.tasks.data import DataError

pytestmark = pytest.mark.others_code
DATA = Path(os.environ.get("JPRUNE_DATA_DIR", "none"))


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    try:
        folder = wordpiece.folder(None)
    except DataError as error:
        pytest.skip(str(error))
    words = wordpiece.tokenizer(folder / "tokenizer.json")
    return bert.load(folder / "model.safetensors"), words


def embeddings(minilm, sentences):
    params, words = minilm
    tokens = wordpiece.encode(words, sentences)
    valid = np.arange(tokens.ids.shape[1]) < tokens.lengths[:, None]
    encode = jax.jit(lambda *x: bert.mean_embedding(bert.encode(params, *x, heads=12)))
    return np.asarray(encode(tokens.ids, tokens.types, valid)), tokens


def test_minilm_is_that_of_float64(minilm):
    sentences = ["A man is riding a horse.", "Someone rides.", "Stocks fell by 3 %."]
    ours, tokens = embeddings(minilm, sentences)
    params = minilm[0]
    for row in (0, 1):
        own = tokens.ids[row, : tokens.lengths[row]]
        x, _ = bert64(params | {"head": params["pooler"]}, own, 0 * own, 12)
        mean = x.mean(0)
        np.testing.assert_allclose(ours[row], mean / np.linalg.norm(mean), atol=1e-5)
    assert ours[0] @ ours[1] > ours[0] @ ours[2]
    assert minilm[1].encode(sentences[1]).tokens == [
        "[CLS]",
        "someone",
        "rides",
        ".",
        "[SEP]",
    ]


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "glue").is_dir(), reason="needs JPRUNE_DATA_DIR")
def test_minilm_ranks_sts_b_as_published(minilm):
    _, dev = glue.load("STS-B", DATA)
    first, second = (embeddings(minilm, s)[0] for s in (dev.first, dev.second))
    assert glue.spearman((first * second).sum(1), dev.labels) == pytest.approx(
        86.7, abs=0.1
    )
