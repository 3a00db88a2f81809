"""The concept graph against NetworkX, pandas and brute force."""

from __future__ import annotations

import io
import json
import math
import time
from itertools import islice

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.graph.concept_graph import ConceptGraph, concept_ids


def make_graph(sizes=(6, 4, 2), n_edges=12, seed=0):
    rng = np.random.default_rng(seed)
    nodes = {
        "level": np.repeat(np.arange(len(sizes)), sizes),
        "index": np.concatenate([np.arange(n) for n in sizes]),
        "label": [f"node {i}" for i in range(sum(sizes))],
        "frequency": rng.uniform(size=sum(sizes)),
    }
    pairs = set()
    while len(pairs) < n_edges:
        lower = int(rng.integers(len(sizes) - 1))
        upper = int(rng.integers(lower + 1, len(sizes)))
        source = f"{lower}:{rng.integers(sizes[lower])}"
        target = f"{upper}:{rng.integers(sizes[upper])}"
        pairs.add((source, target))
    order = sorted(pairs)
    rng.shuffle(order)
    edges = {
        "source": [s for s, _ in order],
        "target": [t for _, t in order],
        "strength": rng.normal(size=n_edges),
        "confidence": rng.uniform(size=n_edges),
        "sign": rng.choice([-1, 1], size=n_edges),
        "effect": np.where(rng.uniform(size=n_edges) < 0.5, np.nan, rng.normal(size=n_edges)),
        "verdict": rng.choice(["confirmed", "refuted", "untested"], size=n_edges),
    }
    return ConceptGraph.from_columns(nodes, edges)


graphs = st.builds(
    make_graph,
    sizes=st.sampled_from([(3, 3), (6, 4, 2), (5, 4, 3, 2)]),
    n_edges=st.integers(0, 8),
    seed=st.integers(0, 10_000),
)


@given(graphs)
@settings(max_examples=40, deadline=None)
def test_parquet_round_trip(graph):
    files = graph.to_parquet()
    back = ConceptGraph.from_parquet(files["nodes.parquet"], files["edges.parquet"])
    assert back.equals(graph)
    assert back.to_parquet() == files


@given(graphs)
@settings(max_examples=40, deadline=None)
def test_queries_agree_with_networkx(graph):
    reference = graph.to_networkx()
    assert reference.number_of_nodes() == graph.n_nodes
    assert reference.number_of_edges() == graph.n_edges
    top = f"{max(graph.levels)}:0"
    for node in reference:
        assert set(graph.parents(node)) == set(reference.predecessors(node))
        assert set(graph.children(node)) == set(reference.successors(node))
        assert set(graph.ancestors(node)) == nx.ancestors(reference, node)
        assert set(graph.descendants(node)) == nx.descendants(reference, node)
        atoms = {a for a in nx.ancestors(reference, node) if reference.in_degree(a) == 0}
        assert set(graph.minimal_parts(node)) == atoms
        if node != top:
            found = sorted(graph.paths(node, top))
            assert found == sorted(nx.all_simple_paths(reference, node, top))


@given(graphs)
@settings(max_examples=20, deadline=None)
def test_node_link_and_graphml_load_in_networkx(graph):
    reference = graph.to_networkx()
    from_json = nx.node_link_graph(json.loads(graph.to_json()))
    from_xml = nx.read_graphml(io.BytesIO(graph.to_graphml()))
    for loaded in (from_json, from_xml):
        assert loaded.is_directed()
        assert dict(loaded.nodes) == dict(reference.nodes)
        assert dict(loaded.edges) == dict(reference.edges)


def test_graphml_carries_what_xml_allows_and_marks_the_rest():
    labels = ["a\x00b", "<tag> & 'quote' \"", "tab\tnew\nline", "𝕌\ufffe"]
    graph = ConceptGraph.from_columns(
        {"level": [0] * 4, "index": range(4), "label": labels, 'a<&"b': [True, False, None, True]},
        {"source": [], "target": [], "strength": [], "confidence": []},
    )
    loaded = nx.read_graphml(io.BytesIO(graph.to_graphml()))
    assert loaded.nodes["0:0"]["label"] == "a\ufffdb"
    assert loaded.nodes["0:1"]["label"] == labels[1]
    assert loaded.nodes["0:2"]["label"] == labels[2]
    assert loaded.nodes["0:3"]["label"] == "𝕌\ufffd"
    assert loaded.nodes["0:0"]['a<&"b'] is True
    assert nx.node_link_graph(json.loads(graph.to_json())).nodes["0:0"]["label"] == labels[0]


