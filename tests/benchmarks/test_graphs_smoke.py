import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("graphs", Path(__file__).with_name("graphs.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_simple_rivals_and_ours_run_on_one_world(benchmark):
    world = benchmark.SelectionWorld.vectors(sizes=(20, 6, 3), seed=1)
    codes = [c.astype(np.float64) for c in world.sample(1500).codes]
    scores = {
        name: benchmark.f1(benchmark.METHODS[name](codes)[0], world.edges[0])
        for name in ("strata", "shuffled null", "correlation, Bonferroni")
    }
    assert scores["strata"] > scores["correlation, Bonferroni"] > scores["shuffled null"]


def test_planted_wholes_follow_their_parts(benchmark):
    parts, wholes, true = benchmark.planted(4000, 64, 4, seed=0)
    assert np.diff(wholes.indptr).max() <= 4
    drive = (parts @ true).toarray()
    assert (drive[wholes.toarray() > 0] > 0).all()
    found = benchmark.recover_edges(parts, wholes)
    assert benchmark.sparse_f1(found, true) > 0.9


def test_results_name_command_and_machine(benchmark, tmp_path):
    benchmark.write(tmp_path / "x.csv", [{"a": 0.123456, "b": "c"}])
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[0].startswith("# python ")
    assert "numpy" in lines[1]
    assert list(csv.DictReader(lines[3:])) == [{"a": "0.1235", "b": "c"}]


def test_reliability_is_drawn_from_its_table(benchmark, tmp_path):
    pytest.importorskip("matplotlib")
    benchmark.draw_reliability(tmp_path)
    assert not list(tmp_path.iterdir())
    confidence = np.linspace(0.0, 1.0, 50)
    rows = benchmark.reliability([confidence], [confidence > 0.3])
    benchmark.write(tmp_path / "graphs_reliability.csv", rows)
    benchmark.draw_reliability(tmp_path)
    assert (tmp_path / "graphs_reliability.png").read_bytes().startswith(b"\x89PNG")
