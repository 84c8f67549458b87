"""The catalogue of benchmarks. Timings are ratios within one run."""

from experiments.harness.catalogue import Entry

BENCHMARKS = (
    Entry(
        "vmapped_conv",
        "Convolution under vmap over kernels: patches times a matrix or lax.conv",
        "experiments.benchmarks.training.vmapped_conv",
    ),
    Entry(
        "overhead",
        "What sparsify costs a training step: AdamW with it and without",
        "experiments.benchmarks.training.overhead",
    ),
    Entry(
        "sparse_products",
        "Products with a pruned matrix: masks, coordinates, n:m, blocks, fewer outputs",
        "experiments.benchmarks.formats.sparse_products",
    ),
    Entry(
        "selection",
        "An exact global mask, in reduction passes: jprune, sorting, N:M, devices",
        "experiments.benchmarks.selection.selection",
    ),
    Entry(
        "leaves",
        "Thousands of small leaves: seconds of the first refresh and of the next",
        "experiments.benchmarks.selection.leaves",
    ),
    Entry(
        "bip_step",
        "What a step of bi-level pruning costs over a dense training step",
        "experiments.benchmarks.training.bip_step",
    ),
    Entry(
        "graph",
        "Finding groups and removing half, against Torch-Pruning where installed",
        "experiments.benchmarks.graph.graph",
    ),
    Entry(
        "shrink",
        "What half the FLOPs are worth: inference of the smaller networks",
        "experiments.benchmarks.graph.shrink",
    ),
    Entry(
        "attention",
        "Pruned attention: an encoder at half the FLOPs, an evicting cache",
        "experiments.benchmarks.attention.attention",
    ),
    Entry(
        "attention_gpu",
        "Pruned attention on a GPU, and whether kernels of our own pay",
        "experiments.benchmarks.attention.attention_gpu",
    ),
    Entry(
        "hardware",
        "Design points a second of the hardware model, against SCALE-Sim and ZigZag",
        "experiments.benchmarks.hardware.hardware",
    ),
)
