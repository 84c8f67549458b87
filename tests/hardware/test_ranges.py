"""Numbers out of range: known ones are refused, traced ones reported by checkify."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jprune as jp
from jprune import graph as jg
from jprune import hardware as hw
from jprune.hardware import accelerators, machines, networks, spatten, systolic, topk
from jprune.hardware import workload as works

NET, CHIP = networks.bert_base(16), machines.tpu_v5e()


@pytest.mark.parametrize("call", [hw.cost, hw.cost_per_operation, hw.summary])
@pytest.mark.parametrize(
    ("part", "field", "value", "words"),
    [
        (
            "net",
            "keep",
            np.full((6, 4), 1.5),
            "keep .* at most 1; got 1.5 at index 0, 0",
        ),
        ("net", "keep", np.full((6, 4), -0.5), "keep .* finite and not negative"),
        ("net", "m", np.full(6, -8.0), "m of an operation .* not negative"),
        ("net", "k", np.full(6, np.nan), "k of an operation .* finite"),
        ("net", "input_bits", np.zeros(6), "input_bits .* positive"),
        ("net", "density", np.full(6, 2.0), "density .* at most 1"),
        ("chip", "clock", 0.0, r"clock of an accelerator .* positive; got 0"),
        ("chip", "dram_bandwidth", -1.0, "dram_bandwidth .* not negative"),
        ("chip", "sram", 0, "sram of an accelerator .* positive"),
        ("chip", "rows", 0, "rows of an accelerator .* positive"),
        ("chip", "overlap", 1.5, "overlap of an accelerator .* at most 1"),
        ("chip", "n_of_m", 0.5, "n_of_m of an accelerator .* at least 1"),
    ],
)
def test_costs_refuse_what_was_replaced(call, part, field, value, words):
    """`_replace` passes the constructors' checks by."""
    net = NET._replace(**{field: value}) if part == "net" else NET
    chip = CHIP._replace(**{field: value}) if part == "chip" else CHIP
    with pytest.raises(jp.PruningError, match=words):
        call(net, chip)


def test_the_temperature_is_positive():
    for wrong in (0, -0.1, float("nan")):
        with pytest.raises(jp.PruningError, match="temperature has to be positive"):
            hw.cost(NET, CHIP, temperature=wrong)


def test_what_is_pruned_away_costs_no_multiply_adds():
    """A keep ratio of 0 is a size of 0, in cost calls."""
    gone = NET._replace(keep=NET.keep.at[0, 2].set(0.0))
    rest = jax.tree.map(lambda x: x[1:], works.rename(NET, ()))
    ours, theirs = (hw.cost(x, CHIP).parts.multipliers for x in (gone, rest))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_traced_numbers_are_reported_by_checkify():
    def seconds(keep, clock, temperature):
        net, chip = NET._replace(keep=keep), CHIP._replace(clock=clock)
        return hw.cost(net, chip, temperature=temperature).seconds

    checked = jax.jit(checkify.checkify(seconds))
    good = NET.keep, jnp.float32(1.5), jnp.float32(0.05)
    error, found = checked(*good)
    assert error.get() is None
    np.testing.assert_allclose(found, seconds(*good), rtol=1e-6)
    for i, (wrong, words) in enumerate(
        [
            (1.5 * NET.keep, "keep of an operation has to be in [0, 1]"),
            (jnp.float32(0), "clock of an accelerator has to be positive"),
            (jnp.float32(-1), "temperature has to be positive"),
        ]
    ):
        error, _ = checked(*good[:i], wrong, *good[i + 1 :])
        assert words in error.get()
    # Under vmap too, where one design of many is wrong.
    many = checkify.checkify(jax.vmap(lambda c: seconds(NET.keep, c, 0.05)))
    error, _ = jax.jit(many)(jnp.array([1.0, 0.0]))
    assert "clock" in error.get()
    one = jax.jit(checkify.checkify(lambda n: accelerators.scaled(CHIP, n).node))
    assert "node has to be positive" in one(jnp.float32(0))[0].get()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: networks.bert_base(-3), "m of an operation .* not negative"),
        (
            lambda: networks.transformer_layer(8, width=8, heads=0, hidden=4),
            "heads has to be positive; got 0",
        ),
        (lambda: networks.gpt2_small(batch=-1), "batch has to be positive; got -1"),
        (lambda: networks.vit_base(100), "side .* multiple of 16; got 100"),
        (lambda: networks.resnet50(0), "side .* multiple of 32; got 0"),
        (lambda: networks.convolution(8, 3, 4, stride=0), "stride .* positive; got 0"),
        (lambda: networks.convolution(-8, 3, 4), "side has to be positive; got -8"),
        (lambda: networks.scheduled((), ()), "got 0 of tokens.* at least one layer"),
        (lambda: works.repeated(NET, -1), "times .* at least 0; got -1"),
        (lambda: accelerators.scaled(CHIP, -7), "node has to be positive; got -7"),
        (lambda: accelerators.peak_tops(CHIP, 0), "bits has to be positive; got 0"),
        (lambda: spatten.ramp(0, 0.5), "layers has to be positive"),
        (lambda: spatten.ramp(6, 1.3), r"average has to be in \(0, 1\]; got 1.3"),
        (lambda: spatten.ramp(6, 0.1), "1 of 6 .* average is at least 0.1667; got 0.1"),
        (lambda: spatten.ramp(2, 0.9, first=1.0), "2 of 2 .* at least 1; got 0.9"),
        (lambda: spatten.ramp(4, 0.5, least=-1.0), r"least .* \[0, 1\]; got -1"),
        (lambda: systolic.cycles((5, 0, 3), 8, 8), "n has to be positive; got 0"),
        (lambda: systolic.exact_cycles((5, 2, 3), 8, -8), "columns .* positive"),
        (
            lambda: systolic.hidden_cycles((5, 2, 3), 8, 8, bytes_per_cycle=0, sram=9),
            "bytes_per_cycle has to be positive",
        ),
        (lambda: topk.topk_cycles(8, 9, 16), "Of 8 scores at most 8 are kept; got 9"),
        (lambda: topk.topk_cycles(8, 4, 0), "parallelism has to be positive; got 0"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused_by_name(call, words):
    with pytest.raises(jp.PruningError, match=words):
        call()
    assert spatten.ramp(2, 1.0, first=1.0) == [1.0, 1.0]


@pytest.mark.parametrize("value", [4.0, [4.0, 4.0], np.full(3, 4.0)])
def test_a_field_has_an_entry_for_each_operation(value):
    layer = hw.networks.attention(8, 8, 2)
    wrong = layer._replace(weight_bits=value)
    with pytest.raises(jp.PruningError, match=r"weight_bits .* each of 2 operations"):
        hw.cost(wrong, hw.machines.spatten())
    right = layer._replace(weight_bits=np.full(2, 4.0))
    assert float(hw.cost(right, hw.machines.spatten()).seconds) > 0


def test_a_traced_function_with_fields_out_of_range():
    params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
    graph = jg.trace(lambda p, x: x @ p["in"] @ p["out"], params, jnp.ones((5, 3)))
    for options, words in (
        ({"bits": 0}, "bits has to be positive; got 0"),
        ({"density": {"in": 1.5}}, r"in of the densities .* at most 1; got 1\.5"),
        ({"sizes": {"in[1]": -4}}, r"in\[1\] of the sizes .* not negative; got -4"),
        ({"input_dram": 2}, "input_dram of an operation .* at most 1"),
        ({"tokens": 2}, r"no fields \['tokens'\]"),
    ):
        with pytest.raises(jp.PruningError, match=words):
            hw.from_graph(graph, **options)
