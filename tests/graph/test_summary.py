"""Summaries of a graph: every figure by hand; and what is drawn."""

import itertools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import jprune as jp
from jprune import graph as jg


def net(params, x):
    """A convolution of 4x4 images, a mean, a dense layer; `temper` meets no product."""
    y = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = jax.nn.relu(y + params["bias"][None, None, None]).mean((1, 2))
    return (y @ params["out"].astype(jnp.float32)) * params["temper"]


PARAMS = {
    "bias": jnp.ones(8),
    "conv": jnp.ones((3, 3, 2, 8)),
    "out": jnp.ones((8, 5), jnp.bfloat16),
    "temper": jnp.ones(()),
}


@pytest.fixture(scope="module")
def graph():
    return jg.trace(net, PARAMS, jnp.zeros((6, 4, 4, 2)))


# 6 images of 4x4 pixels; the convolution reads 2 channels in 3x3 windows.
CONV = {
    "parameters": 3 * 3 * 2 * 8,
    "multiply_adds": 6 * 4 * 4 * 8 * 3 * 3 * 2,
    "bytes_moved": 4 * (6 * 4 * 4 * 2 + 3 * 3 * 2 * 8 + 6 * 4 * 4 * 8),
}
DENSE = {
    "parameters": 8 * 5,
    "multiply_adds": 6 * 8 * 5,
    "bytes_moved": 4 * (6 * 8 + 8 * 5 + 6 * 5),
}


def test_the_figures_of_each_operation(graph):
    found = jg.summary(graph)
    conv, dense = found["operations"]
    assert (conv["name"], dense["name"]) == ("conv_general_dilated", "dot_general")
    assert (conv["leaves"], dense["leaves"]) == (["conv"], ["out"])
    assert conv["groups"] == dense["groups"] == ["conv[3]"]
    assert conv["before"] == conv["after"] == CONV
    assert dense["before"] == dense["after"] == DENSE
    assert conv["sparsity"] is dense["sparsity"] is None
    for row, line in ((conv, 1), (dense, 5)):
        start = net.__code__.co_firstlineno
        assert f"test_summary.py:{start + line + 1}:" in row["where"]
        assert row["where"].endswith("(net)")
    rest = {"parameters": 8 + 1}
    expected = {"leaves": ["bias", "temper"], "sparsity": None}
    assert found["rest"] == expected | {"before": rest, "after": rest}
    sums = {key: CONV[key] + DENSE[key] for key in CONV}
    sums["parameters"] += 9
    assert found["total"] == {"sparsity": None, "before": sums, "after": sums}


def test_the_figures_after_a_plan(graph):
    keep = {"conv[3]": np.arange(8) < 3}
    found = jg.summary(graph, sizes=jg.sizes(graph, keep))
    conv, dense = found["operations"]
    assert conv["before"] == CONV
    assert conv["after"] == {
        "parameters": 3 * 3 * 2 * 3,
        "multiply_adds": 6 * 4 * 4 * 3 * 3 * 3 * 2,
        "bytes_moved": 4 * (6 * 4 * 4 * 2 + 3 * 3 * 2 * 3 + 6 * 4 * 4 * 3),
    }
    assert dense["after"] == {
        "parameters": 15,
        "multiply_adds": 6 * 15,
        "bytes_moved": 4 * (6 * 3 + 15 + 30),
    }
    assert found["rest"]["after"] == {"parameters": 4}
    assert found["total"]["after"]["parameters"] == 54 + 15 + 4
    # The same as of the function that is really smaller; and plain data.
    small, left = jg.shrink(graph, PARAMS, jg.make_plan(graph, keep))
    again = jg.summary(jg.trace(small, left, *graph.inputs))
    assert again["total"]["before"] == found["total"]["after"]
    assert json.loads(json.dumps(found)) == found
    half = jg.summary(graph, sizes={"conv[3]": jnp.float32(0.5)})
    assert half["operations"][1]["after"]["parameters"] == 2.5


