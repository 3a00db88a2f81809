"""The benchmark of the large world runs at a small size."""

import math


def test_every_method_is_scored(import_benchmark, tmp_path):
    large_world = import_benchmark("large_world")
    asked = ["--rows", "2000", "--steps", "80", "--seeds", "2", "--parts", "32", "--threads", "1"]
    asked += ["--methods", "independent", "random decoder", "--out", str(tmp_path)]
    rows = large_world.main(asked)
    by_method = {method: [r for r in rows if r["method"] == method] for method in asked[11:13]}
    assert [len(own) for own in by_method.values()] == [2, 2]
    ours, blind = (own[0]["mcc"] for own in by_method.values())
    assert 0 < blind < ours <= 1
    assert (tmp_path / "large_world.csv").read_text().count("\n") == 7


def test_recorded_activations_are_measured_without_a_truth(import_benchmark, tmp_path):
    loader, large_world = (import_benchmark(name) for name in ("loader_speed", "large_world"))
    loader.write_set(tmp_path / "set", loader.SHARD)
    asked = ["--store", str(tmp_path / "set"), "--level", "a", "--rows", "2000", "--steps", "5"]
    asked += ["--parts", "32", "--active", "4", "--seeds", "2", "--methods", "independent"]
    rows = large_world.main([*asked, "--threads", "1", "--out", str(tmp_path)])
    assert all(math.isnan(row["mcc"]) and 0 < row["consistency"] < 1 for row in rows)
    assert (tmp_path / "large_model.csv").read_text().count("\n") == 5
