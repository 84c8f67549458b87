"""Studies and benchmarks: the evidence for the claims of the documentation.

Run `python -m experiments --help`. Nothing in `jprune` imports this package.

    harness       runs studies: catalogue, runner, results, resuming, plots, timing
    tasks         data sets and problems
    models        networks as pure functions
    loops         training loops that several studies share
    studies       one module per study, in a folder per family of methods
    benchmarks    one module per benchmark, likewise
    results       JSON and plots of the runs that the documentation quotes
    tables        makes the documentation's tables from the results
"""


class ExperimentError(Exception):
    """An error that the user can fix: a wrong name, directory or file."""
