"""The studies of SpAtten at a very small size, and how they count."""

import functools
import json

import jax
import numpy as np
import pytest

from experiments import ExperimentError
from experiments.loops import finetune
from experiments.models import bert, encoder
from experiments.studies.attention import _levels as levels
from experiments.studies.attention import _protocol as protocol
from experiments.studies.attention import _report as report
from experiments.studies.attention import _tasks as tasks
from experiments.studies.attention import _training as training
from experiments.studies.attention import spatten_accuracy as accuracy
from experiments.studies.attention import spatten_students as students
from experiments.tasks import toys
from jprune import attention as ja

pytestmark = pytest.mark.others_code


class Quiet:
    """No progress bar."""

    def add_task(self, *args, **kwargs):
        return 0

    def advance(self, *args):
        pass


def counts_of(tokens, heads):
    """What plain attention works with, a sentence in each of two layers."""
    rows = np.asarray([heads * tokens] * 2)
    none = np.zeros(2, np.int64)
    return encoder.Counts(
        tokens=np.asarray([tokens] * 2),
        after=np.asarray([tokens] * 2),
        heads=np.asarray([heads] * 2),
        spoken=rows,
        pairs=rows * tokens,
        products=rows * tokens,
        unsure=none,
        fetched=ja.Fetched(rows, rows, none, rows),
    )


SIZES = levels.Sizes(depth=2, heads=12, dim=64, width=768, hidden=3072)


def test_costs_are_those_of_bert_base_by_hand():
    found = levels.cost(counts_of(128, 12), SIZES)
    # 3 arrays of 128 x 768 float32, 2 products of 128 x 128 x 768, two layers.
    assert found.dram == 2 * 3 * 128 * 768 * 4
    assert found.attention == 2 * 2 * 128 * 128 * 768
    dense = ja.multiply_adds(ja.dense(2, 128, 12), 768, 3072)
    assert found.layers == sum(dense)


