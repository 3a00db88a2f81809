"""The benchmarks of reading and of memory run; their numbers are not judged on a busy machine."""

import importlib.util
from pathlib import Path


def benchmark(name):
    path = Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loader_is_measured_against_every_contender(tmp_path):
    rows = benchmark("loader_speed").main(
        n_rows=32_768, repeats=1, results=tmp_path / "loader_speed.csv"
    )
    names = {row["contender"].split(",")[0] for row in rows}
    assert names == {"memmap", "strata", "zarr", "zarr + zarrs", "saelens"}
    assert all(row["gb_per_s"] > 0 for row in rows)
    assert (tmp_path / "loader_speed.csv").read_text().startswith("# python")


def test_memory_is_measured_in_processes_of_their_own(tmp_path):
    rows = benchmark("memory").main(sizes=(2000,), results=tmp_path / "memory.csv")
    assert {row["task"] for row in rows} == {"extraction", "loader", "statistics", "doctor"}
    assert all(row["peak_mb"] > 50 for row in rows)
