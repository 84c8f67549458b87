"""GLUE's files and measures, and the texts of language models."""

import numpy as np
import pytest

from experiments.loops import finetune
from experiments.tasks import corpora, glue, wordpiece
from experiments.tasks.data import DataError

FILES = {
    "SST-2": 'sentence\tlabel\na "quoted word\t1\nbad \t0\n',
    "CoLA": 'gj04\t1\t\tThe "cat sat.\ncj99\t0\t*\tSat the.\n',
    "MRPC": "\ufeffQuality\t#1 ID\t#1 String\t#2 String\r\n1\t7\tone\ttwo\r\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tnot_entailment\n",
    "STS-B": "index\tgenre\tsentence1\tsentence2\tscore\n0\tx\tA\tB\t4.750\n",
}


def write(tmp_path, name, content, folder="glue"):
    where = tmp_path / folder / name
    where.mkdir(parents=True, exist_ok=True)
    for part in ("train", "dev"):
        (where / f"{part}.tsv").write_text(content, encoding="utf-8", newline="")
    return where


@pytest.mark.parametrize("folder", ["glue", "glue_data"])
def test_files_are_read_in_their_published_layouts(tmp_path, folder):
    for name, content in FILES.items():
        write(tmp_path, name, content, folder)
    first = {name: glue.load(name, tmp_path)[0] for name in FILES}
    assert first["SST-2"].first == ('a "quoted word', "bad ")
    assert first["SST-2"].labels.tolist() == [1, 0]
    assert first["CoLA"].first == ('The "cat sat.', "Sat the.")
    assert first["CoLA"].labels.tolist() == [1, 0]
    assert first["MRPC"][:2] == (("one",), ("two",))
    assert first["RTE"].labels.tolist() == [0]
    assert first["STS-B"].labels.tolist() == [4.75]
    assert first["STS-B"].labels.dtype == np.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence\nx\n", "no column 'label'"),
        ("sentence\tlabel\nx\t1\ny\n", "line 3: only 1 columns"),
        ("sentence\tlabel\nx\t2\n", "invalid label"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    where = write(tmp_path, "SST-2", content)
    with pytest.raises(DataError, match=message) as error:
        glue.load("SST-2", tmp_path)
    assert str(where / "train.tsv") in str(error.value)


def test_what_is_missing_and_unknown_is_said(tmp_path):
    with pytest.raises(DataError, match=r"dl\.fbaipublicfiles\.com"):
        glue.load("RTE", tmp_path)
    with pytest.raises(DataError, match=r"'WNLI'.*SST-2"):
        glue.load("WNLI", tmp_path)
    with pytest.raises(DataError, match="karpathy"):
        corpora.shakespeare(tmp_path)


def test_measures_are_those_of_others():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 2, (2, 50))
    # Matthews' coefficient is the correlation of two binary variables.
    expected = 100 * np.corrcoef(labels, predicted)[0, 1]
    assert glue.matthews(predicted, labels) == pytest.approx(expected)
    assert glue.matthews(np.ones(50), labels) == 0
    assert glue.matthews(np.ones(3), np.ones(3)) == 0
    assert glue.accuracy(labels, labels) == 100
    # By hand: ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    x, y = np.asarray([0.0, 5.0, 5.0, 9.0]), np.asarray([1.0, 2.0, 3.0, 4.0])
    assert glue.spearman(x, y) == pytest.approx(100 * 4.5 / np.sqrt(4.5 * 5))
    assert glue.spearman(-y, y) == pytest.approx(-100)
    # Not defined: a network that says the same of all pairs, or NaN.
    assert glue.spearman(np.ones(4), y) == 0
    assert glue.spearman(np.asarray([1.0, 2.0, np.nan, 4.0]), y) == 0


def test_held_out_sentences_are_apart():
    labels = (np.arange(100) % 3 == 0).astype(np.int32)
    every = glue.Sentences(tuple(map(str, range(100))), None, labels)
    fit, choose = glue.held_out(every, 0.2, 0)
    assert set(fit.first) | set(choose.first) == set(every.first)
    assert not set(fit.first) & set(choose.first)
    assert abs(choose.labels.mean() - labels.mean()) < 0.03
    less, _ = glue.held_out(every, 0.2, 0, limit=10)
    assert len(less.first) == 10
    assert set(less.first) <= set(fit.first)


def test_batches_hold_each_sentence_once():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 20, 53).astype(np.int32)
    ids = np.where(np.arange(19) < lengths[:, None], 1 + np.arange(53)[:, None], 0)
    ids = ids.astype(np.int32)
    examples = wordpiece.Examples(
        wordpiece.Tokens(ids, 0 * ids, lengths), np.arange(53, dtype=np.int32)
    )
    widths = finetune.widths_of(lengths)
    assert widths[-1] == 24
    seen = []
    for batch in finetune.batches(examples, widths, 8, rng):
        assert batch.ids.shape == (8, batch.valid.shape[1])
        assert (batch.valid.sum(1) == lengths[batch.rows]).all()
        assert ((batch.ids > 0) == batch.valid).all()
        real = batch.weights > 0
        assert (batch.ids[:, 0] == 1 + batch.labels).all()
        seen += batch.labels[real].tolist()
    assert sorted(seen) == list(range(53))


def test_sentences_become_pieces():
    tokenizers = pytest.importorskip("tokenizers")
    words = {w: i for i, w in enumerate(["[UNK]", "a", "##b", "c"])}
    model = tokenizers.models.WordPiece(words, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    found = wordpiece.encode(tokenizer, ["ab c", "x"], ["c", "c a"])
    assert found.ids.tolist() == [[1, 2, 3, 3], [0, 3, 1, 0]]
    assert found.types.tolist() == [[0, 0, 0, 1], [0, 1, 1, 0]]
    assert found.lengths.tolist() == [4, 3]


def test_texts_are_cut_in_three_and_in_windows():
    text = corpora.pieces(bytes(range(100)))
    assert [len(part) for part in text] == [80, 10, 10]
    assert np.concatenate(text).tolist() == list(range(100))
    assert corpora.windows(text.train, 30).tolist()[1] == list(range(30, 60))
    assert len(corpora.descriptions().train) > 5_000
