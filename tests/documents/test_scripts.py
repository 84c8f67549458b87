"""The scripts of the guides: halved, fine-tuned, saved, and restored by another."""

import importlib
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("flax")

pytestmark = [pytest.mark.others_code, pytest.mark.study]

SCRIPTS = pathlib.Path(__file__).parents[2] / "docs" / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def check_predictions(path, said):
    """Another process says of all test images what this one said."""
    command = [sys.executable, str(SCRIPTS / "predict.py"), str(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [line.split(":")[0] for line in found.splitlines()] == [
        "batch of 1",
        "batch of 30",
        "batch of 297",
    ]
    assert found.split()[-1] == said.split("small: accuracy ")[1].split()[0]


def test_the_vision_transformer(script, tmp_path, capsys):
    steps = 3
    small = script("shrink_vit").main(tmp_path / "vit", width=32, depth=1, steps=steps)
    assert small.cost_after <= small.cost_before / 2
    module = small.params
    assert module.norm.mean.shape[0] < 32
    assert (module.norm.mean[...] != 0).all()
    # It was trained before, and its count goes on: a mask for each step.
    assert module.blocks.layers[0].drop.rngs.count[...] == 2 * steps
    check_predictions(tmp_path / "vit", capsys.readouterr().out)


def test_the_residual_network(script, tmp_path, capsys):
    main = script("shrink_resnet").main
    small, tuned = main(tmp_path / "resnet", 16, 2, 1, 1)
    assert small.cost_after <= small.cost_before / 2
    each = zip(jax.tree.leaves(small.params), jax.tree.leaves(tuned), strict=True)
    for before, after in each:
        assert before.shape == after.shape
        assert np.any(before != after)
    check_predictions(tmp_path / "resnet", capsys.readouterr().out)
