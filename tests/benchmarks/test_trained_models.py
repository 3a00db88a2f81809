"""The benchmark of trained models runs, goes on where it was, and its score means what it says."""

import numpy as np
import pytest


@pytest.fixture
def benchmark(import_benchmark):
    return import_benchmark("trained_models")


def test_rows_are_computed_once(benchmark, tmp_path, monkeypatch):
    models = ["grammar", "sprites"]
    methods = ["independent", "random decoder", "linear probe"]
    asked = ["--models", *models, "--methods", *methods]
    asked += ["--seeds", "1", "--training-steps", "3", "--samples", "12", "--out", str(tmp_path)]
    rows = benchmark.main(asked, benchmark.Scale(steps=5, rounds=2))
    assert [(r["model"], r["method"]) for r in rows] == [
        (model, method) for model in models for method in methods
    ]
    assert all(0 < r[f"level_{level}"] <= 1 for r in rows for level in (1, 2, 3))
    monkeypatch.setattr(benchmark, "run", None)
    assert len(benchmark.main(asked)) == len(rows)


def test_the_truth_scores_one_and_noise_little(benchmark):
    rng = np.random.default_rng(0)
    truth = (rng.random((2000, 6)) < 0.2).astype(float)
    assert benchmark.matched(truth[:, ::-1] * 3, truth) == pytest.approx(1.0)
    assert benchmark.matched(truth[:, :3], truth) == pytest.approx(0.5, abs=0.03)
    assert benchmark.matched(rng.random((2000, 20)), truth) < 0.1
    assert benchmark.matched(np.zeros((2000, 4)), truth) == 0.0


def test_a_probe_reads_what_is_linear_and_no_more(benchmark):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3)).astype(np.float32)
    truth = np.stack([x[:, 0] - x[:, 2], x[:, 0] * x[:, 1]], 1)
    read = benchmark.probed(x[:2000], truth[:2000], x[2000:])
    _, strength = benchmark.assign(read, truth[2000:])
    assert strength[0] == pytest.approx(1.0, abs=1e-4)
    assert strength[1] < 0.1
