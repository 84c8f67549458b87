"""The README and the pages of docs/: examples run, links lead somewhere."""

import importlib
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import named_models

import jprune as jp
from experiments import tables
from experiments.harness.catalogue import RESULTS_DIR

pytestmark = pytest.mark.others_code
ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
MADE = {"_build", "api"}  # by the build
PAGES = [
    ROOT / "README.md",
    *(p for p in sorted(DOCS.rglob("*.md")) if not MADE & set(p.parts)),
]
IDS = [str(p.relative_to(ROOT)) for p in PAGES]


def examples(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def case(page):
    """The guides run with the notebooks and scripts, the first pages by default."""
    marks = pytest.mark.study if DOCS / "guides" in page.parents else ()
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


WITH_EXAMPLES = [case(page) for page in PAGES if examples(page)]


def check_getting_started(names):
    """The loops do what the page says."""
    for opt_state in (names["train_state"].opt_state, names["eqx_state"]):
        masks = jp.masks_of(opt_state)
        assert any(m.ndim for m in jax.tree.leaves(masks))
    assert abs(float((names["model"].hidden.kernel[...] == 0).mean()) - 0.9) < 0.01
    kept = jp.sparsity(names["params"], jp.masks_of(names["state"]))
    assert float(kept) == pytest.approx(0.9, abs=0.01)
    full, small = (
        jp.graph.multiply_adds(jp.graph.trace(names["forward"], p, names["x"]))
        for p in (names["params"], names["small"].params)
    )
    assert small <= full / 2


def check_training(names):
    """One call prunes to 95 %, and four sparsities take one compilation."""
    assert names["report"]["sparsity"] == pytest.approx(0.95, abs=0.01)
    assert names["curve"].shape == (4,)


def check_readme(names):
    """Half of the weights stay by 2:4, and half of the cost; what is saved agrees."""
    assert names["report"]["sparsity"] == 0.5
    small = names["small"]
    left = jp.graph.multiply_adds(small.graph, jp.graph.sizes(small.graph, small.keep))
    assert left <= jp.graph.multiply_adds(small.graph) / 2
    saved, x = names["saved"], names["x"]
    wanted = small.fn(small.params, x[:5])
    np.testing.assert_allclose(saved.fn(saved.params, x[:5]), wanted, rtol=1e-6)


def check_write_your_own(names):
    """The method with its track ranks movements, summed here in float64."""
    rng, tx = np.random.default_rng(0), names["tx"]
    params = {"kernel": jnp.asarray(rng.normal(size=(10, 5)), jnp.float32)}
    state, moved = tx.init(params), np.zeros((10, 5))
    for _ in range(12):
        grads = {"kernel": jnp.asarray(rng.normal(size=(10, 5)), jnp.float32)}
        moved -= np.float64(params["kernel"]) * np.float64(grads["kernel"])
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if int(state.count) == 9:  # the last refresh, at 2 + 6
            expected = moved > np.sort(moved.ravel())[-11]
    np.testing.assert_array_equal(jp.masks_of(state)["kernel"], expected)
    with pytest.raises(jp.PruningError, match=r"pass its entries, \*\*method"):
        jp.sparsify(optax.sgd(0.1), names["method"])


def check_state(names):
    """State moves once a step, at the small size, in each of the three frameworks."""
    module, norm = names["module"], names["module"].norm
    assert module.block.drop.rngs.count[...] == 3
    assert norm.mean.shape[0] < 32
    assert (norm.mean[...] != 0).all()
    assert (norm.var[...] != 1).all()
    before, tuned = names["resnet_small"].params, names["tuned"]
    each = zip(jax.tree.leaves(before), jax.tree.leaves(tuned), strict=True)
    assert all(a.shape == b.shape and (a != b).any() for a, b in each)
    mean = names["eqx_state"].get(names["net"].mean)
    assert mean.shape == names["arrays"].first.bias.shape
    assert (mean != 0).all()
    assert names["rebuilt"].block.up.kernel.shape == module.block.up.kernel.shape


CHECKS = {
    "models": named_models.check,
    "state": check_state,
    "getting_started": check_getting_started,
    "training": check_training,
    "README": check_readme,
    "write_your_own": check_write_your_own,
}


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_examples_run(page, tmp_path):
    """All examples of a page in order, in a namespace of its own."""
    names: dict = {}
    for block in examples(page):
        block = block.replace("/tmp/jprune-docs", str(tmp_path))
        exec(compile(block, page.name, "exec"), names)
    CHECKS.get(page.stem, len)(names)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_local_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if re.match(r"\w+:", target):
            continue
        assert page.parent != ROOT, f"{target}: links of the README are absolute"
        made = re.match(r"(\.\./)?(api|_static/made)/", target)
        assert made or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", tables.pages(ROOT), ids=lambda p: p.stem)
def test_tables_are_those_of_the_results(page):
    """And the methods are those of `tests/cases.py`, by test_contracts."""
    assert tables.update(page, RESULTS_DIR, check=True) == []


def test_every_record_and_method_has_its_place():
    names = {path.stem for path in RESULTS_DIR.glob("*.json")}
    assert names <= {path.stem for path in (DOCS / "evidence").glob("*.md")}
    index = (DOCS / "evidence" / "index.md").read_text()
    methods = (DOCS / "methods.md").read_text()
    for name in names:
        assert re.search(rf"^{name}$", index, re.M), name
    for name in jp.recipes.__all__:
        assert f"jp.recipes.{name}(" in methods, name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8_000


# The API pages, which the build makes from docstrings.


@pytest.fixture(scope="module")
def api():
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        yield importlib.import_module("api_pages")
    finally:
        sys.path.remove(str(DOCS / "_ext"))


def test_every_public_name_has_one_entry(api):
    homes = api.homes()
    seen = 0
    for name in api.public_modules():
        text = api.page(name, homes)
        entries = re.findall(r"^````\{py:(?!module)\w+\} (\w+)", text, re.M)
        assert len(entries) == len(set(entries)), name
        offered = {e.name for e in api.entries(importlib.import_module(name))}
        assert set(entries) == offered
        seen += len(entries)
    assert seen > 400


def test_an_entry_shows_the_signature_and_the_sections(api):
    keep = next(
        e
        for e in api.entries(importlib.import_module("jprune.links"))
        if e.name == "keep_top"
    )
    text = api.entry(keep, {"jprune.links": "jprune.links"})
    head, *_ = text.splitlines()
    assert head.startswith("````{py:function} keep_top(sparsity: Sparsity, *, scope: ")
    assert head.endswith("-> Pruner")
    for part in (":param min_kept: ", ":raises PruningError: ", "**Example**"):
        assert part in text
    assert "{py:obj}`jprune.links <jprune.links>`" in text


def test_maps_become_tables_and_formulas_do_not(api):
    docstrings = importlib.import_module("docstrings")
    text = "One.\n\n    a, b(c)     both\n                of them\n\n    z = x * y\n"
    assert docstrings.markdown(text, {"a": "m.a"}) == (
        "One.\n\n| | |\n|---|---|\n| {py:obj}`a <m.a>`, b(c) | both of them |\n\n"
        "```text\nz = x * y\n```"
    )
