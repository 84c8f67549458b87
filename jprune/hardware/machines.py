"""Presets of published accelerators, and where each of their numbers comes from.

    tpu_v1, tpu_v5e                             TPUs
    a100, h100, h200, titan_xp, jetson_nano     GPUs
    xeon                                        a CPU
    spatten, spatten_eighth, a3, mnnfast        attention accelerators
    eyeriss                                     an accelerator of CNNs
    sources, Source                             published or assumed, field by field

Where a source gives no energies, they are fitted to a published power or assumed: good
for ratios, and no evidence for the model. Read `sources` before quoting joules.
"""

from typing import Any

from jprune.hardware._accelerator import Accelerator, accelerator
from jprune.hardware._sources import Source as Source
from jprune.hardware._sources import sources as sources

# Dataflows: weight, output and input stationary.
WEIGHTS, OUTPUTS, INPUTS = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_ANY = (1.0, 1.0, 1.0)


def spatten() -> Accelerator:
    """SpAtten, 2021: 512 multipliers for Q.K and 512 for prob.V, in a pipeline.

    8 keys times 64 dims per cycle at 1 GHz, 12 bits; HBM2 of 16 channels times 32
    bytes; 392 KB for K and V, half of each being filled; 8 exponentials and 16
    comparisons of the selection per cycle; 18.71 mm^2 in 40 nm.

    Example:
      >>> int(spatten().rows * spatten().columns * spatten().arrays)  # multipliers
      1024

    References:
      Wang et al., SpAtten: Efficient Sparse Attention Architecture with Cascade Token
      and Head Pruning, 2021, arXiv:2012.09852. HBM2 energy: O'Connor et al.,
      Fine-Grained DRAM, 2017, 3.9 pJ per bit.
    """
    return accelerator(
        clock=1.0,
        rows=64,
        columns=8,
        arrays=2,
        dataflows=WEIGHTS,
        softmax=8,
        vector=64,
        topk=16,
        latency=98,  # 11 for multipliers and adders, 87 for the softmax
        pipelined=1,
        sram=392,
        sram_bandwidth=2 * 768,  # 64 dims of 8 keys of 12 bits, and the same of V
        dram_bandwidth=512,
        mac_energy=0.5,
        mac_bits=12,
        sram_energy=1.6,  # 1.24 W at half the bandwidth
        dram_energy=3.9,
        leakage=0.4,  # assumed, of 1.36 W of logic
        area_base=4.0,  # assumed: crossbars, fetchers, control
        area_multiplier=8e-3,
        area_sram=1.4e-2,
        area_lane=4e-2,
        node=40,
    )


def spatten_eighth() -> Accelerator:
    """SpAtten-1/8, 2021: 64 + 64 multipliers and 64 GB/s, to compare with A3.

    1.55 mm^2 in 40 nm.

    References:
      Wang et al., SpAtten: Efficient Sparse Attention Architecture with Cascade Token
      and Head Pruning, 2021, arXiv:2012.09852.
    """
    eighth = {"columns": 1, "softmax": 1, "vector": 8, "topk": 2, "sram": 49}
    full = spatten()._asdict()
    eighth |= {"sram_bandwidth": 192, "dram_bandwidth": 64, "leakage": 0.05}
    return accelerator(**{**full, **eighth, "area_base": 0.0})


def a3() -> Accelerator:
    """A3, 2020: dot-product, exponent and output modules, each one key per cycle.

    64 + 64 multipliers at 1 GHz; 320 keys and values on chip; a query takes n + 9
    cycles. 2.08 mm^2 in 40 nm.

    References:
      Ham et al., A3: Accelerating Attention Mechanisms in Neural Networks with
      Approximation, 2020, arXiv:2002.10941. Its memory is that of SpAtten-1/8, with
      which it is compared.
    """
    return accelerator(
        clock=1.0,
        rows=64,
        columns=1,
        arrays=2,
        dataflows=WEIGHTS,
        softmax=1,
        vector=8,
        topk=2,
        latency=27,
        pipelined=1,
        sram=60,
        sram_bandwidth=192,
        dram_bandwidth=64,
        mac_energy=0.5,
        mac_bits=12,
        dram_energy=3.9,
        area_multiplier=8e-3,
        area_sram=1.4e-2,
        area_lane=5e-2,
        node=40,
    )


def mnnfast() -> Accelerator:
    """MnnFast, 2019: of A3's size, without a pipeline across its stages.

    That stages run one after another is inferred from its throughput in SpAtten's
    table, half of the peak: a fitted property, so that row is no evidence.

    References:
      Jang et al., MnnFast: A Fast and Scalable System Architecture for
      Memory-Augmented Neural Networks, ISCA 2019.
    """
    return accelerator(**{**a3()._asdict(), "pipelined": 0.0, "latency": 9})


