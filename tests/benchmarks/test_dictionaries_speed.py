"""The benchmark runs; its numbers are not judged here, where the machine may be busy."""

import importlib.util
from pathlib import Path


def test_it_measures_every_contender_and_keeps_the_command(tmp_path):
    path = Path(__file__).parent / "dictionaries_speed.py"
    spec = importlib.util.spec_from_file_location("dictionaries_speed", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    results = tmp_path / "speed.csv"
    rows = benchmark.main(sizes=((64, 256, 64),), repeats=1, results=results)
    assert {row["contender"].split()[0].strip(",") for row in rows} == {
        "saelens",
        "eager",
        "strata",
    }
    assert {row["half_dead"] for row in rows} == {True, False}
    assert all(row["ms_per_step"] > 0 for row in rows)
    assert results.read_text().startswith("# python")
