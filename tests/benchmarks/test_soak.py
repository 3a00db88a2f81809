"""The soak runs, twice; whether its series are flat is judged on longer ones."""

import pytest

from tests.benchmarks.test_loader_speed import benchmark

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_two_nights_in_a_row(tmp_path):
    rows = benchmark("soak").main(n_runs=2, results=tmp_path / "soak.csv")
    assert [row["state"] for row in rows] == ["COMPLETED", "COMPLETED"]
    assert [row["versions"] for row in rows] == [1, 2]
    assert 0 <= rows[1]["kept_share"] <= 1
    assert all(row[f"{name}_mb"] > 10 for row in rows for name in ("server", "worker", "ray"))
    # Nothing of a run that has ended goes on: no flow's process, no worker of Ray's.
    assert rows[1]["processes"] <= rows[0]["processes"]