def test_columns_are_typed_and_unknowns_are_null():
    graph = make_graph()
    assert graph.nodes["id"].to_pylist()[:3] == ["0:0", "0:1", "0:2"]
    assert graph.levels == {0: 6, 1: 4, 2: 2}
    assert all(e is None or not math.isnan(e) for e in graph.edges["effect"].to_pylist())
    source, target = graph.edges["source"][0].as_py(), graph.edges["target"][0].as_py()
    edge = graph.edge(source, target)
    assert edge in graph.edges_into(target)
    assert edge in graph.edges_from(source)
    assert [e["source"] for e in graph.edges_into(target)] == graph.parents(target)
    assert [e["target"] for e in graph.edges_from(source)] == graph.children(source)
    assert "variant" not in edge
    assert edge["confidence"] == graph.edges["confidence"][0].as_py()
    assert "0:0" in graph
    assert "9:9" not in graph
    for missing in (lambda: graph.node("9:9"), lambda: graph.edge("0:0", "0:1")):
        with pytest.raises(KeyError):
            missing()


def test_pandas_reads_the_files_alone(tmp_path):
    import pandas as pd

    graph = make_graph()
    for name, data in graph.files().items():
        (tmp_path / name).write_bytes(data)
    frame = pd.read_parquet(tmp_path / "edges.parquet")
    assert list(frame["source"]) == graph.edges["source"].to_pylist()
    assert set(graph.files()) == {"graph.json", "graph.graphml", "nodes.parquet", "edges.parquet"}


def test_subgraph_and_neighbourhood():
    graph = make_graph(n_edges=20)
    strong = graph.subgraph(min_confidence=0.5, verdicts=("confirmed", "untested"))
    expected = [
        (e["source"], e["target"])
        for e in graph.edges.to_pylist()
        if e["confidence"] >= 0.5 and e["verdict"] != "refuted"
    ]
    assert [(e["source"], e["target"]) for e in strong.edges.to_pylist()] == expected
    assert strong.n_nodes == graph.n_nodes
    assert graph.subgraph(levels=[0]).n_edges == 0
    linked = graph.subgraph(min_confidence=0.9, drop_isolated=True)
    ends = set(linked.edges["source"].to_pylist()) | set(linked.edges["target"].to_pylist())
    assert set(linked.nodes["id"].to_pylist()) == ends
    near = graph.neighbourhood("1:0")
    around = {"1:0", *graph.parents("1:0"), *graph.children("1:0")}
    assert set(near.nodes["id"].to_pylist()) == around


NODES = {"level": [0, 1], "index": [0, 0]}
EDGE = {"source": ["0:0"], "target": ["1:0"], "strength": [1.0], "confidence": [0.5]}


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        ({"level": [0, 0], "index": [1, 1]}, {k: [] for k in EDGE}, "repeat"),
        ({"level": [-1], "index": [1]}, {k: [] for k in EDGE}, "level -1"),
        ({"level": [0]}, {k: [] for k in EDGE}, "'index'"),
        (NODES | {"label": ["a"]}, EDGE, "length"),
        (NODES | {"id": ["a", "b"]}, EDGE, "'id'"),
        (NODES | {"frequency": [0.1, 1.5]}, EDGE, "frequency 1.5"),
        (NODES | {"tags": [["a"], ["b"]]}, EDGE, "tags"),
        (NODES, EDGE | {"target": ["1:7"]}, "1:7"),
        (NODES, EDGE | {"source": ["1:0"], "target": ["0:0"]}, "upwards"),
        (NODES, {k: v * 2 for k, v in EDGE.items()}, "repeated"),
        (NODES, EDGE | {"confidence": [float("nan")]}, "confidence"),
        (NODES, EDGE | {"strength": [float("inf")]}, "strength inf"),
        (NODES, EDGE | {"verdict": ["maybe"]}, "maybe"),
        (NODES, EDGE | {"strength": ["strong"]}, "strength"),
        (NODES, {k: v for k, v in EDGE.items() if k != "strength"}, "'strength'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(nodes, edges, message):
    with pytest.raises(ValueError, match=message):
        ConceptGraph.from_columns(nodes, edges)


def test_damaged_parquet_is_refused():
    files = make_graph().to_parquet()
    with pytest.raises(ValueError, match="nodes"):
        ConceptGraph.from_parquet(b"PAR1 nonsense", files["edges.parquet"])


def test_a_wide_graph_loads_and_answers_fast():
    n, m = 16_384, 120_000
    rng = np.random.default_rng(0)
    keys = rng.choice(n * n, size=m, replace=False)
    graph = ConceptGraph.from_columns(
        {"level": np.repeat([1, 2], n), "index": np.tile(np.arange(n), 2)},
        {
            "source": concept_ids(1, keys // n),
            "target": concept_ids(2, keys % n),
            "strength": rng.normal(size=m),
            "confidence": rng.uniform(size=m),
        },
    )
    files = graph.to_parquet()
    start = time.perf_counter()
    loaded = ConceptGraph.from_parquet(files["nodes.parquet"], files["edges.parquet"])
    parts = loaded.ancestors("2:17")
    assert time.perf_counter() - start < 2
    assert len(parts) == int((keys % n == 17).sum())
    assert len(list(islice(loaded.paths(parts[0], "2:17"), 5))) == 1
