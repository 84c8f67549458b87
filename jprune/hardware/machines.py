"""Presets of published accelerators, and where each of their numbers comes from.

    tpu_v1, tpu_v5e                             TPUs
    a100, h100, h200, titan_xp, jetson_nano     GPUs
    xeon                                        a CPU
    spatten, spatten_eighth, a3, mnnfast        attention accelerators
    eyeriss                                     an accelerator of CNNs
    sources, Source                             published or assumed, field by field

Where a source gives no energies, they are fitted to a published power or assumed: good
for ratios, and no evidence for the model. Read `sources` before quoting joules.

GPUs, which share most of their numbers, are in `_gpus`; all others are here.
"""

from jprune.hardware._accelerator import INPUTS as INPUTS
from jprune.hardware._accelerator import OUTPUTS as OUTPUTS
from jprune.hardware._accelerator import WEIGHTS as WEIGHTS
from jprune.hardware._accelerator import Accelerator, accelerator
from jprune.hardware._gpus import a100 as a100
from jprune.hardware._gpus import h100 as h100
from jprune.hardware._gpus import h200 as h200
from jprune.hardware._gpus import jetson_nano as jetson_nano
from jprune.hardware._gpus import titan_xp as titan_xp
from jprune.hardware._sources import Source as Source
from jprune.hardware._sources import sources as sources

_ANY = (1.0, 1.0, 1.0)


def spatten() -> Accelerator:
    """SpAtten, 2021: 512 multipliers for Q.K and 512 for prob.V, in a pipeline.

    8 keys times 64 dims per cycle at 1 GHz, 12 bits; HBM2 of 16 channels times 32
    bytes; 392 KB for K and V, half of each being filled; 8 exponentials and 16
    comparisons of the selection per cycle; 18.71 mm^2 in 40 nm.

    Returns:
      An `Accelerator`.

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

    Returns:
      An `Accelerator`.

    Example:
      >>> chip = spatten_eighth()
      >>> int(chip.rows * chip.columns * chip.arrays), float(chip.dram_bandwidth)
      (128, 64.0)

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

    Returns:
      An `Accelerator`.

    Example:
      >>> from jprune.hardware import accelerators
      >>> round(float(accelerators.area(a3())), 2)  # 2.08 mm^2 in the paper
      2.01

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

    Returns:
      An `Accelerator`.

    Example:
      >>> float(mnnfast().pipelined), float(a3().pipelined)
      (0.0, 1.0)

    References:
      Jang et al., MnnFast: A Fast and Scalable System Architecture for
      Memory-Augmented Neural Networks, ISCA 2019.
    """
    return accelerator(**{**a3()._asdict(), "pipelined": 0.0, "latency": 9})


def eyeriss() -> Accelerator:
    """Eyeriss, 2016: 12 x 14 processing elements, row stationary.

    200 MHz, 16 bits, 108 KB of global buffer, a link of 64 bits at 60 MHz, single
    buffered; 65 nm, 12.25 mm^2. Data gating saves 45 % of an element's energy.

    Returns:
      An `Accelerator`.

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

    Returns:
      An `Accelerator`.

    Example:
      >>> from jprune.hardware import accelerators
      >>> round(float(accelerators.peak_tops(tpu_v1())))  # TOPS of 8 bits
      92

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

    Returns:
      An `Accelerator`.

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


def xeon() -> Accelerator:
    """Intel Xeon E5-2640 v4, 2016: ten cores of 16 multiply-adds at 2.4 GHz.

    25 MB of L3, 68.3 GB/s, 90 W, 14 nm. Turbo is not counted.

    Returns:
      An `Accelerator`.

    Example:
      >>> from jprune.hardware import accelerators
      >>> round(float(accelerators.peak_tops(xeon(), 32)), 3)  # TFLOPS
      0.768

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
