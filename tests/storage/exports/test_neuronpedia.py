"""Attribution graphs against their schema, and dashboards against the rows of the bulk import."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime

import jsonschema
import pytest

from storage.exports.neuronpedia import (
    ConceptDashboard,
    DashboardSource,
    Excerpt,
    to_dashboards,
    to_neuronpedia_graph,
)
from storage.graph.concept_graph import ConceptGraph


def typed(kind, **properties):
    return {"type": kind, "properties": properties}


TEXT, NUMBER, OPTIONAL_NUMBER = {"type": "string"}, {"type": "number"}, {"type": ["number", "null"]}
TEXTS = {"type": "array", "items": TEXT}
# What Neuronpedia's graph validator asks of an upload (JSON Schema draft 7).
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "required": ["slug", "scan", "prompt_tokens", "prompt"],
            **typed(
                "object",
                slug=TEXT,
                scan=TEXT,
                prompt=TEXT,
                prompt_tokens=TEXTS,
                node_threshold=NUMBER,
                feature_details=typed("object", neuronpedia_source_set=TEXT),
                info=typed(
                    "object",
                    description=TEXT,
                    create_time_ms=NUMBER,
                    generator=typed("object", name=TEXT, version=TEXT, url=TEXT),
                ),
                generation_settings=typed("object", max_n_logits={"type": "integer"}),
                pruning_settings=typed("object", node_threshold=NUMBER, edge_threshold=NUMBER),
            ),
        },
        "qParams": typed(
            "object",
            pinnedIds=TEXTS,
            supernodes={"type": "array"},
            linkType=TEXT,
            clickedId=TEXT,
            sg_pos=TEXT,
        ),
        "nodes": {
            "type": "array",
            "items": {
                "required": [
                    "node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"
                ],
                **typed(
                    "object",
                    node_id=TEXT,
                    feature={"type": ["integer", "null"]},
                    layer={"type": ["string", "integer"]},
                    ctx_idx={"type": "integer"},
                    feature_type=TEXT,
                    jsNodeId=TEXT,
                    clerp=TEXT,
                    influence=OPTIONAL_NUMBER,
                    activation=OPTIONAL_NUMBER,
                ),
            },
        },
        "links": {
            "type": "array",
            "items": {
                "required": ["source", "target", "weight"],
                **typed("object", source=TEXT, target=TEXT, weight=NUMBER),
            },
        },
    },
}  # fmt: skip


@pytest.fixture
def graph():
    return ConceptGraph.from_columns(
        {
            "level": [0, 0, 1, 1, 2],
            "index": [4, 9, 3, 5, 0],
            "label": [" cat", " hat", "felines", None, "stories"],
            "unexplained": [None, None, 0.25, None, 0.5],
        },
        {
            "source": ["0:4", "0:9", "1:3", "1:5"],
            "target": ["1:3", "1:5", "2:0", "2:0"],
            "strength": [1.5, 0.5, 0.25, 0.75],
            "confidence": [1, 1, 1, 1],
            "sign": [1, 1, -1, None],
        },
    )


def export(graph, **options):
    return to_neuronpedia_graph(graph, slug="toy-7", scan="smollm2", version="7", **options)


def test_the_graph_fits_the_schema_and_every_link_has_its_nodes(graph):
    data = export(
        graph,
        description="a toy",
        source_set="strata-64",
        settings={"k": 32},
        pruning={"edge_threshold": 0.9},
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    jsonschema.Draft7Validator(SCHEMA).validate(json.loads(json.dumps(data, allow_nan=False)))
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {end for link in data["links"] for end in (link["source"], link["target"])} <= set(ids)
    assert data["metadata"]["prompt_tokens"] == [" cat", " hat"]
    assert data["metadata"]["info"]["create_time_ms"] == 1767225600000


def test_error_nodes_are_kept_and_wholes_stand_above_their_strongest_part(graph):
    data = export(graph)
    nodes = {node["node_id"]: node for node in data["nodes"]}
    errors = [n for n in nodes.values() if n["feature_type"] == "mlp reconstruction error"]
    weights = {(link["source"], link["target"]): link["weight"] for link in data["links"]}
    assert len(errors) == 2
    assert weights["1_error3_0", "1_3_0"] == 0.25
    assert weights["1_3_0", "2_0_1"] == -0.25
    assert weights["1_5_1", "2_0_1"] == 0.75
    assert nodes["2_0_1"]["ctx_idx"] == nodes["1_5_1"]["ctx_idx"] == nodes["E_9_1"]["ctx_idx"] == 1
    assert nodes["1_5_1"]["clerp"] == "1:5"


def test_how_a_concept_comes_again_is_a_field_of_its_node(graph):
    columns = {name: graph.nodes[name].to_pylist() for name in ("level", "index")}
    columns["recurrence"] = [None, None, 0.9, None, 0.4]
    edges = {name: [] for name in ("source", "target", "strength", "confidence")}
    data = export(ConceptGraph.from_columns(columns, edges))
    jsonschema.Draft7Validator(SCHEMA).validate(data)
    told = {n["node_id"].rpartition("_")[0]: n.get("recurrence") for n in data["nodes"]}
    assert told == {"E_4": None, "E_9": None, "1_3": 0.9, "1_5": None, "2_0": 0.4}
    assert ["recurrence" in node for node in data["nodes"]] == [False, False, True, False, True]


def test_a_graph_without_observed_variables_still_fits(graph):
    jsonschema.Draft7Validator(SCHEMA).validate(export(graph.subgraph(levels=[1, 2])))


def test_unsafe_slugs_are_refused(graph):
    with pytest.raises(ValueError, match="slug"):
        to_neuronpedia_graph(graph, slug="../x", scan="m", version="1")


SOURCE = DashboardSource(
    model="smollm2",
    layer=7,
    source_set="strata-64",
    creator="us",
    creator_id="c1",
    dataset="topics",
)


def rows(data):
    text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return [json.loads(line) for line in text.splitlines()]


def make_concepts(n=5):
    return [
        ConceptDashboard(
            index=i,
            frequency=0.1,
            maximum=2.0,
            histogram=([0, 1, 2], [7, 3]),
            raised=[("a", 1.5)],
            excerpts=[Excerpt(["x", "y", "z"], [0.0, 2.0, 0.5])],
            direction=[0.6, 0.8],
        )
        for i in range(n)
    ]


def test_dashboards_have_the_rows_that_the_import_reads():
    files = to_dashboards(reversed(make_concepts()), SOURCE, batch_size=2)
    root = "smollm2/7-strata-64"
    assert set(files) == {
        *(f"{root}/{name}.jsonl" for name in ("release", "model", "sourceset", "source")),
        *(f"{root}/features/batch-{i}.jsonl.gz" for i in range(3)),
        *(f"{root}/activations/batch-{i}.jsonl.gz" for i in range(3)),
    }  # fmt: skip
    features = [row for i in range(3) for row in rows(files[f"{root}/features/batch-{i}.jsonl.gz"])]
    assert [row["index"] for row in features] == list("01234")
    for row in features:
        assert (row["modelId"], row["layer"]) == ("smollm2", "7-strata-64")
        assert len(row["freq_hist_data_bar_heights"]) == len(row["freq_hist_data_bar_values"]) == 2
        assert row["hasVector"] is True
    activation = rows(files[f"{root}/activations/batch-0.jsonl.gz"])[0]
    assert activation["maxValue"] == 2.0
    assert activation["maxValueTokenIndex"] == 1
    assert len(activation["tokens"]) == len(activation["values"]) == 3
    source = rows(files[f"{root}/source.jsonl"])[0]
    sourceset = rows(files[f"{root}/sourceset.jsonl"])[0]
    assert source["setName"] == sourceset["name"]
    assert rows(files[f"{root}/release.jsonl"])[0]["name"] == sourceset["releaseName"]


def test_dashboards_are_a_function_of_their_input():
    first = to_dashboards(make_concepts(), SOURCE)
    assert first == to_dashboards(make_concepts(), SOURCE)
    ids = [row["id"] for row in rows(first["smollm2/7-strata-64/activations/batch-0.jsonl.gz"])]
    assert len(set(ids)) == 5


def test_bad_dashboards_are_refused():
    with pytest.raises(ValueError, match="tokens"):
        Excerpt(["a"], [1.0, 2.0])
    with pytest.raises(ValueError, match="batch_size"):
        to_dashboards([], SOURCE, batch_size=0)
    with pytest.raises(ValueError, match="model"):
        to_dashboards([], DashboardSource(model="a/b", layer=1, source_set="x"))
