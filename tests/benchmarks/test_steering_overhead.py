"""The overhead benchmark runs on a tiny model."""

import torch

from tests.benchmarks.steering_overhead import run
from tests.tiny_models import tiny_language_model


def test_runs():
    torch.set_num_threads(1)
    model = tiny_language_model("llama")
    rows = run(
        model,
        list(range(4, 20)),
        hookpoint="layers.1.output",
        n_concepts=64,
        k=4,
        tokens=3,
        repeats=1,
    )
    assert [row["reader"] for row in rows] == ["needed only", "whole encoding"] * 2
    assert all(row["plain_seconds"] >= 0 for row in rows)