def test_half_the_heads_and_bits_are_counted():
    full = levels.cost(counts_of(128, 12), SIZES)
    half = levels.cost(counts_of(128, 6), SIZES, ja.Bits(8, 4, 4, 8))
    saved = levels.savings(full, half)
    assert saved["dram"] == pytest.approx(2 * 96 / (8 + 4 + 8))
    assert saved["dram16"] == pytest.approx(saved["dram"] / 2)
    assert saved["attention"] == 2
    lower = counts_of(128, 6)
    rows = lower.fetched.keys
    lower = lower._replace(fetched=lower.fetched._replace(lower=rows), unsure=rows // 4)
    more = levels.cost(lower, SIZES, ja.Bits(8, 4, 4, 8))
    assert more.dram / half.dram == pytest.approx(24 / 20)
    assert levels.refetched(lower) == {"rows": 25.0, "keys": 100.0}


def test_the_cheapest_that_saves_enough_is_picked():
    tried = [
        {"dram": 7.0, "attention": 3.0, "loss": 0.1},
        {"dram": 8.5, "attention": 2.0, "loss": 0.3},
        {"dram": 8.1, "attention": 1.9, "loss": 0.2},
        {"dram": 9.0, "attention": 1.0, "loss": 0.0},
    ]
    assert levels.enough(tried, 8.0, 1.8) == [1, 2]
    assert levels.pick(tried, 8.0, 1.8) == 2
    assert levels.pick(tried, 20.0, 1.8) == 3


def test_levels_follow_the_paper_rule():
    found = levels.pruning(levels.Level(0.6, 0.8, 0.8, 0.5), 6, 12)
    np.testing.assert_allclose(found.tokens, [1, 0.8, 0.7, 0.6, 0.5, 0.4], atol=1e-6)
    assert found.heads.tolist() == [12, 12, 12, 10, 8, 7]
    assert found.values.tolist() == [0.5] * 6
    some = levels.Level(0.6, 0.8, 0.8, 0.5, last=0.75)
    assert levels.pruning(some, 6, 12).values.tolist() == [0.5] * 5 + [0.75]
    late = levels.Level(0.6, 0.8, front=0.5)
    found = levels.pruning(late, 6, 12).tokens
    np.testing.assert_allclose(found, [1, 1, 1, 0.8, 0.6, 0.4], atol=1e-6)
    assert late.only_tokens() == levels.Level(0.6, 0.8, front=0.5)
    rows = levels.steps(some)
    assert [x and (x.values, x.last) for x in rows.values()] == [
        None,
        *[(1.0, None)] * 2,
        *[(0.5, 0.75)] * 2,
    ]


def test_toy_sentences_say_what_their_class_is():
    found = toys.sentiment(200, 0)
    ids, lengths = found.tokens.ids, found.tokens.lengths
    good = (ids >= toys.FIRST + toys.POLAR) & (ids < toys.FIRST + 2 * toys.POLAR)
    bad = (ids >= toys.FIRST) & (ids < toys.FIRST + toys.POLAR)
    assert ((good.sum(1) > bad.sum(1)) == found.labels.astype(bool)).all()
    assert ((ids > 0).sum(1) == lengths).all()
    assert (ids[:, 0] == toys.BEGIN).all()
    assert 0.4 < found.labels.mean() < 0.6


@pytest.fixture(scope="module")
def small():
    """The toy with an encoder of two layers and one width of batches."""
    problem = tasks.toy(300)
    init = functools.partial(
        bert.init, vocabulary=toys.VOCABULARY, length=32, width=16, depth=2
    )
    cut = lambda part, n: jax.tree.map(lambda x: x[:n], part)  # noqa: E731
    pretrained = init(jax.random.key(7))  # every seed starts from the same arrays
    long = problem.fit.tokens.lengths > 24
    fit = jax.tree.map(lambda x: x[long], problem.fit)
    return problem._replace(
        fit=fit,
        choose=cut(problem.choose, 32),
        dev=cut(problem.dev, 40),
        init=lambda key: bert.with_head(pretrained, key, 2),
        fixed=True,
    )


def _stops_after(count, stepper):
    """The optimizer, and steps that are interrupted when one more is called."""
    left = iter(range(count))

    def stopping(*args):
        tx, step = stepper(*args)

        def counted(*more):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return step(*more)

        return tx, counted

    return stopping


def check_rows(rows):
    assert list(rows) == list(levels.ROWS)
    for key in ("dram", "attention", "layers"):
        values = [row[key][0] for row in rows.values()]
        assert values[0] == 1
        assert values == sorted(values)  # each technique saves, or does nothing
    assert rows["+ quantization"]["dram"][0] > 4
    assert rows["dense"]["lost"] == [0]


def check_student_starts_dense(small, tmp_path):
    (dense,), (student,) = (tmp_path.glob(f"*.{x}.npz") for x in ("dense", "tuned"))
    free = {k: x for k, x in small.init(jax.random.key(3)).items() if k != "embed"}
    with np.load(dense) as before, np.load(student) as after:
        assert (int(before["done"]), int(after["done"])) == (3, 1)
        # It goes on from the dense network: the first rate of a warm-up is 0.
        for i in range(len(jax.tree.leaves(free))):
            assert (before[str(i)] == after[str(i)]).all()


def check_report(tmp_path, settings, task, other):
    figures = {"tasks": {"toy": task, "toy, distilled": other}}
    for block in figures["tasks"].values():
        block["task"] = "toy"
    assert len(report.table(figures, settings).rows) == 10
    report.draw(tmp_path / "plot.png", figures)
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    json.dumps(figures, allow_nan=False)
    claims = [claim.check(figures) for claim in accuracy.STUDY.claims]
    assert claims[0]["ours"] == (task["met"] or other["met"])  # one task, not two
    for ends, count in (((True, True), 1), ((False, True), 1), ((False, False), 0)):
        for block, met in zip(figures["tasks"].values(), ends, strict=True):
            block["met"] = met
        assert report.met(figures)[0] == count


def test_accuracy_study(small, monkeypatch, tmp_path):
    monkeypatch.setenv("JPRUNE_RESUME_DIR", str(tmp_path))
    settings = accuracy.TOY_STUDY.settings._replace(
        seeds=(3,),
        steps=(2, 3),
        trial=1,
        batch_size=16,
        candidates=accuracy.CANDIDATES[-2:],
        taught=protocol.TAUGHT[-1:],
        dram=4.0,  # both save enough, so both are tried
        attention=1.0,
    )
    monkeypatch.setattr(finetune, "SAVED", 1)
    monkeypatch.setattr(training, "stepper", _stops_after(8, training.stepper))
    with pytest.raises(KeyboardInterrupt):
        accuracy.finished(lambda: small, "toy", settings, 3)
    assert len(list(tmp_path.glob("*.npz"))) == 3  # it was in its last part
    monkeypatch.undo()
    monkeypatch.setenv("JPRUNE_RESUME_DIR", str(tmp_path))
    found = accuracy.finished(lambda: small, "toy", settings, 3)
    assert not list(tmp_path.glob("*.npz"))
    monkeypatch.delenv("JPRUNE_RESUME_DIR")
    assert accuracy.finished(lambda: small, "toy", settings, 3) == found
    monkeypatch.setenv("JPRUNE_RESUME_DIR", str(tmp_path))
    for_the_next_seed = jax.tree.leaves(small.init(jax.random.key(4)))
    assert not any(x.is_deleted() for x in for_the_next_seed)
    with pytest.raises(ExperimentError, match="has no picture"):
        report.gathered([{k: found[k] for k in found if k != "curve"}], settings)
    task = report.gathered([found], settings)
    assert levels.level_of(found["level"]) in settings.candidates
    task["seconds"] = accuracy.seconds(small, levels.level_of(found["level"]), 16)
    assert all(taken > 0 for taken in task["seconds"].values())
    check_rows(task["rows"])
    monkeypatch.setattr(finetune, "SAVED", 1)
    monkeypatch.setattr(training, "stepper", _stops_after(6, training.stepper))
    with pytest.raises(KeyboardInterrupt):  # after the first step that is taught
        accuracy.finished(lambda: small, "toy", settings, 3, distilled=True)
    check_student_starts_dense(small, tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("JPRUNE_RESUME_DIR", str(tmp_path))
    taught = accuracy.finished(lambda: small, "toy", settings, 3, distilled=True)
    monkeypatch.delenv("JPRUNE_RESUME_DIR")
    assert accuracy.finished(lambda: small, "toy", settings, 3, True) == taught
    monkeypatch.setenv("JPRUNE_RESUME_DIR", str(tmp_path))
    assert accuracy.finished(lambda: small, "toy", settings, 3) == found
    assert taught["rows"]["dense"] == found["rows"]["dense"]
    assert levels.level_of(taught["level"]) == settings.taught[0]
    assert taught["curve"]["scores"][0] == found["curve"]["scores"][0]
    other = report.gathered([taught], settings) | {"seconds": task["seconds"]}
    check_report(tmp_path, settings, task, other)

    def again():
        raise AssertionError("it is finished")

    assert accuracy.finished(again, "toy", settings, 3) == found
    with pytest.raises(AssertionError):  # other settings are another network
        accuracy.finished(again, "toy", settings._replace(rate=1.0), 3)


def test_a_task_has_one_dense_network(small, monkeypatch):
    """The plain and the distilled network of a seed start from the same one."""
    monkeypatch.setattr(accuracy, "problem", lambda *_: small)
    begun, seeds = training.begun, []

    def counted(problem, course, seed, at):
        seeds.append(seed)
        return begun(problem, course, seed, at)

    monkeypatch.setattr(training, "begun", counted)
    settings = accuracy.TOY_STUDY.settings._replace(
        tasks=("toy",),
        seeds=(3,),
        steps=(2, 3),
        trial=1,
        batch_size=16,
        shortlist=1,
        distilled=("toy", "other"),
    )
    outcome = accuracy.run(settings, None, Quiet())
    assert seeds == [3]
    plain, taught = outcome.figures["tasks"].values()
    assert list(outcome.figures["tasks"]) == ["toy", "toy, distilled"]
    assert plain["rows"]["dense"] == taught["rows"]["dense"]
    assert [level["bits"]["query"] for level in taught["levels"]] == [4]
    alone = accuracy.finished(lambda: small, "toy", settings, 3, distilled=True)
    assert {k: round(v, 4) for k, v in alone["rows"]["tokens"].items()} == {
        k: v[0] for k, v in taught["rows"]["tokens"].items() if k != "lost"
    }


def test_students_study(small, monkeypatch, tmp_path):
    monkeypatch.setattr(students, "problem", lambda *_: small)
    monkeypatch.setenv("JPRUNE_RESUME_DIR", str(tmp_path))
    course = training.Course((2, 3), 16, 2e-3, protocol.LESSON)
    whole = levels.Level(bits=ja.Bits(12, 8, 4, 12), threshold=0.0)
    fewer = whole._replace(tokens=0.4, start=0.6, front=0.0)
    coarse = whole._replace(bits=ja.Bits(6, 4, 4, 6))
    schedules = (("fewer", fewer), ("whole", whole), ("coarse", coarse))
    settings = students.TOY_STUDY.settings._replace(
        tasks=("toy", "other"),
        seeds=(3,),
        steps=2,
        schedules=schedules,
        course=course,
        dram=3.0,
        attention=1.4,
    )
    outcome = students.run(settings, None, Quiet())
    found = outcome.figures["schedules"]
    # Nothing is refetched: 12 + 8 + 12 bits, 6 + 4 + 6 bits of three numbers of 32.
    assert (found["whole"]["dram"], found["coarse"]["dram"]) == ([3.0], [6.0])
    assert found["whole"]["attention"] == [1.0]
    assert found["fewer"]["attention"] > [1.4]
    assert [row["enough"] for row in found.values()] == [True, False, False]

    start = training.begun(small, course, 3, None)
    dense = training.went_on(small, course, 3, start, finetune.DENSE)
    teacher = training.whole(dense)
    sizes = levels.sizes_of(teacher, 4)
    judge = finetune.make_judge(4, small.widths, 16)
    said = judge(teacher, small.choose).logits
    for name, level in schedules:
        kept = levels.kept_of(level, sizes, quantized=True)
        taught = training.taught(small, course, 3, teacher, kept, 2)
        for when, params in (("before", teacher), ("after", training.whole(taught))):
            ours = judge(params, small.choose, kept).logits
            apart = 1e4 * np.square(said - ours).mean()
            for task in settings.tasks:  # two names of one task
                assert found[name][when][task][0] == pytest.approx(apart, abs=1e-3)
        right = [(x.argmax(-1) == small.choose.labels).mean() for x in (said, ours)]
        lost = 100 * (right[0] - right[1])
        assert found[name]["lost"][0] == pytest.approx(lost, abs=1e-3)
        assert found[name]["after"] != found[name]["before"]
    first, second, _ = outcome.tables["main"].rows
    assert first[:4] == ("fewer", "60", "100, 100", "12, 8+4, 12")
    assert (first[-1], second[-3:]) == ("yes", ("3.00x", "1.00x", "no"))

    # What is kept stands for training, and other sentences ask for other figures.
    assert not list(tmp_path.glob("*.npz"))

    def again(*args):
        raise AssertionError("it is finished")

    monkeypatch.setattr(training, "begun", again)
    assert students.run(settings, None, Quiet()).figures == outcome.figures
    with pytest.raises(AssertionError):
        students.run(settings._replace(tasks=("toy",)), None, Quiet())


def test_times_nearer_are_of_schedules_that_save_enough():
    def row(apart, enough):
        after = {"a": [apart - 1, apart], "b": [apart + 1, apart]}
        return {"after": after, "enough": enough}

    near, far = students.TAKEN, students.EARLIER
    figures = {"schedules": {near: row(4.0, True), far: row(6.0, True)}}
    assert students.times_nearer(figures) == (1.5, 0.0)
    figures["schedules"][near]["enough"] = False
    assert students.times_nearer(figures) == (0.0, None)
    real = dict(students.STUDY.settings.schedules)
    assert real[near] == protocol.TAUGHT[0]


def test_examples_are_batched_with_their_labels():
    part = toys.sentiment(30, 4)
    for batch in finetune.batches(part, (24, 32), 8):
        rows = batch.rows
        assert (batch.labels == part.labels[rows]).all()
        width = batch.ids.shape[1]
        assert (batch.ids == part.tokens.ids[rows, :width]).all()
