"""The second generator and its benchmark: what is drawn can be found, and every row is kept."""


def test_true_codes_are_scored_nearly_right(import_benchmark, tmp_path):
    benchmark = import_benchmark("hidden_worlds")
    asked = ["--worlds", "plain", "always on", "--seeds", "2", "--rows", "1500"]
    asked += ["--methods", "true codes", "batchtopk, whitened, 200", "--out", str(tmp_path)]
    rows = benchmark.main(asked)
    assert len(rows) == 4
    found = {(row["world"], row["method"]): row for row in rows}
    for world in ("plain", "always on"):
        ceiling = found[world, "true codes"]
        assert ceiling["mcc_parts"] > 0.95
        assert ceiling["mcc_wholes"] > found[world, "batchtopk, whitened, 200"]["mcc_wholes"]
    assert (tmp_path / "hidden_worlds_24_1500.csv").is_file()
