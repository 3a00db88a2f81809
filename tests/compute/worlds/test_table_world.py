import numpy as np
import pytest

from compute.worlds.table_world import RankTable, TableWorld, identifiable


def test_same_seed_same_world_and_rows():
    first, second = (TableWorld.hierarchy((4, 2), n_loners=1, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.sample(50, seed=1).parts, second.sample(50, seed=1).parts)
    assert (first.sample(50, seed=1).parts != first.sample(50, seed=2).parts).any()


def test_rows_follow_the_tables():
    world = TableWorld.hierarchy(4, n_loners=2, seed=0)
    drawn = world.sample(40_000)
    for i, (whole, table) in enumerate(zip(world.parents[0], world.conditionals[0])):
        states = np.zeros(40_000, int) if whole < 0 else drawn.wholes[0][:, whole]
        for state, row in enumerate(table):
            held = drawn.parts[states == state, i]
            seen = np.bincount(held, minlength=len(row)) / max(1, len(held))
            assert 0.5 * np.abs(seen - row).sum() < 4 / np.sqrt(max(1, len(held)))


def test_levels_and_shapes_agree():
    world = TableWorld.hierarchy((6, 2), seed=1)
    drawn = world.sample(10)
    assert [w.shape for w in drawn.wholes] == [(10, 6), (10, 2)]
    assert drawn.parts.shape == (10, len(world.part_cardinalities))
    assert world.top.sum() == pytest.approx(1.0)
    for level, tables in enumerate(world.conditionals):
        for whole, table in zip(world.parents[level], tables):
            assert len(table) == world.cardinalities[level][whole]


def test_independent_wholes_are_independent():
    top = TableWorld.hierarchy(2, dependence="none", seed=0).top
    np.testing.assert_allclose(top, np.outer(top.sum(axis=1), top.sum(axis=0)))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"n_wholes": 0}, "n_wholes"),
        ({"n_wholes": (2, 4)}, "n_wholes"),
        ({"part_states": (1, 2)}, "part_states"),
        ({"separation": 1.5}, "separation"),
        ({"rarest_state": 0.5}, "rarest_state"),
        (
            {"parts_per_whole": (3, 3), "part_states": (2, 2), "whole_states": (5, 5)},
            "whole_states",
        ),
        ({"n_wholes": 20}, "n_wholes"),
    ],
)
def test_impossible_worlds_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        TableWorld.hierarchy(**settings)


def test_kruskal_condition():
    assert identifiable((2, 2, 2), 2)
    assert not identifiable((2, 2, 2), 3)
    assert identifiable((5, 5, 5), 5)


@pytest.mark.parametrize(("sides", "rank"), [(4, 4), (5, 5), (6, 5), (8, 6)])
def test_polygons_have_ordinary_rank_three(sides, rank):
    table = RankTable.polygon(sides)
    assert table.rank == rank
    assert np.linalg.matrix_rank(table.probabilities) == 3
    assert table.sample(100).sum() == 100


def test_random_table_has_its_rank():
    table = RankTable.random(4, (9, 12), seed=5)
    assert np.linalg.matrix_rank(table.probabilities) == 4
    with pytest.raises(ValueError, match="rank is 10"):
        RankTable.random(10, (9, 12))
