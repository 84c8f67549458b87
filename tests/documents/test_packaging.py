"""What surrounds the package: extras, workflows, documentation builds, citation."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import jprune

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
USER_EXTRAS = {"checkpoint", "export", "plot", "report", "search"}
WORKFLOWS = {path.stem: path for path in (ROOT / ".github/workflows").glob("*.yml")}


def load(path):
    """The content of a YAML file."""
    return yaml.safe_load((ROOT / path).read_text())


def jobs(name):
    """Jobs of a workflow, by name."""
    return load(WORKFLOWS[name])["jobs"]


def steps(name):
    """All steps of a workflow."""
    return [step for job in jobs(name).values() for step in job["steps"]]


def installed_extras(start):
    """File and extra of all `jprune[...]`, or `.[...]`, in code, pages and commands."""
    places = "jprune/**/*.py experiments/**/*.py docs/**/*.md colab/*.* *.md .ci/* "
    for pattern in (places + ".github/workflows/*").split():
        for path in ROOT.glob(pattern):
            for names in re.findall(rf"{start}\[([\w,]+)\]", path.read_text()):
                yield from ((path, name) for name in names.split(","))


def test_users_are_told_of_extras_that_mean_something_outside_a_clone():
    found = list(installed_extras(r"\bjprune"))
    assert set(EXTRAS) >= USER_EXTRAS
    assert [(path, name) for path, name in found if name not in USER_EXTRAS] == []
    # Each is named where a user learns that it is needed.
    assert {name for _, name in found} == USER_EXTRAS


def test_commands_in_a_clone_install_extras_that_exist():
    found = list(installed_extras(r"'\."))
    assert [(path, name) for path, name in found if name not in EXTRAS] == []
    assert {name for _, name in found} == set(EXTRAS) - USER_EXTRAS


def test_the_version_has_one_home():
    assert PROJECT["dynamic"] == ["version"]
    named = re.findall(r"^version = .*", (ROOT / "pyproject.toml").read_text(), re.M)
    assert named == []
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", jprune.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changelog, re.M)[1] == jprune.__version__


@pytest.mark.parametrize("name", ["docs", "release", "tests"])
def test_workflows_have_least_permissions(name):
    workflow = load(WORKFLOWS[name])
    assert workflow["permissions"] == {"contents": "read"}
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as a boolean
    assert "pull_request_target" not in triggers
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
    for step in steps(name):
        # What others can write, such as a branch's name, never becomes code.
        assert "${{" not in step.get("run", "")
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


def test_only_the_job_that_publishes_may_publish():
    assert set(WORKFLOWS) == {"docs", "release", "tests"}
    elevated = {
        (name, job): content["permissions"]
        for name in WORKFLOWS
        for job, content in jobs(name).items()
        if "permissions" in content
    }
    assert elevated == {("release", "publish"): {"id-token": "write"}}
    publish = jobs("release")["publish"]
    assert publish["environment"]["name"] == "pypi"
    assert publish["needs"] == "build"
    # Nothing of the repository runs there.
    used = [step.get("uses", "").partition("@")[0] for step in publish["steps"]]
    assert used == ["actions/download-artifact", "pypa/gh-action-pypi-publish"]
    assert load(WORKFLOWS["release"])[True] == {"release": {"types": ["published"]}}


def test_the_tests_run_on_all_supported_pythons():
    (setup,) = (s for s in steps("tests") if "setup-python" in s.get("uses", ""))
    pythons = setup["with"]["python-version"].split()
    classified = [
        name.rpartition(" ")[2]
        for name in PROJECT["classifiers"]
        if re.search(r"Python :: \d\.\d", name)
    ]
    assert sorted(pythons) == sorted(classified) == ["3.11", "3.12", "3.13"]
    # The last one is the default, on which .ci/run runs everything.
    assert PROJECT["requires-python"] == f">={pythons[-1]}"
    run = [step["run"] for step in steps("tests") if "run" in step]
    assert "bash .ci/run" in run
    assert (ROOT / ".ci/run").is_file()


def test_the_documentation_is_built_from_its_extra():
    config = load(".readthedocs.yaml")
    assert config["version"] == 2
    assert config["python"]["install"] == [
        {"method": "pip", "path": ".", "extra_requirements": ["docs"]}
    ]
    assert config["sphinx"]["configuration"] == "docs/conf.py"
    (setup,) = (s for s in steps("docs") if "setup-python" in s.get("uses", ""))
    assert setup["with"]["python-version"] == config["build"]["tools"]["python"]
    assert "bash docs/build" in [step.get("run") for step in steps("docs")]
    assert "  bash docs/build\n" in (ROOT / ".ci/run").read_text()
    assert all((ROOT / path).is_file() for path in ("docs/build", "docs/conf.py"))


def test_the_citation_says_what_the_package_says():
    citation = load("CITATION.cff")
    # Required by the Citation File Format 1.2.0.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert citation["url"] == PROJECT["urls"]["Documentation"]
    assert "version" not in citation  # its one home is jprune/__init__.py
