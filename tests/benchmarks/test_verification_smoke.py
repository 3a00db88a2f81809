"""The verification benchmark hands recovered edges on as they are, and counts shares rightly."""

import numpy as np
import pytest

from tests.benchmarks.verification import graph_of, prompts, share_interval


def test_the_graph_joins_neighbouring_levels():
    rng = np.random.default_rng(0)
    low = rng.random((800, 4)) * (rng.random((800, 4)) < 0.4)
    high = np.stack([low[:, 0] + low[:, 1], low[:, 2]], axis=1)
    high = np.pad(high, ((0, 0), (0, 2)))
    graph = graph_of([low, high, high])
    edges = {(e["source"], e["target"]): e["sign"] for e in graph.edges.to_pylist()}
    wanted = {("1:0", "2:0"), ("1:1", "2:0"), ("1:2", "2:1"), ("2:0", "3:0"), ("2:1", "3:1")}
    assert set(edges) == wanted
    assert set(edges.values()) == {1}


def test_an_interval_holds_its_share():
    low, high = share_interval(0.3, 200, np.random.default_rng(0))
    assert 0.2 < low < 0.3 < high < 0.4
    assert share_interval(0.0, 50, np.random.default_rng(0)) == pytest.approx((0, 0))


def test_captions_to_verify_on_are_not_those_to_learn_on():
    learnt = {item.text for item in prompts(60, 0, held_out=False)}
    assert not learnt & {item.text for item in prompts(60, 0, held_out=True)}
