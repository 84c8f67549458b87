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
        "why_not": None,
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
        "why_not": None,
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


def printed(capsys, monkeypatch, params, masks, width):
    """Lines of the table, without trailing spaces."""
    monkeypatch.setenv("COLUMNS", str(width))
    jp.print_summary(params, masks)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= width
    return lines


def test_the_printed_table(capsys, monkeypatch):
    lines = printed(capsys, monkeypatch, PARAMS, MASKS, 100)
    text = "\n".join(" ".join(line.split()) for line in lines)
    # The columns: sparsity, kept, of, bytes sparse, shape, bytes dense.
    assert "a/kernel 60.00% 4 10 18 2x5 40" in text
    assert "b/kernel 33.33% 8 12 17 4x3 24" in text
    assert "c/kernel 100.00% collapsed 0 9 2 3x3 36" in text
    assert "all prunable 61.29% 12 31 37 100" in text
    assert "1 never pruned, 20 B 5 5 20 20" in text
    assert "a/bias" not in text
    assert "all leaves 52.78% 17 36 57 120" in text  # 19 of 36 are gone
    assert "only smaller arrays run faster" in text


def transformer(layers, biases=True):
    """Shapes of a transformer with long paths, and masks of its kernels."""
    names = [f"self_attention/{x}_projection" for x in ("query", "key", "value", "out")]
    names += ["mlp/up_projection", "mlp/down_projection"]
    paths = [f"encoder_layers/layer_{i}/{n}" for i in range(layers) for n in names]
    kernel = jax.ShapeDtypeStruct((1024, 4096), jnp.float32)
    params = {f"{path}/kernel": kernel for path in paths}
    masks = {path: jnp.zeros(kernel.shape, bool).at[:512].set(True) for path in params}
    if biases:
        bias = jax.ShapeDtypeStruct((4096,), jnp.float32)
        params |= {f"{path}/bias": bias for path in paths}
        masks |= {f"{path}/bias": jnp.array(True) for path in paths}
    return params, masks


def test_paths_stay_whole_and_biases_are_one_row(capsys, monkeypatch):
    params, masks = transformer(17)
    params, masks = params.copy(), masks.copy()
    kernels = [path for path in params if path.endswith("kernel")]
    for path in kernels[72:]:
        del params[path], masks[path]
    assert len(params) == 72 + 102
    assert max(map(len, params)) > 55
    lines = printed(capsys, monkeypatch, params, masks, 100)
    first = [line.split()[0] for line in lines if line]
    assert [word for word in first if word in params] == sorted(kernels[:72])
    assert sum("never pruned" in line for line in lines) == 1
    assert "102 never pruned, 1.67 MB" in "\n".join(lines)  # 102 * 4096 * 4 bytes
    assert not any("bias" in line for line in lines)
    # Nothing but the head, the rows, the foot and the caption.
    assert len(lines) <= 72 + 11
    assert "Too narrow for: bytes dense" in " ".join(lines)
    wide = printed(capsys, monkeypatch, params, masks, 160)
    assert "Too narrow" not in " ".join(wide)


def test_what_is_left_out_and_why():
    params = {
        "block": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
        "ids": jnp.ones((2, 2), int),
        "none": jnp.ones((0, 3)),
        "token_embed": {"weight": jnp.ones((9, 4))},
        "stem": {"kernel": jnp.ones((3, 4))},
    }
    where = jp.excluding("stem/.*")
    _, masks = jp.prune(params, jp.select(jp.recipes.magnitude(0.5), where))
    found = jp.summary(params, masks)
    assert {path: row["why_not"] for path, row in found["leaves"].items()} == {
        "block/bias": "fewer than two axes",
        "block/kernel": None,
        "ids": "not floating point",
        "none": "empty",
        "stem/kernel": "not selected",
        "token_embed/weight": "left out by its name",
    }
    assert found["left_out"] == ["token_embed/weight"]


def test_the_table_names_what_is_left_out_by_its_name(capsys, monkeypatch):
    params = {f"embed_{i}": jnp.ones((2, 2)) for i in range(9)} | {
        "w": jnp.ones((2, 2))
    }
    masks = {path: jnp.array(True) for path in params} | {"w": jnp.ones((2, 2), bool)}
    text = " ".join(printed(capsys, monkeypatch, params, masks, 80))
    assert "names: embed_0, embed_1, embed_2, embed_3, embed_4, embed_5 and 3" in text


@pytest.mark.optimized
def test_no_sparsity_is_negative():
    """1 - k / n in float32 is below 0 for some n, such as 3, where k = n."""
    dense = jax.jit(jp.masks.sparsity_per_leaf)
    for size in (3, 7, 100, 12345):
        ones = jnp.ones(size, bool)
        assert str(float(dense(ones, ones))) == "0.0"
        assert float(dense(ones, ~ones)) == pytest.approx(1)
    assert str(float(dense(jnp.ones((0,)), jnp.ones((0,), bool)))) == "0.0"


def test_inside_jit_a_summary_names_what_works_there():
    with pytest.raises(jp.PruningError, match=r"inside jit.*jp\.metrics\(opt_state"):
        jax.jit(lambda m: jp.summary(PARAMS, m)["total"]["kept"])(MASKS)


def test_other_masks_are_refused():
    with pytest.raises(jp.PruningError, match="masks have no leaf 'empty'"):
        jp.summary(PARAMS, {k: v for k, v in MASKS.items() if k != "empty"})
    with pytest.raises(jp.PruningError, match="'empty'"):
        jp.print_summary(PARAMS, {**MASKS, "empty": jnp.ones((0, 2), bool)})


def test_a_path_that_looks_like_markup_is_printed(capsys):
    params, masks = jp.prune({"[bold]": jnp.eye(4)}, jp.recipes.magnitude(0.5))
    jp.print_summary(params, masks)
    assert "[bold]" in capsys.readouterr().out
