"""The studies of SpAtten on images and on language models, at a very small size."""

import json

import numpy as np
import pytest

from experiments.studies.attention import _levels as levels
from experiments.studies.attention import spatten_decoding as decoding
from experiments.studies.attention import spatten_vision as vision

pytestmark = pytest.mark.others_code


class Quiet:
    """No progress bar."""

    def add_task(self, *args, **kwargs):
        return 0

    def advance(self, *args):
        pass


def test_vision_study(tmp_path):
    settings = vision.DIGITS.settings._replace(
        seeds=(1,), steps=3, batch_size=8, width=8, depth=2, patch=4, heads=2
    )
    settings = settings._replace(candidates=settings.candidates[:1])
    outcome = vision.run(settings, None, Quiet())
    rows = outcome.figures["rows"]
    assert rows["dense"]["lost"] == [0]
    assert rows["+ quantization"]["dram"][0] > 4
    assert rows["tokens"]["attention"][0] >= 1
    outcome.draw(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert np.asarray(outcome.figures["pictures"][0]["alive"]).shape == (2, 2, 2)
    json.dumps(outcome.figures, allow_nan=False)


def test_of_what_costs_little_what_reads_least_is_chosen():
    ways = [decoding.Way(share) for share in (0.8, 0.6, 0.3)]
    read = ({"bytes": n, "perplexity": p} for n, p in ((8, 3.0), (6, 3.1), (3, 3.6)))
    tried = list(zip(ways, read, strict=True))
    assert decoding.pick(tried, 3.2).share == 0.6
    assert decoding.pick(tried, 4.0).share == 0.3
    assert decoding.pick(tried, 2.0).share == 0.8


def test_decoding_study(tmp_path):
    settings = decoding.TOY_STUDY.settings._replace(
        steps=3, length=40, width=8, depth=2, heads=2, batch_size=4, shares=(0.6,)
    )
    outcome = decoding.run(settings, None, Quiet())
    found = outcome.figures["GPT"]
    rows = found["texts"]["prose"]
    assert list(rows) == list(levels.ROWS)
    assert found["chosen"]["share"] == 0.6
    # A cache of n slots is read whole: 0.9 n and 0.3 n on average, of up to 39.
    read = [row["bytes"] for row in rows.values()]
    assert read == sorted(read, reverse=True)
    assert rows["dense"]["refetched"] == 0
    mean = np.mean([min(n, 40) for n in range(21, 40)])
    assert rows["dense"]["bytes"] == pytest.approx(2 * 2 * 8 * 4 * mean)
    outcome.draw(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    json.dumps(outcome.figures, allow_nan=False)
