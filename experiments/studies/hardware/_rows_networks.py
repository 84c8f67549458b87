"""Published and predicted figures: networks on Eyeriss, TPU v1 and GPUs."""

from typing import Any

import jax.numpy as jnp

from experiments.studies.hardware._row import COST, Row, seconds
from jprune.hardware import machines, networks, workload

_TPU = "In-Datacenter Performance Analysis of a TPU, 2017, arXiv:1704.04760"
_EYERISS = "Eyeriss, JSSC 2017"
_GPT_FAST = "gpt-fast's README, 2023"
_NEMO = "NVIDIA NeMo documentation, Llama 2 results, 2024"


def _wide(**fields: Any) -> dict[str, Any]:
    return {"input_bits": 16, "weight_bits": 16, "output_bits": 16, **fields}


def alexnet(batch: int) -> workload.Workload:
    """Returns AlexNet's five convolutions, three of them in two groups.

    Activations are run-length coded in Eyeriss' DRAM, which saves a factor of 1.2 for
    the results of the first layer up to 1.9 for the last (Eyeriss, JSSC 2017, [R]).
    """
    places = 55 * 55
    layers = [
        workload.product(
            *(batch * places, 96, 3 * 11 * 11),
            input_unique=227 * 227 / (places * 11 * 11),
            output_dram=1 / 1.2,
            **_wide(),
        )
    ]
    rest = [
        ((27, 96, 256), {"kernel": 5, "feature_group_count": 2}, 1.2, 1.4),
        ((13, 256, 384), {}, 1.4, 1.7),
        ((13, 384, 384), {"feature_group_count": 2}, 1.7, 1.8),
        ((13, 384, 256), {"feature_group_count": 2}, 1.8, 1.9),
    ]
    for sizes, options, before, after in rest:
        packed = _wide(input_dram=1 / before, output_dram=1 / after)
        conv = networks.convolution(*sizes, batch=batch, **options, **packed)
        layers.append(conv)
    return workload.chain(layers)


def vgg16(batch: int) -> workload.Workload:
    """Returns VGG-16's thirteen convolutions."""
    sizes = [(224, 3, 64), (224, 64, 64), (112, 64, 128), (112, 128, 128)]
    sizes += [(56, 128, 256), (56, 256, 256), (56, 256, 256)]
    sizes += [(28, 256, 512), (28, 512, 512), (28, 512, 512), *[(14, 512, 512)] * 3]
    return workload.chain(
        [networks.convolution(*s, batch=batch, **_wide()) for s in sizes]
    )


def eyeriss() -> list[Row]:
    """Returns frame rates, DRAM accesses and power of two networks."""
    published = {
        "AlexNet": (alexnet(4), 4, 34.7, 0.0029, 0.278),
        "VGG-16": (vgg16(3), 3, 0.7, 0.0035, 0.236),
    }
    machine, found = machines.eyeriss(), []
    for name, (net, batch, frames, accesses, watts) in published.items():
        cost = COST(net, machine)
        seconds = float(cost.seconds)
        entries = float(cost.dram_bytes) / 2 / float(workload.multiply_adds(net))
        power = float(cost.energy - cost.parts.dram) / seconds
        for quantity, ours, theirs in (
            ("frames a second", batch / seconds, frames),
            ("DRAM accesses for a multiply-add", entries, accesses),
            ("W without DRAM", power, watts),
        ):
            source = f"{_EYERISS} [V]"
            found.append(Row("Eyeriss", f"{name}: {quantity}", ours, theirs, source))
    return found


def tpu_v1() -> list[Row]:
    """Returns the achieved throughput of the six production networks.

    Only the numbers of layers and weights and the batch size are published, so equal
    layers are assumed. CNN0, whose operations per weight correspond to 8 boards of
    19 x 19, is assumed to have 3 x 3 convolutions.
    """
    million = 1_000_000
    fully = {  # layers, weights, batch, TOPS
        "MLP0": (5, 20 * million, 200, 12.3),
        "MLP1": (4, 5 * million, 168, 9.7),
        "LSTM0": (24, 52 * million, 64, 3.7),
        "LSTM1": (37, 34 * million, 96, 2.8),
        "CNN0": (16, 8 * million, 2888, 86.0),
        "CNN1": (72, 100 * million, 1750, 14.1),
    }
    found = []
    for name, (layers, weights, batch, tops) in fully.items():
        each, window = weights / layers, 9 if name.startswith("CNN") else 1
        width = round((each / window) ** 0.5)
        # Activations stay in the 28 MiB on chip; only weights come from DRAM.
        layer = workload.product(
            *(batch, width, window * width), input_dram=0, output_dram=0
        )
        cost = COST(workload.repeated(layer, layers), machines.tpu_v1())
        done = 2 * layers * float(workload.multiply_adds(layer))
        ours = 1e-12 * done / float(cost.seconds)
        found.append(Row("TPU v1", f"{name}: achieved TOPS", ours, tops, f"{_TPU} [R]"))
    return found


def llama(
    width: int, hidden: int, layers: int, shared: int, batch: float, **fields: Any
) -> workload.Workload:
    """Returns Llama 2 for one token per sequence, a short context, with the head."""
    narrow = width // shared
    sizes = [(width + 2 * narrow, width), (width, width), (2 * hidden, width)]
    sizes += [(width, hidden)]
    layer = [workload.product(batch, n, k, **fields) for n, k in sizes]
    head = workload.product(batch, 32_000, width, **fields)
    return workload.chain([workload.repeated(workload.chain(layer), layers), head])


def gpus() -> list[Row]:
    """Returns generation with Llama 2 on GPUs, which is bound by memory."""
    seven, seventy = (4096, 11_008, 32, 1), (8192, 28_672, 80, 8)
    # The source measures at most 1,700 GB/s on its A100 of 80 GB, at 330 W.
    limited = machines.a100()._replace(dram_bandwidth=jnp.float32(1700))
    published = [
        ("7B, 16 bits", seven, 16, 104.9),
        ("7B, 8-bit weights", seven, 8, 155.58),
        ("7B, 4-bit weights", seven, 4.5, 196.8),  # with a scale per 32 weights
        ("70B, 8-bit weights", seventy, 8, 19.13),
        ("70B, 4-bit weights", seventy, 4.5, 25.25),
    ]
    found = [
        Row(
            *("A100 80 GB", f"Llama-2-{name}: tokens a second"),
            1 / seconds(llama(*sizes, 1, **_wide(weight_bits=bits)), limited),
            *(tokens, f"{_GPT_FAST} [V]"),
        )
        for name, sizes, bits, tokens in published
    ]
    eighty = machines.a100()._replace(dram_bandwidth=jnp.float32(2039))
    served = [
        ("A100 80 GB", eighty, (234.0, 329.5)),
        ("H100", machines.h100(), (153.8, 199.2)),
    ]
    for name, machine, latencies in served:
        for batch, latency in zip((1, 8), latencies, strict=True):
            prompt = llama(*seven, 128 * batch, **_wide())
            token = llama(*seven, batch, **_wide())
            ours = seconds(prompt, machine) + 19 * seconds(token, machine)
            quantity = f"Llama-2-7B, 128 + 20 tokens, batch {batch}: ms"
            found.append(Row(name, quantity, 1e3 * ours, latency, f"{_NEMO} [V]"))
    gemm = workload.product(8192, 8192, 8192, **_wide())
    achieved = 2e-12 * 8192**3 / seconds(gemm, machines.h200())
    return [
        *found,
        Row("H200", "bf16 product, TFLOPS", achieved, 790.0, "[M]", "fitted"),
    ]
