"""The benchmark runs, goes on where it was, and scores what it should; a few seconds."""

import numpy as np
import pytest


@pytest.fixture
def benchmark(import_benchmark):
    return import_benchmark("identifiability")


def test_rows_are_computed_once(benchmark, tmp_path, monkeypatch):
    scale = benchmark.Scale(sizes=(12, 5, 3), dim=12, rows=600, steps=20, rounds=3)
    methods = [
        "independent",
        "independent, whitened",
        "random decoder",
        "saelens topk",
        "sparse vae",
        "causal explanations",
    ]
    asked = ["--worlds", "and", "--methods", *methods]
    asked += ["--seeds", "1", "--out", str(tmp_path)]
    rows = benchmark.main(asked, scale)
    assert {row["method"] for row in rows} == set(methods)
    assert (tmp_path / "identifiability.csv").read_text().startswith("# python")
    monkeypatch.setattr(benchmark, "run", None)
    again = benchmark.main(asked, scale)
    assert [round(row["mcc_wholes"], 4) for row in again] == pytest.approx(
        [round(row["mcc_wholes"], 4) for row in sorted(rows, key=lambda r: r["method"])]
    )


def test_the_truth_scores_one_and_nothing_scores_zero(benchmark):
    world = benchmark.SelectionWorld.vectors(
        sizes=(10, 4, 2), dim=12, parts_per_whole=(2, 3), seed=0
    )
    order = np.random.default_rng(0).permutation(10)
    edges = [world.edges[0][order], world.edges[1]]
    directions = [world.directions[0][order], *world.directions[1:]]
    truth = benchmark.score(
        benchmark.Answer(directions, edges=edges), world.directions, world.edges
    )
    assert truth["mcc_parts"] == pytest.approx(1.0, abs=1e-5)
    assert truth["edge_f1"] == 1.0
    nothing = benchmark.Answer([np.zeros((0, 12))] * 3, [np.zeros((200, 0))] * 3)
    assert benchmark.score(nothing, world.directions, world.edges)["edge_f1"] == 0.0
