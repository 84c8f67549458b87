"""The studies, as a catalogue: `python -m experiments list`."""

from experiments.catalogue import Entry

_QUICKSTART = "experiments.studies.quickstart"

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
)
