"""Steering strips: strong concepts by their edges, prompts by their strongest sample."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from compute.models import load_adapter
from compute.models.adapter import ModelLevel
from compute.models.diffusion import Image, Prompt
from compute.models.language import Context
from compute.steering import ConceptLevel
from compute.steering.strips import _prompt, steering_strips, strong_concepts
from compute.verification import Pool
from storage.graph.concept_graph import ConceptGraph
from tests.compute.steering.conftest import random_dictionary

N = 48


@pytest.fixture
def graph():
    nodes = {"level": [0] + [1] * N + [2] * N, "index": [0, *range(N), *range(N)]}
    edges = {
        "source": ["0:0", "1:4", "1:4", "1:5"],
        "target": ["1:9", "2:7", "2:8", "2:8"],
        "strength": [1.0, 0.5, 0.3, 0.6],
        "confidence": [1.0, 0.9, 0.9, 0.5],
    }
    return ConceptGraph.from_columns(nodes, edges)


def pool_of(active, n_items, n_positions):
    """A pool in which (level, row, concept) have the code 1."""
    codes = {level: np.zeros((n_items * n_positions, N), np.float32) for level in (1, 2)}
    for level, row, concept in active:
        codes[level][row, concept] = 1.0
    kept = np.ones(n_items * n_positions, dtype=bool)
    return Pool({n: csr_matrix(c) for n, c in codes.items()}, kept, n_items, n_positions)


def test_strong_concepts_have_strong_edges_to_concepts(graph):
    assert strong_concepts(graph, 1, 5) == [4, 5]
    assert strong_concepts(graph, 2, 1) == [8]
    assert strong_concepts(graph, 3, 5) == []


def test_a_text_ends_with_the_token_of_the_strongest_code():
    pool = pool_of([(1, 8 + 3, 4)], 2, 8)
    items = [Context(0, 0, np.arange(10, 17)), Context(1, 0, np.arange(20, 27))]
    tokenizer = SimpleNamespace(decode=lambda tokens: " ".join(map(str, tokens)))
    for bos, text in ((1, "20 21 22"), (None, "20 21 22 23")):
        adapter = SimpleNamespace(bos=bos, facts=SimpleNamespace(tokenizer=tokenizer))
        assert _prompt(adapter, pool, items, 1, 4) == (text, 0)
    assert _prompt(adapter, pool, items, 1, 5) is None


def test_pictures_before_and_after(graph):
    levels = [ModelLevel("a", "down_blocks.1", 500), ModelLevel("b", "mid_block", 500)]
    options = {"dtype": "float32", "device": "cpu", "steps": 2, "guidance": 2.0, "grid": 4}
    adapter = load_adapter(
        "diffusion", "package:compute.pretrained.sprites", levels=levels, **options
    )
    concepts = [
        ConceptLevel(number, level.name, level.hookpoint, random_dictionary(64), level.timestep)
        for number, level in enumerate(levels, 1)
    ]
    pool = pool_of([(1, 16 + 2, 4), (2, 3, 7), (2, 20, 8)], 2, 16)
    prompts = [Prompt(0, "a street with a red house", 3), Prompt(1, "a forest", 4)]
    ask = {"per_level": 2, "scale": -20.0}
    strips = steering_strips(adapter, concepts, graph, pool, prompts, **ask)
    assert {name: strip["prompt"] for name, strip in strips.items()} == {
        "1:4": "a forest",
        "2:8": "a forest",
        "2:7": "a street with a red house",
    }
    assert all(s["before"].startswith("data:image/png;base64,") for s in strips.values())
    assert any(s["before"] != s["after"] for s in strips.values())
    assert strips["1:4"]["before"] == strips["2:8"]["before"]
    pictures = [Image(i, np.zeros((16, 16, 3)), seed=i) for i in range(2)]
    assert steering_strips(adapter, concepts, graph, pool, pictures, **ask) == {}
