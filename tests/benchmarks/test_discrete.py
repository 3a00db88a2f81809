import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("discrete.py")


@pytest.mark.slow
def test_writes_its_tables(tmp_path):
    main = runpy.run_path(str(SCRIPT))["main"]
    options = ["--worlds", "1", "--tables", "2", "--methods", "oracle_structure", "--trees", "1"]
    summary = main([*options, "--out", str(tmp_path)])
    assert summary["rank_right"]["tables"] == 2
    assert summary["oracle_structure"]["f1"] == 1.0
    assert summary["gaussian_trees_strata"]["f1_at_10000"] > 0.9
    record = json.loads((tmp_path / "discrete.json").read_text())
    assert record["summary"] == summary
    assert len((tmp_path / "discrete_rank.csv").read_text().splitlines()) == 3
    assert len((tmp_path / "discrete_trees.csv").read_text().splitlines()) == 5
    assert len((tmp_path / "discrete_hierarchy.csv").read_text().splitlines()) == 2