def test_sparsity_is_that_of_masks_or_of_zeros(graph):
    masks = {
        "bias": jnp.arange(8) < 6,
        "conv": jnp.arange(8).reshape(1, 1, 1, 8) < 6,
        "out": jnp.arange(40).reshape(8, 5) < 10,
        "temper": jnp.array(True),
    }
    zeros = jax.tree.map(lambda w, m: jnp.where(m, w, jnp.zeros_like(w)), PARAMS, masks)
    for found in (jg.summary(graph, None, masks), jg.summary(graph, zeros)):
        conv, dense = found["operations"]
        assert conv["sparsity"] == 2 / 8
        assert dense["sparsity"] == 30 / 40
        assert found["rest"]["sparsity"] == pytest.approx(2 / 9)
        kept = 6 + 18 * 6 + 10 + 1
        assert found["total"]["sparsity"] == pytest.approx(1 - kept / (144 + 40 + 9))
        assert conv["after"] == CONV  # a mask makes no array smaller
    assert jg.summary(graph, PARAMS)["total"]["sparsity"] == 0


def test_symbolic_sizes_are_printed_and_no_budget_is_counted_in_them(capsys):
    mlp = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]  # noqa: E731
    params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
    (b,) = jax.export.symbolic_shape("b")
    graph = jg.trace(mlp, params, jax.ShapeDtypeStruct((b, 3), jnp.float32))
    half = {"in[1]": 4}
    total = jg.summary(graph, sizes=half)["total"]
    assert total["before"]["multiply_adds"] == 40 * b
    assert total["after"]["multiply_adds"] == 20 * b
    assert total["after"]["parameters"] == 20
    jg.print_summary(graph, sizes=half)
    assert "40*b → 20*b" in capsys.readouterr().out
    assert jg.parameters(graph, {"in[1]": 4.5}) == 22.5
    scores = jg.group_scores(graph, params, each=np.square)
    for act in (
        lambda: jg.choose(graph, scores, 0.5, cost=jg.multiply_adds),
        lambda: jg.summary(graph, sizes={"in[1]": 4.5}),
        lambda: jg.bytes_moved(graph, {"in[1]": 4.5}),
        lambda: jg.penalty(jg.multiply_adds, 0.5)(graph, half),
        lambda: jg.compress(mlp, params, *graph.inputs, multiple_of=1),
    ):
        with pytest.raises(jp.PruningError, match=r"symbolic size .*inputs of known"):
            act()


def test_a_product_of_activations_and_a_leaf_used_twice():
    def attend(params, x):
        q = x @ params["qk"]
        k = jnp.tanh(x) @ params["qk"]
        return q @ k.T

    params = {"qk": jnp.ones((3, 4))}
    graph = jg.trace(attend, params, jnp.zeros((5, 3)))
    found = jg.summary(graph, params)
    assert [o["leaves"] for o in found["operations"]] == [["qk"], ["qk"], []]
    assert [o["groups"] for o in found["operations"]] == [["qk[1]"]] * 3
    last = found["operations"][2]
    assert last["before"] == {
        "parameters": 0,
        "multiply_adds": 5 * 4 * 5,
        "bytes_moved": 4 * (20 + 20 + 25),
    }
    assert last["sparsity"] == 0
    assert found["total"]["before"]["parameters"] == 12  # not 24
    assert found["rest"]["leaves"] == []


