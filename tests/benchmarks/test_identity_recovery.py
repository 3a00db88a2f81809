"""The alignment benchmark runs end to end on worlds of a few concepts, and scores as it says."""

import numpy as np
import pytest

from storage.graph.alignment import Alignment


@pytest.fixture
def alignment(import_benchmark):
    return import_benchmark("identity_recovery")


def test_concepts_of_a_small_world_are_found_again(alignment, tmp_path):
    small = alignment.NightScale(sizes=(12, 10), dim=24, rows=2000, steps=60)
    arguments = ["--learners", "independent", "--worlds", "mixed gates", "--seeds", "1"]
    rows = alignment.main([*arguments, "--out", str(tmp_path)], small)
    assert len(rows) == 4
    assert all(row["kept"] > 0.9 for row in rows if row["level"] == 1)
    assert all(row["wrong"] < 0.2 for row in rows)
    assert len((tmp_path / "identity_recovery.csv").read_text().splitlines()) == 7


def test_scores_count_what_is_kept_mixed_up_born_and_gone(alignment):
    """Four true concepts; the last is gone, one not found, and two are mixed up."""

    def night(truth, present):
        return alignment.Night(
            np.eye(len(truth)), lambda rows: rows, np.array(truth), np.array(present)
        )

    first, second = night([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]), night([0, 2, 1, -1], [0, 1, 2, 3])
    pairs = np.array([0, 1, 2])
    said = Alignment(pairs, pairs, np.ones(3), 0.5, np.array([3, 4]), np.array([3]))
    found = alignment.scores(first, second, said)
    assert found["found"] == (1 + 3 / 4) / 2
    assert found["kept"] == 1 / 4
    assert found["kept_of_found"] == 1 / 3
    assert found["wrong"] == 2 / 4
    # Said to be gone: 3 and 4, of which 4 is; said to be born: one that is nothing.
    assert (found["fates_right"], found["fates_named"]) == (1, 4)
