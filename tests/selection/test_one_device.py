"""With one device, a trace cuts leaves of all shapes into rows: the same masks.

The tests' process has eight devices, so these run in processes with one.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import re
import jax, jax.numpy as jnp
from jprune import selection

def reductions(shapes):
    scores = {f"{i:02}": jnp.ones(s) for i, s in enumerate(shapes)}
    select = jax.jit(lambda s, k: selection.top_k(s, k)).lower(scores, 40)
    each = len(shapes)  # has one in the slice of its mask
    return len(re.findall(r"stablehlo\\.reduce", select.as_text())) - each

assert jax.device_count() == 1
few = [(4, 6), (3, 3, 2, 8), (5,), (2, 2)]
many = [(n, 7) for n in range(1, 25)]
print(reductions(few), reductions(many))
"""


EXPLICIT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jprune import selection

mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
specs = [P("x"), P(None, "y"), P(), P("x", "y"), P(("x", "y")), P("y")]
drawn = np.random.default_rng(0).normal(size=(6, 8, 6)).astype("f4")
scores = [
    jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(drawn, specs, strict=True)
]
for select in (selection.top_k, selection.count_top_k):
    found = jax.jit(select)(scores, 99)
    for a, b in zip(found, select(list(drawn), 99), strict=True):
        np.testing.assert_array_equal(a, b)
"""


def _run(*command):
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JPRUNE_TEST_DEVICES": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    found = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout


def test_the_number_of_reductions_does_not_grow_with_the_shapes():
    few, many = map(int, _run("-c", PROGRAM).split())
    assert few == many > 3


def test_leaves_on_a_mesh_of_explicit_axes_are_not_joined():
    _run("-c", EXPLICIT)


@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("test_traced.py", "bf16 or floats or in_a_scan"),
        ("test_within_budget.py", "floors_may_be_traced or tie_whatever"),
        ("test_top_k.py", "is_reported_by_checkify or several_types or all_k"),
    ],
)
def test_the_contract_holds_on_one_device(file, chosen):
    path = str(ROOT / "tests" / "selection" / file)
    found = _run("-m", "pytest", "--numprocesses=0", "-q", path, "-k", chosen)
    assert " passed" in found
    assert "failed" not in found
