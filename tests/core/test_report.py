"""Summaries: every figure by hand."""

import json

import jax
import jax.numpy as jnp
import pytest

import jprune as jp

PARAMS = {
    "a": {"kernel": jnp.ones((2, 5)), "bias": jnp.ones(5)},
    "b": {"kernel": jnp.ones((4, 3), jnp.bfloat16)},
    "c": {"kernel": jnp.ones((3, 3))},
    "empty": jnp.ones((0, 3)),
}
MASKS = {
    "a": {"kernel": jnp.arange(10).reshape(2, 5) < 4, "bias": jnp.array(True)},
    "b": {"kernel": jnp.array([[True, False, True]])},
    "c": {"kernel": jnp.zeros((3, 3), bool)},
    "empty": jnp.ones((0, 3), bool),
}


def test_the_figures_of_each_leaf():
    leaves = jp.summary(PARAMS, MASKS)["leaves"]
    assert list(leaves) == ["a/bias", "a/kernel", "b/kernel", "c/kernel", "empty"]
    assert leaves["a/kernel"] == {
        "shape": [2, 5],
        "dtype": "float32",
        "size": 10,
        "kept": 4,
        "sparsity": 0.6,
        "prunable": True,
        "collapsed": False,
        "bytes_dense": 40,
        "bytes_sparse": 4 * 4 + 2,  # ten bits
    }
    assert leaves["b/kernel"] == {
        "shape": [4, 3],
        "dtype": "bfloat16",
        "size": 12,
        "kept": 8,
        "sparsity": pytest.approx(1 / 3),
        "prunable": True,
        "collapsed": False,
        "bytes_dense": 24,
        "bytes_sparse": 8 * 2 + 1,  # a bit for each of three columns
    }
    bias, gone = leaves["a/bias"], leaves["c/kernel"]
    assert (bias["prunable"], bias["kept"], bias["bytes_sparse"]) == (False, 5, 20)
    assert (gone["collapsed"], gone["sparsity"], gone["bytes_sparse"]) == (True, 1, 2)
    assert leaves["empty"]["sparsity"] == 0
    assert not leaves["empty"]["collapsed"]


def test_the_totals():
    total = jp.summary(PARAMS, MASKS)["total"]
    assert total == {
        "size": 10 + 5 + 12 + 9,
        "kept": 4 + 5 + 8,
        "bytes_dense": 40 + 20 + 24 + 36,
        "bytes_sparse": 18 + 20 + 17 + 2,
        "sparsity": pytest.approx(1 - 12 / 31),
        "sparsity_of_all": pytest.approx(1 - 17 / 36),
        "collapsed": 1,
    }
    assert total["sparsity"] == pytest.approx(float(jp.sparsity(PARAMS, MASKS)))
    assert json.loads(json.dumps(jp.summary(PARAMS, MASKS)))["total"]["kept"] == 17


def test_nothing_pruned_and_nothing_there():
    dense = jax.tree.map(lambda w: jnp.array(True), PARAMS)
    total = jp.summary(PARAMS, dense)["total"]
    assert total["sparsity"] == total["sparsity_of_all"] == 0
    assert total["bytes_sparse"] == total["bytes_dense"] == 120
    assert jp.summary({}, {})["total"]["size"] == 0


def test_the_printed_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    jp.print_summary(PARAMS, MASKS)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    text = "\n".join(" ".join(w for w in line if w not in "│┃") for line in lines)
    assert "a/kernel 2x5 4 of 10 60.00% 40 18" in text
    assert "a/bias 5 5 of 5 not pruned 20 20" in text
    assert "b/kernel 4x3 8 of 12 33.33% 24 17" in text
    assert "c/kernel 3x3 0 of 9 100.00% collapsed 36 2" in text
    assert "all leaves 17 of 36 61.29% 120 57" in text
    assert "only smaller arrays run faster" in text


def test_other_masks_are_refused():
    with pytest.raises(jp.PruningError, match="masks have no leaf 'empty'"):
        jp.summary(PARAMS, {k: v for k, v in MASKS.items() if k != "empty"})
    with pytest.raises(jp.PruningError, match="'empty'"):
        jp.print_summary(PARAMS, {**MASKS, "empty": jnp.ones((0, 2), bool)})


def test_a_path_that_looks_like_markup_is_printed(capsys):
    params, masks = jp.prune({"[bold]": jnp.eye(4)}, jp.recipes.magnitude(0.5))
    jp.print_summary(params, masks)
    assert "[bold]" in capsys.readouterr().out
