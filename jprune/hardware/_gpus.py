"""Presets of GPUs: an array per multiprocessor, and kernels that take time to start."""

from typing import Any

from jprune.hardware._accelerator import OUTPUTS, Accelerator, accelerator


def a100() -> Accelerator:
    """NVIDIA A100 SXM4 40 GB, 2020: 312 TFLOPS bf16, 624 TOPS int8, 1555 GB/s.

    108 multiprocessors of 1024 multiply-adds at 1.41 GHz; 40 MB of L2; 826 mm^2.

    Returns:
      An `Accelerator`.

    Example:
      >>> float(a100().dram_bandwidth)  # GB/s
      1555.0

    References:
      NVIDIA, A100 Tensor Core GPU Architecture, 2020. 32 bits are TF32.
    """
    return _gpu(
        clock=1.41,
        columns=16,
        arrays=108,
        sram=40 * 1024,
        dram_bandwidth=1555,
        leakage=90,
        area_base=500,
        node=7,
    )


def h100() -> Accelerator:
    """NVIDIA H100 SXM5, 2022: 989 TFLOPS bf16, 1979 TOPS int8, 3350 GB/s.

    132 multiprocessors of 2048 multiply-adds at 1.83 GHz; 50 MB of L2; 814 mm^2.

    Returns:
      An `Accelerator`.

    Example:
      >>> float(h100().dram_bandwidth)  # GB/s
      3350.0

    References:
      NVIDIA, H100 Tensor Core GPU Architecture, 2022. 32 bits are TF32.
    """
    return _gpu(
        clock=1.83,
        columns=32,
        arrays=132,
        sram=50 * 1024,
        dram_bandwidth=3350,
        leakage=120,
        area_base=500,
        node=4,
    )


def h200() -> Accelerator:
    """NVIDIA H200, 2024: the H100's units with HBM3e, 4800 GB/s.

    Returns:
      An `Accelerator`.

    Example:
      >>> float(h200().dram_bandwidth)  # GB/s
      4800.0

    References:
      NVIDIA, H200 Tensor Core GPU datasheet, 2024.
    """
    return accelerator(**{**h100()._asdict(), "dram_bandwidth": 4800})


def titan_xp() -> Accelerator:
    """NVIDIA TITAN Xp, 2017: 3840 lanes of 32 bits at 1.582 GHz, 547.6 GB/s.

    Returns:
      An `Accelerator`.

    Example:
      >>> from jprune.hardware import accelerators
      >>> round(float(accelerators.peak_tops(titan_xp(), 32)), 2)  # TFLOPS
      12.15

    References:
      NVIDIA, TITAN Xp specifications, 2017: 12.15 TFLOPS, 250 W, 471 mm^2, 16 nm.
    """
    return _gpu(
        clock=1.582,
        columns=2,
        arrays=30,
        rates=(4, 4, 1, 1),
        n_of_m=1,
        sram=3 * 1024,
        dram_bandwidth=547.6,
        mac_energy=12,
        mac_bits=32,
        dram_energy=7,
        leakage=60,
        area_base=200,
        node=16,
    )


def jetson_nano() -> Accelerator:
    """NVIDIA Jetson Nano, 2019: 128 lanes at 0.921 GHz, 472 GFLOPS of 16 bits.

    25.6 GB/s of LPDDR4; 10 W.

    Returns:
      An `Accelerator`.

    Example:
      >>> from jprune.hardware import accelerators
      >>> round(float(accelerators.peak_tops(jetson_nano(), 16)), 3)  # TFLOPS
      0.472

    References:
      NVIDIA, Jetson Nano data sheet, 2019.
    """
    return _gpu(
        clock=0.9216,
        columns=4,
        arrays=1,
        rates=(1, 1, 1, 0.5),
        n_of_m=1,
        vector=128,
        softmax=32,
        sram=256,
        dram_bandwidth=25.6,
        mac_energy=8,
        dram_energy=15,
        leakage=2,
        area_base=60,
        node=20,
    )


def _gpu(**fields: Any) -> Accelerator:
    """Returns a GPU: one array of 64 rows per multiprocessor, launched kernels."""
    shared = {
        "rows": 64,
        "dataflows": OUTPUTS,
        "rates": (2, 2, 1, 0.5),
        "n_of_m": 2,  # 2:4
        "efficiency": 0.8,  # 790 of 989 TFLOPS, a bf16 product on an H200: fitted
        "vector": 128 * 108,
        "softmax": 16 * 108,
        "topk": 1024,
        "launch": 4,  # assumed
        # Assumed: 128 bytes of shared memory per multiprocessor, each byte used four
        # times, as registers hold larger tiles than the units.
        "sram_bandwidth": 512 * fields["arrays"],
        "mac_energy": 0.6,  # assumed
        "mac_bits": 16,
        "dram_energy": 5,
        "area_multiplier": 5e-4,
        "area_sram": 2e-3,
        "area_lane": 0,
    }
    return accelerator(**{**shared, **fields})
