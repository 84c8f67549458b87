"""The notebooks: both halves of a pair are equal, and both run at a small size."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jprune

COLAB = Path(__file__).parents[2] / "colab"
NOTEBOOKS = sorted(path.stem for path in COLAB.glob("*.py"))

# Jupyter runs in a process of its own: its event loop and its libraries' warnings
# stay out of this one, and an error in a cell comes back as the traceback.
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="this-python")
nbformat.write(client.execute(), sys.argv[2])
"""

# By hand from the shapes: of 18,432 + 32,768 + 1,280 weights in three kernels, and
# 288 + 234 in what is not pruned. 95 %: 922 + 1,638 + 64 stay. 2:4: half.
KEPT = {"dense": 53_002, "one-shot": 3_146, "gradual": 3_146, "2:4": 26_762}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Small sizes, one device, and nothing of the user's own Jupyter setup."""
    home = tmp_path_factory.mktemp("notebooks")
    spec = home / "kernels" / "this-python" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(
        json.dumps({"argv": command, "display_name": "x", "language": "python"})
    )
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_NUM_CPU_DEVICES", "MPLBACKEND", "DISPLAY")
        and not name.startswith(("JUPYTER", "JPRUNE", "PYTHONWARNINGS"))
    }
    return inherited | {
        "JPRUNE_NB_STEPS": "20",
        "JPRUNE_NB_BATCH": "16",
        "JPRUNE_NB_SEEDS": "1",
        "JUPYTER_PATH": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(Path(jprune.__file__).parents[1]),
        # The same programs are compiled twice, as a script and as a notebook.
        "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def run(arguments, environment, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_quickstart(text):
    """What the quickstart prints, wherever it ran."""
    rows = [line.split() for line in text.splitlines() if line.count("%") == 2]
    kept = {row[0]: int(row[3].replace(",", "")) for row in rows if len(row) == 5}
    assert kept == KEPT
    assert text.count("tracing") == 1  # the sweep: one compilation
    assert "all leaves" in text  # print_summary's table


# By hand: of 16,384 + 32,768 + 1,280 weights, n - round(n s) stay.
TICKETS = {"90": 5_043, "98": 1_009, "99": 504}


def check_bip(text):
    """What the second notebook prints: four methods find tickets of the same size."""
    rows = [line.split() for line in text.splitlines() if line.endswith("weights")]
    assert {row[2] for row in rows} == {"random", "one-shot", "IMP", "BiP"}
    assert len(rows) == 4 * len(TICKETS)
    for row in rows:
        assert int(row[-2].replace(",", "")) == TICKETS[row[0]], row


def check_shrink(text):
    """What the third notebook prints: two networks at half of their multiply-adds."""
    lines = text.splitlines()
    shares = [line for line in lines if line.endswith("%") and "multiply-adds," in line]
    assert len(shares) == 2  # by magnitude and by Taylor
    for line in shares:
        ours, full = (int(w.replace(",", "")) for w in line.split()[1:4:2])
        assert 0.3 * full < ours <= 0.5 * full, line
    sizes = [line for line in lines if line.startswith("parameters: ")]
    before, after = (int(w.replace(",", "")) for w in sizes[0].split()[1::2])
    assert before > 1.5 * after
    assert sum("sorted without blocks/" in line for line in lines) == 4
    ends = dict(line.split(": ") for line in lines if line.endswith("% sorted"))
    masked, removed = (float(ends[k].split("%")[0]) for k in ("masked", "removed"))
    assert abs(masked - removed) <= 0.2  # of a thousand lines
    assert "exported for" in text


# By hand, of two layers, the second of which keeps 12 of 17 tokens and 3 of 4 heads:
# multiply-adds, and bytes of queries, keys and values in float32.
ATTENTION = {
    "dense": (1_188_096, 26_112),
    "tokens": (1_085_696, 26_112),
    "heads": (1_011_936, 22_848),
}


def check_attention(text):
    """What the fourth notebook prints: counts, equalities, the authors' figures."""
    lines = text.splitlines()
    equal = [float(line.split()[-1]) for line in lines if "from plain" in line]
    assert len(equal) == 2
    assert max(equal) < 1e-4  # to rounding: the encoder, and the decoder
    assert "tokens after each layer: [17 12]" in lines
    rows = [line.replace(",", "").split() for line in lines if line.endswith("x")]
    table = {row[-6]: row for row in rows if len(row) > 5}
    assert list(table) == ["dense", "tokens", "heads", "values", "bits"]
    for name, (cost, size) in ATTENTION.items():
        assert tuple(map(int, table[name][-3:-1])) == (cost, size)
    assert int(table["values"][-3]) == 994_800
    # Of 119 rows of 16 numbers of each: queries in 12 bits, keys in 6, or in 10.
    assert 1_904 * 18 / 8 < int(table["bits"][-2]) <= 1_904 * (12 + 10 + 6) / 8
    assert "small: slots [32, 12], 22,528 bytes" in lines
    held = next(line for line in lines if line.startswith("the last layer still has"))
    held = json.loads(held.partition("has ")[2])
    assert len(held) == 12
    assert {0, 1, 60, 61, 62, 63} <= set(held)
    learned = next(line for line in lines if line.startswith("learned: ("))
    counts = json.loads(f"[{learned.partition('(')[2].partition(')')[0]}]")
    assert 17 >= counts[0] >= counts[1] >= 1
    # Four of 17 tokens are merged away in each layer; 40 % of them skip the second one.
    assert any(line.startswith("tokens (13, 9), ") for line in lines)
    assert "after the first layer, [10] of 17 tokens pass through each layer" in lines
    assert "gates and gathers agree on 100.0% of the images" in lines


def check_hardware(text):
    """What the fifth notebook prints: a workload by hand, a front, less energy."""
    # 128 tokens through 4 * 256^2 + 2 * 256 * 1024 weights; two products of 4 heads.
    madds = 128 * (4 * 256**2 + 2 * 256 * 1024) + 2 * 4 * 128 * 128 * 64
    assert re.search(rf"all .*\b{madds / 1e6:.0f}M\b", text)  # print_summary's last row
    left = re.search(r"energy left: ([\d.]+) %", text)
    assert 60 < float(left[1]) <= 70
    drawn, ours = re.search(r"delay: (\S+) of random designs, (\S+) by", text).groups()
    assert float(ours) < 1.5 * float(drawn)
    assert text.count(" nJ for an entry") >= 2


CHECKS = {
    "01_quickstart": check_quickstart,
    "02_bip": check_bip,
    "03_shrink": check_shrink,
    "04_attention": check_attention,
    "05_hardware": check_hardware,
}


def test_every_notebook_has_a_check_and_a_twin():
    assert sorted(CHECKS) == NOTEBOOKS
    assert sorted(path.stem for path in COLAB.glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_twins_are_equal(name, tmp_path, environment):
    for suffix in (".py", ".ipynb"):
        shutil.copy(COLAB / f"{name}{suffix}", tmp_path)
    command = ["-m", "jupytext", "--to", "ipynb", "--update", f"{name}.py"]
    run(command, environment, tmp_path)
    ours = json.loads((COLAB / f"{name}.ipynb").read_text("utf-8"))
    made = json.loads((tmp_path / f"{name}.ipynb").read_text("utf-8"))
    assert ours == made, f"jupytext --to ipynb --update colab/{name}.py"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebook_opens_in_colab_as_it_is(name):
    notebook = json.loads((COLAB / f"{name}.ipynb").read_text("utf-8"))
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not any(cell.get("outputs") for cell in cells)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    address = "https://colab.research.google.com/github/jprune/jprune/blob/main/colab"
    assert f"{address}/{name}.ipynb" in "".join(cells[0]["source"])


def check_outputs(notebook, check):
    """An executed notebook printed the same as the script, and drew its figures."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    data = [output.get("data", {}) for output in outputs]
    # What is shown has lines of its own, which do not end as printed ones do.
    texts = [
        ["\n", *d["text/plain"], "\n"] if "text/plain" in d else o.get("text", "")
        for o, d in zip(outputs, data, strict=True)
    ]
    check("".join("".join(text) for text in texts))
    shows = sum("plt.show()" in "".join(cell["source"]) for cell in code)
    assert sum("image/png" in found for found in data) == shows > 0


@pytest.mark.study
# One test for both, so that the second finds what the first has compiled.
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_both_twins_run(name, tmp_path, environment):
    script = ["-W", "error", COLAB / f"{name}.py"]
    CHECKS[name](run(script, environment | {"MPLBACKEND": "agg"}, tmp_path))
    done = tmp_path / "done.ipynb"
    run(["-c", EXECUTE, COLAB / f"{name}.ipynb", done], environment, tmp_path)
    check_outputs(json.loads(done.read_text("utf-8")), CHECKS[name])
