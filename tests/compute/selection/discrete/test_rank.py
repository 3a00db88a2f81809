import numpy as np
import pytest

from compute.selection import nonnegative_rank, rank_evidence
from compute.worlds.table_world import RankTable


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_random_tables(rank):
    table = RankTable.random(rank, (12, 15), concentration=0.4, weight_concentration=10, seed=rank)
    assert nonnegative_rank(table.sample(20_000, seed=rank)) == rank


def test_exceeds_ordinary_rank():
    square = RankTable.polygon(4)
    assert nonnegative_rank(square.sample(5_000)) == 4


def test_few_samples_of_independence_stay_at_one():
    found = [
        nonnegative_rank(RankTable.random(1, (8, 8), seed=s).sample(300, seed=s)) for s in range(10)
    ]
    assert found.count(1) >= 9


def test_order_and_empty_cells_do_not_matter():
    counts = RankTable.random(3, (7, 8), concentration=0.4, weight_concentration=10).sample(20_000)
    padded = np.pad(counts[::-1], 2)
    assert nonnegative_rank(padded) == nonnegative_rank(counts.T) == 3


def test_evidence_ends_at_the_answer_and_repeats():
    counts = RankTable.random(3, (7, 8), concentration=0.4, weight_concentration=10).sample(20_000)
    steps = rank_evidence(counts, seed=4)
    assert steps == rank_evidence(counts, seed=4)
    assert [s.rank for s in steps] == [1, 2, 3]
    assert all(s.p_value <= 0.005 for s in steps[:-1])
    assert steps[-1].p_value > 0.005


def test_ceilings():
    counts = RankTable.random(3, (7, 8), concentration=0.4, weight_concentration=10).sample(20_000)
    assert nonnegative_rank(counts, max_rank=2) == 2
    assert nonnegative_rank(np.diag([50, 50])) == 2
    assert nonnegative_rank([[7, 3, 1]]) == 1


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ([1, 2], "shape"),
        ([[1, -2], [1, 1]], "-2"),
        ([[0.5, 0.5]], "0.5"),
        ([[np.nan, 1]], "nan"),
        ([[0, 0]], "zeros"),
        ([["a", "b"]], "type"),
    ],
)
def test_bad_counts_are_refused(counts, word):
    with pytest.raises(ValueError, match=word):
        nonnegative_rank(counts)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="level is 0"):
        nonnegative_rank([[1, 2], [3, 4]], level=0)
    with pytest.raises(ValueError, match="max_rank is 0"):
        nonnegative_rank([[1, 2], [3, 4]], max_rank=0)
