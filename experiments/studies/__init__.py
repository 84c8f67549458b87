"""The catalogue of studies; `python -m experiments list` prints it."""

from experiments.harness.catalogue import Entry

_QUICKSTART = "experiments.studies.magnitude.quickstart"
_BIP = "experiments.studies.bilevel.bip_vs_imp"
_REWINDING = "experiments.studies.lottery.rewinding"
_ARCHITECTURES = "experiments.studies.structural.architectures"
_GROUPS = "experiments.studies.structural.group_pruning"
_SPATTEN = "experiments.studies.attention.spatten_accuracy"
_SPATTEN_STUDENTS = "experiments.studies.attention.spatten_students"
_SPATTEN_DECODING = "experiments.studies.attention.spatten_decoding"
_SPATTEN_VISION = "experiments.studies.attention.spatten_vision"

STUDIES = (
    Entry(
        "quickstart",
        "Three ways to prune a small CNN, on scikit-learn's digits",
        _QUICKSTART,
        "DIGITS",
    ),
    Entry(
        "quickstart-mnist",
        "The same on MNIST (needs --data-dir)",
        _QUICKSTART,
        "MNIST",
    ),
    Entry(
        "quickstart-fashion-mnist",
        "The same on Fashion-MNIST (needs --data-dir)",
        _QUICKSTART,
        "FASHION_MNIST",
    ),
    Entry(
        "quickstart-cifar-10",
        "The same on CIFAR-10 (needs --data-dir)",
        _QUICKSTART,
        "CIFAR_10",
    ),
    Entry(
        "rewinding",
        "Lottery tickets rewound to several steps, on Fashion-MNIST (needs --data-dir)",
        _REWINDING,
        "FASHION_MNIST",
    ),
    Entry(
        "rewinding-cifar-10",
        "The same with ResNet-20 on CIFAR-10 (needs --data-dir and a GPU)",
        _REWINDING,
        "CIFAR_10",
    ),
    Entry(
        "bip_vs_imp",
        "BiP against iterative pruning by cost, on Fashion-MNIST (needs --data-dir)",
        _BIP,
        "FASHION_MNIST",
    ),
    Entry("bip_vs_imp-digits", "The same on scikit-learn's digits", _BIP, "DIGITS"),
    Entry(
        "bip_vs_imp-cifar-10",
        "The same on CIFAR-10 (needs --data-dir)",
        _BIP,
        "CIFAR_10",
    ),
    Entry(
        "architectures",
        "Half of every group removed from each toy architecture: do results agree?",
        _ARCHITECTURES,
    ),
    Entry(
        "group_pruning",
        "Channels of a small ResNet by nine criteria, on scikit-learn's digits",
        _GROUPS,
    ),
    Entry(
        "detector",
        "Half of a small detector's parameters by network slimming, on drawn shapes",
        "experiments.studies.structural.detector",
    ),
    Entry(
        "widths",
        "Which widths half of a small ResNet's multiply-adds leave: a picture",
        "experiments.studies.structural.widths",
    ),
    Entry(
        "hardware_validation",
        "The hardware model beside published figures of accelerators, with the errors",
        "experiments.studies.hardware.hardware_validation",
    ),
    Entry(
        "spatten_accuracy",
        "SpAtten's techniques one by one, MiniLM on GLUE (needs --data-dir)",
        _SPATTEN,
    ),
    Entry(
        "spatten_accuracy-toy",
        "The same with a small encoder on sentences without meaning",
        _SPATTEN,
        "TOY_STUDY",
    ),
    Entry(
        "spatten_students",
        "Which schedule a network that learns from the dense one follows best "
        "(needs --data-dir)",
        _SPATTEN_STUDENTS,
    ),
    Entry(
        "spatten_students-toy",
        "The same with a small encoder on sentences without meaning",
        _SPATTEN_STUDENTS,
        "TOY_STUDY",
    ),
    Entry(
        "spatten_tables",
        "SpAtten's published averages over 30 benchmarks, and its ablation",
        "experiments.studies.hardware.spatten_tables",
    ),
    Entry(
        "spatten_vision",
        "SpAtten's techniques on patches of Fashion-MNIST (needs --data-dir)",
        _SPATTEN_VISION,
        "FASHION",
    ),
    Entry(
        "spatten_vision-digits",
        "The same on scikit-learn's digits",
        _SPATTEN_VISION,
        "DIGITS",
    ),
    Entry(
        "spatten_decoding",
        "SpAtten's cache with stories260K and a small GPT (needs --data-dir)",
        _SPATTEN_DECODING,
    ),
    Entry(
        "spatten_decoding-toy",
        "The same with a smaller GPT on prose that scikit-learn carries",
        _SPATTEN_DECODING,
        "TOY_STUDY",
    ),
    Entry(
        "energy_pruning",
        "Weights, and channels, under a budget of energy or time on a machine",
        "experiments.studies.hardware.energy_pruning",
    ),
)
