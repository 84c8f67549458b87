"""The command line of the experiments, and its first command at small size."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.harness import results
from experiments.harness.catalogue import OUTPUT_DIR, RESULTS_DIR

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.others_code


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """The results of `quickstart` with four steps and two seeds, in a new folder."""
    folder = tmp_path_factory.mktemp("cwd")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["quickstart", "--seeds", "0", "1", "--steps", "4"])
    return folder / "jprune-results"


def test_a_run_leaves_the_tracked_results_as_they_are(small_run):
    assert [path.name for path in small_run.parent.iterdir()] == ["jprune-results"]
    written = (small_run / "quickstart.json").stat().st_mtime
    assert all(path.stat().st_mtime < written for path in RESULTS_DIR.iterdir())


def test_git_ignores_what_a_run_leaves():
    assert f"{OUTPUT_DIR}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_quickstart_leaves_its_figures(small_run):
    record = results.read(small_run / "quickstart.json")
    assert record["seeds"] == [0, 1]
    assert record["settings"]["steps"] == 4
    versions = {"python", "jax", "jaxlib", "optax", "numpy", "jprune"}
    assert set(record["versions"]) == versions
    assert set(record["device"]) == {"platform", "kind", "count", "cpu_cores"}
    assert record["seconds"] > 0
    figures = record["figures"]
    for name, levels in (("dense", 1), ("one_shot", 4), ("gradual", 4)):
        assert len(figures[name]["test_accuracy"]) == levels
        assert all(len(seeds) == 2 for seeds in figures[name]["test_accuracy"])
    # 359 test images: every accuracy is a whole number of them.
    for seeds in figures["gradual"]["test_accuracy"]:
        for accuracy in seeds:
            assert abs(accuracy * 3.59 - round(accuracy * 3.59)) < 0.01
    claims = {claim["claim"]: claim for claim in record["claims"]}
    assert len(claims) == 3
    assert claims["digits, dense: test accuracy (%)"]["target"] == "> 97"


def test_quickstart_keeps_what_it_says(small_run):
    figures = results.read(small_run / "quickstart.json")["figures"]
    # 3x3x1x32, 3x3x32x32, 128x512 and 512x10 weights; the rest is biases.
    kernels, biases = 288 + 9_216 + 65_536 + 5_120, 32 + 32 + 512 + 10
    for name in ("one_shot", "gradual"):
        for sparsity, total in zip(
            figures[name]["target_sparsity"], figures[name]["kept"], strict=True
        ):
            assert total["size"] == kernels + biases
            assert abs(total["kept"] - biases - (1 - sparsity) * kernels) <= 1
    pattern = figures["two_of_four"]["kept"][0]
    assert pattern["kept"] == biases + 288 + (kernels - 288) // 2


def test_quickstart_draws_a_picture(small_run):
    content = (small_run / "quickstart.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 800
    assert height > 500
    assert {path.name for path in small_run.iterdir()} == {
        "quickstart.json",
        "quickstart.png",
    }


def test_tables_are_checked_and_remade(small_run, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(
        "<!-- table:quickstart -->\n<!-- /table -->\n"
        "<!-- table:quickstart-curve -->\n<!-- /table -->\n"
    )
    command = ["tables", "--pages", str(readme), "--results-dir", str(small_run)]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--check"])
    assert stop.value.code != 0
    assert "out of date: quickstart, quickstart-curve" in str(stop.value.code)
    main(command)
    main([*command, "--check"])
    assert "up to date" in capsys.readouterr().out
    assert "| gradual |" in readme.read_text()


def test_the_list_shows_what_held(small_run, capsys):
    main(["list", "--results-dir", str(small_run)])
    out = capsys.readouterr().out
    record = json.loads((small_run / "quickstart.json").read_text())
    held = sum(claim["holds"] for claim in record["claims"])
    assert f"{held} of 3" in out
    assert "vmapped_conv" in out


def test_a_benchmark_leaves_its_ratio(tmp_path):
    options = ["--results-dir", str(tmp_path), "--seeds", "0", "--steps", "1"]
    main(["bench", "vmapped_conv", *options])
    record = results.read(tmp_path / "vmapped_conv.json")
    milliseconds = record["figures"]["milliseconds"]
    ratio = milliseconds["lax_conv"][0] / milliseconds["patches"][0]
    assert record["claims"][0]["ours"] == pytest.approx(ratio, rel=0.01)
    assert record["claims"][0]["spread"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["quikstart"], "quikstart"),
        (["bench", "nothing"], "unknown benchmark 'nothing'; known: vmapped_conv"),
        (["quickstart", "--data-dir", "no/where"], "no/where is not a directory"),
        (["quickstart-mnist"], "--data-dir DIR or set JPRUNE_DATA_DIR"),
        (["quickstart-mnist", "--data-dir", "."], "storage.googleapis.com"),
        (["quickstart", "--steps", "3"], "--steps must be at least 4, got 3"),
        (["quickstart", "--steps", "0"], "--steps must be positive, got 0"),
        (["quickstart", "--steps", "many"], "many"),
        (["quickstart", "--seeds", "1", "1"], "distinct"),
        (["quickstart", "--tasks", "SST-2"], "no task ['SST-2'] in this study"),
        (["spatten_accuracy", "--tasks", "RTE", "GTE"], "no task ['GTE'] in this"),
        (["spatten_accuracy", "--steps", "9"], "--steps cannot replace"),
        (["quickstart", "--seeds", "-1"], "[0, 2**31)"),
        (["quickstart", "--results-dir", "file/below"], "cannot write results to"),
        (["tables", "--pages", "none.md"], "cannot read none.md"),
        (["list", "--results-dir", "broken"], "quickstart.json is broken"),
    ],
)
def test_what_the_reader_can_put_right_ends_with_2(
    tmp_path, monkeypatch, capsys, args, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JPRUNE_DATA_DIR", raising=False)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "quickstart.json").write_text("{")
    if args[0].startswith("quickstart") and "--results-dir" not in args:
        args = [*args, "--results-dir", "out"]
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("out/*"))


def test_a_data_directory_in_the_environment_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JPRUNE_DATA_DIR", str(tmp_path / "missing"))
    with pytest.raises(SystemExit) as stop:
        main(["quickstart-cifar-10", "--results-dir", str(tmp_path)])
    assert stop.value.code == 2
    assert f"{tmp_path / 'missing'} is not a directory" in capsys.readouterr().err


def test_help_needs_no_jax():
    code = (
        "import sys; from experiments.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'jax', 'numpy', 'sklearn', 'matplotlib', 'jprune'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
