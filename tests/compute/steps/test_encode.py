"""Summaries of codes: merged shard by shard they equal the summary of all rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compute.steps.encode import ConceptSummary


def summarise(indices, values, start=0, candidates=3):
    rows = np.arange(start, start + len(indices))
    return ConceptSummary.of(indices, values, rows, 10, candidates)


@given(st.integers(0, 2**32), st.integers(1, 39))
def test_merging_parts_equals_the_whole(seed, cut):
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.choice(10, 4, replace=False) for _ in range(40)])
    # Few distinct values, so that ties must be broken the same way.
    values = rng.integers(0, 4, size=(40, 4)).astype(np.float32)
    whole = summarise(indices, values)
    merged = summarise(indices[:cut], values[:cut]).merge(
        summarise(indices[cut:], values[cut:], start=cut)
    )
    for name in ("rows", "counts", "sums", "maxima", "histogram", "top_rows", "top_values"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(merged, name), err_msg=name)


def test_what_a_summary_says():
    indices = np.array([[0, 1], [1, 2], [1, 0]])
    values = np.array([[2.0, 5.0], [7.0, 0.0], [6.0, 1.0]], np.float32)
    summary = summarise(indices, values, start=100, candidates=2)
    assert summary.counts[:3].tolist() == [2, 3, 0]
    assert summary.sums[:3].tolist() == [3.0, 18.0, 0.0]
    assert summary.maxima[:3].tolist() == [2.0, 7.0, 0.0]
    assert summary.top_rows[1].tolist() == [101, 102]
    assert summary.top_rows[2].tolist() == [-1, -1]
    assert summary.histogram.sum(axis=1)[:3].tolist() == [2, 3, 0]


def test_a_summary_is_read_back_as_it_was_written():
    rng = np.random.default_rng(0)
    summary = summarise(rng.integers(0, 10, (5, 1)), rng.random((5, 1)).astype(np.float32))
    again = ConceptSummary.from_bytes(summary.to_bytes())
    np.testing.assert_array_equal(again.top_values, summary.top_values)
    assert again.rows == 5
