"""The benchmarks, as a catalogue: timings are ratios taken in one run."""

from experiments.catalogue import Entry

BENCHMARKS = (
    Entry(
        "vmapped_conv",
        "Convolution under vmap over kernels: patches times a matrix or lax.conv",
        "experiments.benchmarks.vmapped_conv",
    ),
)
