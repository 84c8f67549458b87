"""Studies and benchmarks: the evidence behind what the README says.

Run `python -m experiments --help`. Nothing in `jprune` imports this package.
"""


class ExperimentError(Exception):
    """Something the reader can put right: a name, a directory or a file."""
