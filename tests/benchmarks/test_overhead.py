"""The overhead benchmark adds up: what a run took is its steps and what is around them."""

import csv

import pytest
import yaml

from tests.benchmarks import overhead

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_the_parts_make_the_whole(tmp_path, tiny_recipe, monkeypatch):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    overhead.main([str(file), "--results", str(tmp_path / "out.csv")])
    rows = {row["what"]: row for row in csv.DictReader((tmp_path / "out.csv").open())}
    seconds = {what: float(row["seconds"]) for what, row in rows.items()}
    assert seconds["run"] == pytest.approx(
        seconds["steps"] + seconds["check of inputs"] + seconds["Prefect and command line"],
        abs=0.05,
    )
    assert 0 < seconds["orchestration"] < seconds["run"]
    assert all(value >= 0 for value in seconds.values())
