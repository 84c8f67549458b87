"""Where each number of a preset comes from: a publication, or an assumption."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jprune._core import base
from jprune.hardware._accelerator import DEFAULTS, Accelerator

KINDS = "published", "derived", "fitted", "assumed"


class Source(NamedTuple):
    """Where a field of a preset comes from.

    Attributes:
      kind: "published", in the source; "derived", follows from published numbers;
        "fitted", chosen so that a published total results, and so no evidence for it;
        "assumed", neither.
      text: the source, how the number follows from it, or what was assumed.
    """

    kind: str
    text: str


class _Notes(NamedTuple):
    """What is known of a preset; fields that are not named are assumed."""

    source: str
    published: str = ""
    derived: Mapping[str, str] = {}
    fitted: Mapping[str, str] = {}
    assumed: Mapping[str, str] = {}
    like: str | None = None  # fields that are not named are as those of this preset


_SHAPE = "rows * columns is the published number; the shape is assumed"
_FITTED_AREA = ("area_multiplier", "area_sram", "area_lane")
_GPU_FIT = {"efficiency": "790 of 989 TFLOPS, a bf16 product measured on an H200"}
_GPU_ASSUMED = {
    "sram_bandwidth": "128 bytes of each multiprocessor, each used four times",
}


def _area(total: str, *more: str) -> dict[str, str]:
    return dict.fromkeys((*_FITTED_AREA, *more), f"to a total of {total} mm^2")


def _gpu(source: str, published: str, **derived: str) -> _Notes:
    shape = {"rows": _SHAPE, "columns": _SHAPE, **derived}
    return _Notes(source, published, shape, _GPU_FIT, _GPU_ASSUMED)


_PRESETS = {
    "spatten": _Notes(
        "Wang et al., SpAtten, 2021, arXiv:2012.09852, and its released RTL",
        "clock rows columns arrays dataflows softmax topk latency pipelined sram "
        "dram_bandwidth mac_bits node",
        {
            "sram_bandwidth": "64 dims of 8 keys of 12 bits, and as much of V, a cycle",
            "dram_energy": "3.9 pJ per bit of HBM2: O'Connor et al., Fine-Grained "
            "DRAM, 2017",
        },
        _area("18.71", "area_base")
        | {"sram_energy": "to 1.24 W at half the bandwidth"},
        {"leakage": "a part of 1.36 W of logic"},
    ),
    "spatten_eighth": _Notes(
        "Wang et al., SpAtten, 2021, arXiv:2012.09852",
        "columns dram_bandwidth",
        dict.fromkeys(
            ("softmax", "topk", "sram", "sram_bandwidth"), "an eighth of SpAtten's"
        ),
        assumed=dict.fromkeys(("vector", "leakage"), "an eighth of SpAtten's")
        | {"area_base": "none"},
        like="spatten",
    ),
    "a3": _Notes(
        "Ham et al., A3, 2020, arXiv:2002.10941",
        "clock rows columns arrays softmax pipelined node",
        {
            "latency": "n + 9 cycles of a query in each of three modules",
            "sram": "320 keys and values of 64 dims of 12 bits",
        },
        _area("2.08"),
        dict.fromkeys(
            ("dram_bandwidth", "dram_energy", "sram_bandwidth", "mac_bits"),
            "that of SpAtten-1/8, with which it is compared",
        ),
    ),
    "mnnfast": _Notes(
        "Jang et al., MnnFast, ISCA 2019",
        fitted={
            "pipelined": "to half of the peak, its throughput in SpAtten's table",
            "latency": "with the stages one after another",
        },
        like="a3",
    ),
    "eyeriss": _Notes(
        "Chen et al., Eyeriss, JSSC 2017",
        "clock rows columns sram overlap gating mac_bits node",
        {
            "dram_bandwidth": "a link of 64 bits at 60 MHz",
        },
        {
            "mac_energy": "to 278 mW at AlexNet's load",
            "area_multiplier": "to a total of 12.25 mm^2",
            "area_sram": "to a total of 12.25 mm^2",
        },
        {
            "dataflows": "row stationary is taken for the best of the three",
            "sram_energy": "6 times a register's (published), at 2.5 pJ for 16 bits",
            "dram_energy": "200 times a register's (published), at 2.5 pJ for 16 bits",
        },
    ),
    "tpu_v1": _Notes(
        "Jouppi et al., 2017, arXiv:1704.04760",
        "clock rows columns dataflows sram dram_bandwidth mac_bits leakage node",
        {"rates": "a quarter for 16 by 16 bits; that of 32 bits is assumed"},
    ),
    "tpu_v5e": _Notes(
        "Google Cloud documentation, TPU v5e, 2023",
        "dram_bandwidth",
        {
            "clock": "from 197 TFLOPS of bf16, given the assumed arrays",
            "rates": "393 TOPS of int8 to 197 TFLOPS of bf16; 4 and 32 bits assumed",
        },
        assumed={
            **dict.fromkeys(("rows", "columns", "arrays"), "four arrays of 128 x 128"),
            "sram": "128 MiB",
            "leakage": "50 W, a large part of the energy of small models",
            "mac_energy": "0.35 pJ at 16 bits",
        },
    ),
    "a100": _gpu(
        "NVIDIA, A100 Tensor Core GPU Architecture, 2020",
        "clock arrays n_of_m sram dram_bandwidth node",
        rates="312 TFLOPS of bf16, 624 TOPS of int8, TF32; 4 bits as 8",
    ),
    "h100": _gpu(
        "NVIDIA, H100 Tensor Core GPU Architecture, 2022",
        "clock arrays n_of_m sram dram_bandwidth node",
        rates="989 TFLOPS of bf16, 1979 TOPS of int8, TF32; 4 bits as 8",
    ),
    "h200": _Notes(
        "NVIDIA, H200 Tensor Core GPU datasheet, 2024", "dram_bandwidth", like="h100"
    ),
    "titan_xp": _gpu(
        "NVIDIA, TITAN Xp specifications, 2017",
        "clock dram_bandwidth node",
        arrays="30 multiprocessors of 128 of the 3840 lanes",
    ),
    "jetson_nano": _gpu(
        "NVIDIA, Jetson Nano data sheet, 2019",
        "clock arrays dram_bandwidth",
        rates="472 GFLOPS of 16 bits, half as many of 32; 4 and 8 bits assumed",
    ),
    "xeon": _Notes(
        "Intel, Xeon Processor E5-2640 v4 specifications, 2016",
        "clock arrays sram dram_bandwidth node",
        {"rows": _SHAPE, "columns": _SHAPE},
    ),
}


PRESETS = tuple(_PRESETS)
"""Names of the presets of `jprune.hardware.machines`."""


def sources(preset: Callable[[], Accelerator]) -> dict[str, Source]:
    """Returns where each field of a preset comes from.

    Results that rest on assumed fields are good for ratios at most: a share of energy
    that comes from an assumed constant is an assumption.

    Args:
      preset: a function of `jprune.hardware.machines`, such as `tpu_v5e`, not called.

    Returns:
      Field -> `Source`, in the order of the fields of `Accelerator`.

    Raises:
      PruningError: if it is no preset; names those that there are.

    Example:
      >>> from jprune.hardware import machines
      >>> found = machines.sources(machines.tpu_v5e)
      >>> found["dram_bandwidth"].kind, found["leakage"].kind
      ('published', 'assumed')
      >>> found["clock"].text
      'from 197 TFLOPS of bf16, given the assumed arrays'
    """
    name = getattr(preset, "__name__", type(preset).__name__)
    if name not in _PRESETS:
        raise base.PruningError(
            f"sources takes a preset such as machines.tpu_v5e, not called; got {name}. "
            f"There are: {', '.join(_PRESETS)}."
        )
    machine = preset()
    return {
        field: _source(name, field, value) for field, value in machine._asdict().items()
    }


def _source(name: str, field: str, value: Any) -> Source:
    notes = _PRESETS[name]
    if field in notes.published.split():
        return Source("published", notes.source)
    for kind in KINDS[1:]:
        if field in getattr(notes, kind):
            return Source(kind, getattr(notes, kind)[field])
    if notes.like:
        found = _source(notes.like, field, value)
        if found.kind == "published":
            return found
        return Source(found.kind, f"as {notes.like}: {found.text}")
    if field in DEFAULTS and np.allclose(np.asarray(value), DEFAULTS[field]):
        return Source("assumed", "the default of `accelerator`")
    return Source("assumed", "no source")