def test_the_printed_table(graph, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    ones = jnp.array(True)
    masks = dict.fromkeys(PARAMS, ones) | {"conv": jnp.arange(8)[None, None, None] < 6}
    jg.print_summary(graph, PARAMS, masks, {"conv[3]": 4})
    text = "\n".join(
        " ".join(line.split()) for line in capsys.readouterr().out.splitlines()
    )
    assert "(net) 144 → 72 13.8k → 6,912 4,416 → 2,592 25.00%" in text
    assert re.search(r"^conv test_summary.py:\d+ \(net\) 144 → 72", text, re.MULTILINE)
    assert "(net) 40 → 20 240 → 120 472 → 296 0.00%" in text
    assert "2 others 9 → 5 0.00%" in text
    assert "all 193 → 97 14.1k → 7,032 4,888 → 2,888 18.65%" in text
    jg.print_summary(graph)
    assert "sparsity" not in capsys.readouterr().out


@pytest.mark.parametrize("columns", [200, 80])
def test_paths_stay_whole_where_columns_are_left_out(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    path = "params/TransformerBlock_0/attention/query"
    graph = jg.trace(
        lambda p, x: x @ p[path], {path: jnp.ones((3, 8))}, jnp.ones((5, 3))
    )
    jg.print_summary(graph)
    out = capsys.readouterr().out
    assert path in out
    assert ("bytes moved" in out.splitlines()[1]) == (columns == 200)
    assert ("Too narrow for: bytes moved" in " ".join(out.split())) == (columns < 200)


@pytest.mark.parametrize(
    ("size", "rows", "printed"),
    [(1, 9_994, "9,994"), (10, 1_000, "10.0k"), (100, 9_999, "1.00M"), (3, 4, "12")],
)
def test_large_numbers_are_rounded(size, rows, printed, capsys):
    graph = jg.trace(lambda p, x: x @ p, jnp.ones((size, 1)), jnp.ones((rows, size)))
    jg.print_summary(graph)
    assert f" {printed} " in capsys.readouterr().out


def test_what_is_not_of_the_graph_is_refused(graph):
    with pytest.raises(jp.PruningError, match=r"no group 'conv'; there are: conv\[3\]"):
        jg.summary(graph, sizes={"conv": 3})
    with pytest.raises(jp.PruningError, match="not the params that were traced"):
        jg.summary(graph, PARAMS | {"out": jnp.ones((4, 5))})
    with pytest.raises(jp.PruningError, match="temper"):
        jg.summary(graph, PARAMS, {k: v for k, v in PARAMS.items() if k != "temper"})
    with pytest.raises(jp.PruningError, match="no group 'conv'"):
        jg.draw_widths(graph, {"conv": 3}, Figure().subplots())
    empty = jg.trace(lambda p, x: x + p, jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(jp.PruningError, match="no group to draw"):
        jg.draw_widths(empty, {}, Figure().subplots())


def test_what_is_missing_is_named(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"jprune\[report\]"):
        jg.print_summary(graph)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jprune\[plot\]"):
        jg.draw_widths(graph, {}, "nowhere.png")


def tower(params, x):
    """Layers of two widths and heads: as many groups as asked for."""
    for layer in params:
        h = jnp.einsum("nd,dhk->nhk", x, layer["q"])
        w = jax.nn.softmax(jnp.einsum("nhk,mhk->hnm", h, jnp.tanh(h)))
        x = x + jnp.einsum("hnm,mhk,hkd->nd", w, h, layer["o"])
        x = x + jax.nn.relu(x @ layer["up"]) @ layer["down"]
    return x


@pytest.mark.parametrize("depth", [1, 20])
def test_the_picture(depth, tmp_path):
    shapes = {"q": (6, 4, 8), "o": (4, 8, 6), "up": (6, 32), "down": (32, 6)}
    layer = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    graph = jg.trace(tower, [layer] * depth, jax.ShapeDtypeStruct((5, 6), jnp.float32))
    assert len(graph.groups) == 3 * depth
    sizes = {n: g.size // 2 for n, g in graph.groups.items() if g.kind != "heads"}
    axes = jg.draw_widths(graph, sizes, tmp_path / "widths.png")
    assert [t.get_text() for t in axes.get_yticklabels()] == list(graph.groups)
    pale, solid = axes.containers
    assert [b.get_width() for b in pale] == [g.size for g in graph.groups.values()]
    left = [sizes.get(n, g.size) for n, g in graph.groups.items()]
    assert [b.get_width() for b in solid] == left
    kinds = [g.kind for g in graph.groups.values()]
    colours = dict(zip(kinds, (b.get_facecolor() for b in solid), strict=True))
    assert len(set(colours.values())) == len(colours) == 3
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert sorted(legend) == ["head", "heads", "hidden"]
    notes = [t.get_text().strip() for t in axes.texts]
    assert "4" in notes
    assert "8 → 4" in notes
    assert "32 → 16" in notes
    with Image.open(tmp_path / "widths.png") as picture:
        assert picture.size[1] >= 150 * 0.22 * len(graph.groups)
        assert np.asarray(picture.convert("RGB")).std() > 10
    # No two labels overlap.
    boxes = [t.get_window_extent() for t in axes.get_yticklabels()]
    ends = sorted((b.y0, b.y1) for b in boxes)
    assert all(a[1] <= b[0] + 1 for a, b in itertools.pairwise(ends))
    given = Figure().subplots()
    assert jg.draw_widths(graph, sizes, given) is given
