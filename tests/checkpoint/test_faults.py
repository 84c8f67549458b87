"""Hundreds of damaged checkpoints: what loads is right to the bit, or nothing loads."""

import shutil

import numpy as np
import pytest
from support import damage
from support.exact import assert_same, files_of

from jprune import checkpoint

STATES = {2: damage.small(2), 3: damage.small(3)}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    directory = tmp_path_factory.mktemp("intact")
    for step, state in STATES.items():
        checkpoint.save(directory / "ours", step, state)
    checkpoint.save(directory / "other", 3, damage.small(4))
    return directory


def is_refused(directory, step, state):
    """Whether a step is refused; what loads in its stead must be the state."""
    before = files_of(directory)
    try:
        restored, said = checkpoint.restore(directory, state), None
    except checkpoint.CheckpointError as error:
        said = str(error)
    assert files_of(directory) == before
    if said is None:
        assert_same(restored, state)
    else:
        assert str(directory / f"step_{step:08d}") in said
    return said is not None


def damaged(intact, directory, hurt, trial, only=None):
    """Damages a copy of the step 3; returns whether it was refused, and should be."""
    shutil.copytree(intact / "ours", directory)
    path, rng = directory / "step_00000003", np.random.default_rng([7, trial])
    files = damage.saved_files(path)
    file = files[trial % len(files)] if only is None else path / only
    before = damage.what_counts(path)
    hurt(path, file, intact / "other" / "step_00000003", rng)
    expected = damage.what_counts(path) != before
    found = is_refused(directory, 3, STATES[3])
    # No other step was taken in its stead, and none was touched.
    assert_same(checkpoint.restore(directory, STATES[2], step=2), STATES[2])
    return found, expected


def refused(intact, tmp_path, trials):
    names = [kind.__name__ for kind in damage.KINDS]
    refused = dict.fromkeys(names, 0)
    for trial in trials:
        # Each kind meets each file in turn: the step has about as many files.
        hurt = damage.KINDS[trial % len(damage.KINDS)]
        directory = tmp_path / f"{trial}"
        shift = trial + trial // len(damage.KINDS)
        found, expected = damaged(intact, directory, hurt, shift)
        assert found == expected, f"{hurt.__name__}, {trial=}"
        refused[hurt.__name__] += found
        shutil.rmtree(directory)
    return refused


def test_every_kind_of_damage_is_refused(intact, tmp_path):
    counts = refused(intact, tmp_path, range(2 * len(damage.KINDS)))
    # A file beside the manifest is nobody's business; all else always is, but
    # for a swap of a file with itself and of zeros with zeros.
    assert counts.pop("extra_beside") == 0
    assert min(counts.values()) > 0


@pytest.mark.slow
def test_two_hundred_damaged_checkpoints(intact, tmp_path):
    first = 2 * len(damage.KINDS)
    counts = refused(intact, tmp_path, range(first, first + 280))
    assert counts.pop("extra_beside") == 0
    assert sum(counts.values()) > 220


def test_a_manifest_with_other_white_space_says_the_same(intact, tmp_path):
    def respaced(path, file, other, rng):
        text = file.read_text()
        file.write_text(text.replace("\n ", "\n\t "))
        assert file.read_text() != text

    found = damaged(intact, tmp_path / "ours", respaced, 0, only="manifest.json")
    assert found == (False, False)
