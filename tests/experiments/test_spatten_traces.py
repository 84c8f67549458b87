"""The authors' two traces: single rows of their files, and the totals."""

import numpy as np
import pytest

from experiments.tasks import spatten_traces as traces

SMALL, MEDIUM = traces.GPT2_SMALL, traces.GPT2_MEDIUM

# Lines of the files: token, layer, keys, values.
LINES = {
    "small": (
        SMALL,
        [
            *[(0, 0, 993, 204), (0, 11, 993, 204), (1, 0, 921, 184), (1, 1, 716, 143)],
            *[(1, 2, 204, 40), (1, 5, 204, 40), (1, 6, 102, 20), (12, 9, 102, 20)],
        ],
    ),
    "medium": (
        MEDIUM,
        [
            *[(1, 1, 994, 307), (1, 2, 921, 276), (1, 3, 819, 245), (1, 4, 819, 245)],
            *[(1, 5, 614, 184), (1, 10, 614, 184), (1, 11, 307, 92), (1, 16, 307, 92)],
        ],
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_rows_are_those_of_the_files(name):
    trace, lines = LINES[name]
    read = traces.rows(trace)
    for step, layer, keys, values in lines:
        heads = trace.heads[layer]
        assert read.keys[step, layer] == heads * keys
        assert read.values[step, layer] == heads * values


def test_refetches_are_those_of_the_file():
    read = traces.rows(SMALL)
    heads = np.divide(12 * read.lower, read.keys)
    assert heads[0].tolist() == [12, 12, 12, 1, 1, 1, 1, 1, 3, 1, 1, 5]
    assert heads[:, 0].tolist() == [12] * 10 + [4] + [0] * 21
    assert heads[:, 1].tolist() == [12] * 14 + [4] + [0] * 17
    assert not heads[1:, 2:].any()
    assert not traces.rows(MEDIUM).lower.any()


def test_reductions_are_those_of_the_sheet():
    """Elements 6.04 and 3.10 times fewer, bits 28.9 and 8.96 times."""
    small, medium = traces.reduction(SMALL), traces.reduction(MEDIUM)
    assert small.elements == pytest.approx(6.04, rel=0.005)
    assert medium.elements == pytest.approx(3.10, rel=0.005)
    assert small.bits == pytest.approx(28.9, rel=0.005)
    assert medium.bits == pytest.approx(8.96, rel=0.005)
    assert small.keys == pytest.approx(3.62, rel=0.005)
    assert small.refetched == pytest.approx(0.070, abs=0.0005)


def test_totals_by_a_plain_loop():
    for trace, key_bits, value_bits in ((SMALL, 6, 6), (MEDIUM, 12, 8)):
        keys = values = dense = 0
        for step in range(32):
            context = 993 + step
            for tokens, heads in zip(trace.tokens, trace.heads, strict=True):
                dense += 64 * context * trace.heads[0]
                keys += 64 * heads * (min(tokens, context) if step else context)
                part = int(trace.values * (tokens if step else 1024) + 1e-6)
                values += 64 * heads * part
        moved, reduction = traces.bits(trace), traces.reduction(trace)
        assert moved.keys == keys * key_bits
        assert moved.values == values * value_bits
        assert reduction.elements == pytest.approx(2 * dense / (keys + values))
        assert moved.queries == 32 * 64 * sum(trace.heads) * 16


def test_time_on_the_papers_memory():
    """At 512 GB/s, as the traces' authors have it: 0.161 and 1.383 ms."""
    for trace, ms in ((SMALL, 0.161), (MEDIUM, 1.383)):
        moved = traces.bits(trace)
        seconds = (moved.keys + moved.lower + moved.values) / 8 / 512e9
        assert 1e3 * seconds == pytest.approx(ms, rel=0.01)
