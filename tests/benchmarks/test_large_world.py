"""The benchmark of the large world runs at a small size."""


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
