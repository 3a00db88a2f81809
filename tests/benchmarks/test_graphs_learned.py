"""The benchmark of learned concepts' graphs runs, goes on where it was, and scores the truth 1."""

import numpy as np
import pytest


@pytest.fixture
def benchmark(import_benchmark):
    return import_benchmark("graphs_learned")


def test_rows_are_computed_once(benchmark, tmp_path, monkeypatch):
    asked = ["--worlds", "vectors", "--codes", "true", "read off", "independent"]
    asked += ["--seeds", "1", "--samples", "1500", "--out", str(tmp_path)]
    rows = benchmark.main(asked, benchmark.Scale(steps=5, rounds=2))
    assert [(r["codes"], r["level"]) for r in rows] == [
        (codes, level) for codes in asked[3:6] for level in (1, 2)
    ]
    assert all(r["f1"] > 0.9 and r["mcc_parts"] == pytest.approx(1.0) for r in rows[:2])
    assert all(r["f1"] <= rows[0]["f1"] for r in rows[4:])
    monkeypatch.setattr(benchmark, "run", None)
    assert len(benchmark.main(asked)) == len(rows)


def test_parts_of_a_sprite_are_those_of_its_object_and_a_colour_is_its_own(benchmark, monkeypatch):
    n_parts, n_objects = benchmark.part_edges().shape
    n_colours = len(benchmark.COLOURS)
    x = np.zeros((8, 3), np.float32)
    truth = [np.zeros((2, n_parts + n_colours)), np.zeros((2, n_objects + n_colours))] * 2
    monkeypatch.setattr(
        benchmark.trained_models,
        "sprites",
        lambda seed, samples: benchmark.trained_models.Recorded([x] * 3, truth[:3]),
    )
    known = benchmark.sprites.__wrapped__(0, None)
    (edges,) = known.edges
    assert edges.shape == (truth[0].shape[1], truth[1].shape[1])
    np.testing.assert_array_equal(edges[:n_parts, :n_objects], benchmark.part_edges())
    assert edges[n_parts:].sum() == n_colours == edges[n_parts:, n_objects:].trace()


def test_readings_follow_what_the_activations_hold(benchmark):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)).astype(np.float32)
    truth = x[:, :2] * 3 + 1
    readings = benchmark.read_off(x, np.concatenate([truth, rng.normal(size=(500, 1))], axis=1))
    r = np.corrcoef(readings.T, truth.T)
    assert r[0, 3] > 0.999
    assert r[1, 4] > 0.999
    assert readings[:, 2].std() < 0.3
