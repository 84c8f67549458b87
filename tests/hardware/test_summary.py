"""Names of operations, tables per operation, rooflines: against the oracle of costs."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from support import hardware_cases as cases
from support import hardware_oracle as oracle

import jprune as jp
from jprune import graph as jg
from jprune import hardware as hw
from jprune.hardware import machines, networks, workload

LAYER = [
    *("qkv_projection", "attention_scores", "attention_values"),
    *("output_projection", "mlp_up", "mlp_down"),
]


def test_constructors_name_their_operations():
    assert list(networks.bert_base(16).names) == LAYER
    assert list(networks.vit_base().names) == ["patch_embedding", *LAYER, "head"]
    blocks = [
        f"stage_{i}/block_{j}" for i, n in enumerate((3, 4, 6, 3)) for j in range(n)
    ]
    wanted = ["stem"]
    for block in blocks:
        wanted += [f"{block}/conv_{i}" for i in range(3)]
        wanted += [f"{block}/shortcut"] if block.endswith("block_0") else []
    assert list(networks.resnet50().names) == [*wanted, "head"]
    assert list(networks.scheduled((8, 4), (2, 2)).names) == [
        *("layer_0/attention_scores", "layer_0/attention_values"),
        *("layer_1/attention_scores", "layer_1/attention_values"),
    ]
    two = workload.chain([workload.product(4, 4, 4), networks.attention(4, 4, 1)])
    assert list(two.names) == ["", "attention_scores", "attention_values"]
    assert workload.repeated(two, 3).names == two.names


def test_traced_operations_are_named_by_their_leaves_or_lines():
    def attend(params, x):
        q, k = x @ params["q"], x @ params["k"]
        return q @ k.T

    params = {name: jax.ShapeDtypeStruct((6, 4), jnp.float32) for name in "qk"}
    graph = jg.trace(attend, params, jax.ShapeDtypeStruct((5, 6), jnp.float32))
    *leaves, scores = hw.from_graph(graph).names
    assert leaves == ["q", "k"]
    assert scores.startswith("test_summary.py:")
    assert "attend" in scores
    assert "/" not in scores


def test_names_are_no_arrays():
    """Workloads with names are still vmapped, differentiated and jitted as before."""
    net, chip = networks.bert_base(16), machines.eyeriss()
    assert len(jax.tree.leaves(net)) == len(net) - 1
    both = jax.tree.map(lambda *x: jnp.stack(x), net, networks.bert_base(32))
    assert list(both.names) == LAYER
    found = jax.vmap(lambda w: hw.cost(w, chip).seconds)(both)
    for each, tokens in zip(found, (16, 32), strict=True):
        one = hw.cost(networks.bert_base(tokens), chip).seconds
        np.testing.assert_allclose(each, one, rtol=1e-5)
    slopes = jax.grad(lambda w: hw.cost(w, chip, temperature=0.05).energy)(net)
    assert slopes.names == net.names
    # The cost does not read them, and compiles once for all.
    compiled = hw._cost._cost._cache_size()
    plain = workload.rename(net, ())
    assert hw.cost(plain, chip).seconds == hw.cost(net, chip).seconds
    assert hw._cost._cost._cache_size() == compiled


def test_names_that_do_not_fit_are_refused():
    net = networks.bert_base(16)
    some = jax.tree.map(lambda x: x[:2], net)
    for call in (
        lambda: hw.summary(some, machines.a100()),
        lambda: workload.chain([some]),
        lambda: workload.rename(net, ["one"]),
    ):
        with pytest.raises(jp.PruningError, match=r"of \d operations has \d names: \["):
            call()
    with pytest.raises(jp.PruningError, match=r"no fields \['names'\]"):
        workload.product(1, 1, 1, names=("a",))


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_of_each_operation_are_the_oracles(seed):
    """Operations one by one, where no pipeline joins them; then their sum."""
    rng = np.random.default_rng(seed)
    net, chip = cases.network(rng, pairs=0, singles=4), cases.machine(rng)
    found = hw.summary(net, chip)
    rows = oracle.rows(net)
    each = [oracle.cost([row], oracle.numbers(chip)) for row in rows]
    times = [seconds for seconds, *_ in each]
    joules = [sum(energy.values()) for _, energy, *_ in each]
    for i, row in enumerate(found["operations"]):
        seconds, energy, dram, (bound,) = each[i]
        assert row["name"] == f"operation {i}"
        assert row["repeats"] == rows[i]["repeats"]
        assert row["seconds"] == pytest.approx(seconds, rel=1e-4)
        assert row["energy"] == pytest.approx(sum(energy.values()), rel=1e-4)
        assert row["dram_bytes"] == pytest.approx(dram, rel=1e-4)
        assert row["limited_by"] == bound
        assert row["share_of_time"] == pytest.approx(seconds / sum(times), rel=1e-3)
        assert row["share_of_energy"] == pytest.approx(
            joules[i] / sum(joules), rel=1e-3
        )
    total, whole = found["total"], hw.cost(net, chip)
    for name in ("cycles", "seconds", "energy", "dram_bytes"):
        assert total[name] == pytest.approx(float(getattr(whole, name)), rel=1e-5)
    macs = float(workload.multiply_adds(net))
    assert total["multiply_adds"] == pytest.approx(macs, rel=1e-5)


def test_joined_operations_add_up_to_the_cost():
    net, chip = networks.bert_base(128), machines.spatten()
    found, whole = hw.cost_per_operation(net, chip), hw.cost(net, chip)
    for name in ("cycles", "seconds", "energy", "dram_bytes"):
        one, all_ = getattr(found, name), getattr(whole, name)
        assert one.shape == (6,)
        np.testing.assert_allclose(one.sum(), all_, rtol=1e-5)
    assert float(found.seconds[2]) < float(found.seconds[1])


def test_the_printed_table(capsys, monkeypatch):
    net = workload.chain(
        [
            workload.product(64, 512, 512, name="[bold]first", repeats=2),
            workload.product(256, 256, 256, name="second"),
        ]
    )
    # A byte a nanosecond, and 1 pJ for each of its bits.
    fields = {"sram": 4096, "dram_bandwidth": 1, "dram_energy": 1, "sram_energy": 0}
    chip = hw.accelerator(clock=1, rows=64, columns=64, mac_energy=0, **fields)
    monkeypatch.setenv("COLUMNS", "100")
    hw.print_summary(net, chip)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # By hand: 2 (64 512 + 512 512 + 64 512) and 3 * 256^2 bytes.
    assert "[bold]first 2 8 33.6M 655 µs 76.9% 5.24 µJ 76.9% 655 kB dram 655k" in lines
    assert "second 1 8 16.8M 197 µs 23.1% 1.57 µJ 23.1% 197 kB dram 197k" in lines
    assert "all 50.3M 852 µs 6.82 µJ 852 kB 852k" in lines
    assert lines[0] == (
        "2 operations on an array of 64 x 64 multipliers at 1 GHz, 4 MiB of SRAM, "
        "1 GB/s of DRAM"
    )
    assert "rounded, so columns may not add up" in " ".join(lines)
    monkeypatch.setenv("COLUMNS", "85")
    hw.print_summary(networks.scheduled((8, 4), (2, 2)), machines.spatten())
    narrow = capsys.readouterr().out
    assert "layer_1/attention_values" in narrow
    assert "Too narrow for: cycles" in narrow
    assert "joined operation" in " ".join(narrow.split())
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"jprune\[report\]"):
        hw.print_summary(net, chip)


def test_swapped_arguments_are_named():
    net, chip = networks.bert_base(16), machines.a100()
    axes = Figure().subplots()
    for call in (
        hw.cost,
        hw.cost_per_operation,
        hw.summary,
        hw.print_summary,
        lambda w, m: hw.draw_roofline(w, m, axes),
    ):
        with pytest.raises(jp.PruningError, match=r"Got Accelerator, then Workload\."):
            call(chip, net)
    with pytest.raises(jp.PruningError, match=r"Got Workload, then function.*Call"):
        hw.cost(net, machines.a100)
    with pytest.raises(jp.PruningError, match=r"Got Workload, then float\.$"):
        hw.cost(net, 1.0)


def points(axes):
    return np.concatenate([c.get_offsets() for c in axes.collections])


def test_the_roofline_by_hand(tmp_path):
    net = workload.chain(
        [
            workload.product(512, 512, 512, name="wide", repeats=3),
            workload.product(1, 512, 512, name="thin", input_bits=16),
            workload.product(0, 0, 0, name="softmax", exponentials=9.0),
        ]
    )
    chip = machines.tpu_v5e()
    axes = hw.draw_roofline(net, chip, tmp_path / "roof.png")
    each = [hw.cost(workload.repeated(_only(net, i), 1), chip) for i in (0, 1)]
    macs = 3 * 512**3, 512**2
    wanted = [
        (2 * n / float(c.dram_bytes), 2e-12 * n / float(c.seconds))
        for n, c in zip(macs, each, strict=True)
    ]
    np.testing.assert_allclose(sorted(points(axes).tolist()), sorted(wanted), rtol=1e-4)
    assert sorted(t.get_text() for t in axes.texts) == ["thin", "wide"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    # A roof for each width: 2 * 4 * 128^2 * rate * 1.503 GHz, and 819 GB/s.
    eight, sixteen = axes.get_lines()
    for line, rate in ((eight, 2), (sixteen, 1)):
        x, y = line.get_xdata(), line.get_ydata()
        peak = 2e-3 * 4 * 128**2 * rate * 1.503
        np.testing.assert_allclose(y, np.minimum(peak, 0.819 * x), rtol=1e-5)
        assert x[1] == pytest.approx(peak / 0.819, rel=1e-5)
        assert x[0] < min(p[0] for p in wanted)
    with Image.open(tmp_path / "roof.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10


def _only(net, i):
    return workload.rename(jax.tree.map(lambda x: x[i : i + 1], net), ())


def test_joined_operations_are_one_point_and_many_share_labels():
    axes = hw.draw_roofline(
        networks.bert_base(128), machines.spatten(), Figure().subplots()
    )
    labels = [t.get_text() for t in axes.texts]
    assert "attention_scores + attention_values" in labels
    assert len(labels) == len(points(axes)) == 5
    axes = hw.draw_roofline(networks.resnet50(), machines.a100(), Figure().subplots())
    assert len(points(axes)) == 54
    assert len(axes.texts) <= 20
    assert any(t.get_text().endswith(" and 2 more") for t in axes.texts)
    only = workload.product(0, 0, 0, exponentials=9.0)
    with pytest.raises(jp.PruningError, match="both multiply-adds and DRAM traffic"):
        hw.draw_roofline(only, machines.a100(), axes)