def eyeriss() -> Accelerator:
    """Eyeriss, 2016: 12 x 14 processing elements, row stationary.

    200 MHz, 16 bits, 108 KB of global buffer, a link of 64 bits at 60 MHz, single
    buffered; 65 nm, 12.25 mm^2. Data gating saves 45 % of an element's energy.

    Example:
      >>> int(eyeriss().rows * eyeriss().columns)  # processing elements
      168

    References:
      Chen et al., Eyeriss: An Energy-Efficient Reconfigurable Accelerator for Deep
      Convolutional Neural Networks, JSSC 2017. Energies in units of a multiply-add:
      1 for a register, 6 for the global buffer, 200 for DRAM (per 16 bits).
    """
    return accelerator(
        clock=0.2,
        rows=12,
        columns=14,
        dataflows=_ANY,
        rates=(1, 1, 1, 0.25),
        sram=108,
        sram_bandwidth=64,
        overlap=0,
        dram_bandwidth=0.48,
        compressed=0,
        gating=0.45,
        mac_energy=5.0,  # assumed, with three registers: 278 mW at AlexNet's load
        mac_bits=16,
        sram_energy=7.5,
        dram_energy=31,
        leakage=0.05,
        area_multiplier=0.05,
        area_sram=0.03,
        node=65,
    )


def tpu_v1() -> Accelerator:
    """TPU v1, 2015: 256 x 256 multipliers of 8 bits, weight stationary.

    700 MHz, 28 MiB on chip, weights from DDR3 at 34 GB/s; half speed for 16 bits by
    8, a quarter for 16 by 16; 28 nm, at most 331 mm^2, 40 W busy.

    References:
      Jouppi et al., In-Datacenter Performance Analysis of a Tensor Processing Unit,
      2017, arXiv:1704.04760.
    """
    return accelerator(
        clock=0.7,
        rows=256,
        columns=256,
        dataflows=WEIGHTS,
        rates=(1, 1, 0.25, 0.0625),
        vector=256,
        softmax=256,
        sram=28 * 1024,
        sram_bandwidth=2048,
        dram_bandwidth=34,
        mac_energy=0.2,
        sram_energy=1.0,
        dram_energy=20,
        leakage=28,  # of 40 W busy; it idles at 28 W
        area_base=100,
        area_multiplier=1.2e-3,
        area_sram=4e-3,
        node=28,
    )


def tpu_v5e() -> Accelerator:
    """TPU v5e, 2023: four 128 x 128 arrays; 197 TFLOPS bf16, 393 TOPS int8, 819 GB/s.

    Example:
      >>> float(tpu_v5e().dram_bandwidth)  # GB/s
      819.0

    References:
      Google Cloud documentation, TPU v5e, 2023. The clock follows from 197 TFLOPS. The
      sizes of the arrays and of the SRAM, all energies, the static power and the areas
      are not documented there: assumed. See `sources`.
    """
    return accelerator(
        clock=1.503,
        rows=128,
        columns=128,
        arrays=4,
        dataflows=WEIGHTS,
        rates=(2, 2, 1, 0.17),
        vector=8 * 1024,
        softmax=1024,
        sram=128 * 1024,
        sram_bandwidth=8192,
        dram_bandwidth=819,
        mac_energy=0.35,
        mac_bits=16,
        sram_energy=1.0,
        dram_energy=4,
        leakage=50,
        area_base=150,
        area_multiplier=1e-3,
        area_sram=1e-3,
        node=7,
    )


def a100() -> Accelerator:
    """NVIDIA A100 SXM4 40 GB, 2020: 312 TFLOPS bf16, 624 TOPS int8, 1555 GB/s.

    108 multiprocessors of 1024 multiply-adds at 1.41 GHz; 40 MB of L2; 826 mm^2.

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

    References:
      NVIDIA, H200 Tensor Core GPU datasheet, 2024.
    """
    return accelerator(**{**h100()._asdict(), "dram_bandwidth": 4800})


def titan_xp() -> Accelerator:
    """NVIDIA TITAN Xp, 2017: 3840 lanes of 32 bits at 1.582 GHz, 547.6 GB/s.

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


def xeon() -> Accelerator:
    """Intel Xeon E5-2640 v4, 2016: ten cores of 16 multiply-adds at 2.4 GHz.

    25 MB of L3, 68.3 GB/s, 90 W, 14 nm. Turbo is not counted.

    References:
      Intel, Xeon Processor E5-2640 v4 specifications, 2016.
    """
    return accelerator(
        clock=2.4,
        rows=2,
        columns=8,
        arrays=10,
        dataflows=OUTPUTS,
        efficiency=0.8,
        vector=160,
        softmax=40,
        topk=10,
        launch=1,
        sram=25 * 1024,
        sram_bandwidth=640,
        dram_bandwidth=68.3,
        mac_energy=100,
        mac_bits=32,
        dram_energy=20,
        leakage=30,
        area_base=246,
        area_multiplier=0,
        area_sram=0,
        area_lane=0,
        node=14,
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
