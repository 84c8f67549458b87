"""Tables of operations and of designs: titles, bits, folding, ratios."""

import jax
import jax.numpy as jnp
import pytest

import jprune as jp
from jprune import hardware as hw
from jprune.hardware import machines, networks, workload


def printed(capsys, call, *arguments, **options):
    call(*arguments, **options)
    out = capsys.readouterr().out
    return out.splitlines(), [" ".join(line.split()) for line in out.splitlines()]


def test_the_bits_of_each_operation(capsys, monkeypatch):
    net = workload.chain(
        [
            workload.product(8, 8, 8, name="same"),
            workload.product(8, 8, 8, name="wide", output_bits=32),
            workload.product(8, 8, 8, name="split", weight_bits=6, lsb_bits=4),
        ]
    )
    found = [row["bits"] for row in hw.summary(net, machines.tpu_v1())["operations"]]
    assert found[1] == {"input": 8, "weight": 8, "lsb": 0, "output": 32}
    assert found[2] == {"input": 8, "weight": 6, "lsb": 4, "output": 8}
    monkeypatch.setenv("COLUMNS", "100")
    _, lines = printed(capsys, hw.print_summary, net, machines.tpu_v1())
    rows = [line.split() for line in lines if "%" in line]
    shown = {row[0]: row[2] for row in rows}
    assert shown == {
        "operation": "bits",
        "same": "8",
        "wide": "8/8/32",
        "split": "8/6+4/8",
    }


def test_the_title_names_the_preset_and_its_numbers():
    net = networks.bert_base(16)
    assert hw.summary(net, machines.spatten())["machine"] == (
        "spatten: 2 arrays of 64 x 8 multipliers at 1 GHz, 392 KiB of SRAM, 512 GB/s "
        "of DRAM"
    )
    # Every preset knows itself, as values of float32 and as arrays of JAX.
    for name in ("tpu_v5e", "a100", "h100", "h200", "xeon"):
        chip = jax.tree.map(jnp.asarray, getattr(machines, name)())
        assert hw.summary(net, chip)["machine"].startswith(f"{name}: ")
    other = machines.spatten()._replace(leakage=9.0)
    assert hw.summary(net, other)["machine"].startswith("2 arrays of 64 x 8")


@pytest.mark.parametrize("width", [100, 160])
def test_tables_fold_to_100_columns(capsys, monkeypatch, width):
    """The text at any width, and the table in a terminal of 100."""
    names = [f"params/encoder/layers_{i}/" + "attention/" * 6 for i in range(3)]
    net = workload.chain([workload.product(8, 8, 8, name=name) for name in names])
    monkeypatch.setenv("COLUMNS", str(width))
    lines, words = printed(capsys, hw.print_summary, net, machines.tpu_v5e())
    assert max(map(len, lines)) <= width
    title = words[: words.index("")]
    note = words[len(words) - words[::-1].index("") :]
    assert max(map(len, title + note)) <= 100
    assert " ".join(title).endswith("819 GB/s of DRAM")
    assert " ".join(note).startswith("All repeats of an operation count. Numbers")
    # Names are folded, and whole.
    cells = "".join(
        line.split()[0] for line in lines if line[:1] == " " and line.strip()
    )
    assert all(name in cells for name in names)
    monkeypatch.setenv("COLUMNS", "100")
    lines, _ = printed(capsys, hw.print_summary, networks.vit_base(), machines.h200())
    assert max(map(len, lines)) <= 100
    assert "bits" in " ".join(lines)


def test_designs_by_hand(capsys, monkeypatch):
    """8 cycles of 1 ns for 64 numbers of a byte, 1 pJ a bit; then twice as fast."""
    net = workload.product(8, 8, 8, input_dram=0, weight_dram=0)
    fields = {"rows": 8, "columns": 8, "sram": 64, "dram_bandwidth": 1, "area_base": 9}
    fields |= {"mac_energy": 0, "sram_energy": 0, "dram_energy": 1}
    fields |= {"area_multiplier": 0, "area_sram": 0, "area_lane": 0}
    chips = {
        "slow": hw.accelerator(clock=1, **fields),
        "fast": hw.accelerator(clock=1, **fields | {"dram_bandwidth": 2}),
        "a lot": hw.accelerator(clock=1, **fields | {"leakage": 8, "area_base": 0}),
    }
    costs = {name: hw.cost(net, chip) for name, chip in chips.items()}
    monkeypatch.setenv("COLUMNS", "100")
    lines, words = printed(capsys, hw.print_comparison, costs, title="A product")
    assert words[0] == "A product"
    # In the order given. Energy: 512 bits, and 8 W for 64 ns.
    assert "slow 64.0 ns 1.00 512 pJ 1.00 64 B 1.00 8.00 mW 9.00 mm²" in words
    assert "fast 32.0 ns 0.50 512 pJ 1.00 64 B 1.00 16.0 mW 9.00 mm²" in words
    assert "a lot 64.0 ns 1.00 513 nJ 1001.00 64 B 1.00 8.01 W -" in words
    at = [next(i for i, w in enumerate(words) if w.startswith(n)) for n in chips]
    assert at == sorted(at)
    assert max(map(len, lines)) <= 100


def test_what_cannot_be_compared_is_refused():
    net, chip = networks.bert_base(16), machines.a100()
    many = hw.search.evaluate(
        {"clock": jnp.ones(3)}, lambda d: (net, chip._replace(**d))
    )
    for costs, words in (
        ({}, "at least one cost"),
        ({"a": chip}, "'a' needs a Cost, .* got Accelerator"),
        ({"a": many}, r"'a' has costs of shape \(3,\): give each design its own name"),
        ({"a": hw.cost_per_operation(net, chip)}, r"shape \(6,\)"),
    ):
        with pytest.raises(jp.PruningError, match=words):
            hw.print_comparison(costs)
