"""The atlas of a version without a page of its own: whatever the files hold is drawn or named."""

from __future__ import annotations

import json
import os
import string

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.artifacts import CorruptArtifact, Registry
from storage.atlas import render
from storage.atlas.published import published_atlas
from storage.graphs import ConceptGraph
from storage.service import create_app

GRAPH = ConceptGraph.from_columns(
    {"level": [0, 1, 2], "index": [0, 0, 0], "label": ["cat", None, None]},
    {
        "source": ["0:0", "1:0"],
        "target": ["1:0", "2:0"],
        "strength": [1.0, 0.5],
        "confidence": [1.0, 0.5],
    },
)
LEVEL = {"level": 1, "name": "low", "n_concepts": 4, "d": 3}


REGISTRY = Registry(f"memory://{os.urandom(8).hex()}")
CLIENT = TestClient(create_app(REGISTRY), base_url="http://localhost")


def publish(files, **options):
    """A new artifact with these files beside a graph; returns its name."""
    name = f"toy-{os.urandom(8).hex()}"
    graph = {f"graph/{path}": data for path, data in GRAPH.files().items()}
    dictionary = {"dictionaries/low/cfg.json": b"{}"}
    levels = [LEVEL | options]
    REGISTRY.publish(name, graph | dictionary | files, fingerprint="1", levels=levels)
    return name


def load(name):
    return REGISTRY.load(name, 1, verify=False)


def drawn(name):
    """The page, or None and the files that are named; the service says the same."""
    answer = CLIENT.get(f"/artifacts/{name}/1/")
    try:
        page = render(published_atlas(load(name)))
    except CorruptArtifact as error:
        named = list(error.files)
    else:
        assert (answer.status_code, answer.text) == (200, page)
        return page, []
    assert (answer.status_code, answer.json()["files"]) == (502, named)
    return None, named


EXAMPLE = {"index": 0, "tokens": ["a", "b"], "values": [1.0, 0], "peak": 0, "activation": 1.5}
STRIP = {"before": "a", "after": "b", "scale": 0.0, "prompt": "p"}


def test_what_the_files_hold_is_drawn():
    name = publish(
        {
            "examples/low.json": json.dumps([EXAMPLE | {"document": "doc"}]).encode(),
            "steering.json": json.dumps({"1:0": STRIP}).encode(),
        }
    )
    atlas = published_atlas(load(name))
    concept = next(concept for concept in atlas.concepts if concept.id == "1:0")
    assert concept.examples[0].tokens == ("a", "b")
    assert concept.steering.after == "b"
    assert concept.max_activation == 1.5
    assert drawn(name)[0] is not None


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("steering.json", "[]"),
        ("steering.json", '{"1:0": 1}'),
        ("steering.json", '{"1:0": {"before": 1, "after": 2}}'),
        ("steering.json", '{"1:0": {"media": "image", "before": "x", "after": "y"}}'),
        ("steering.json", '{"1:0": {}, "1:0": {}}'),
        ("steering.json", "[" * 100_000),
        ("steering.json", '{"1:0": {"before": "\\ud800", "after": ""}}'),
        ("steering.json", "{" * 31),
        ("examples/low.json", "null"),
        ("examples/low.json", "[null]"),
        ("examples/low.json", '{"0": []}'),
        ("examples/low.json", json.dumps([EXAMPLE | {"tokens": {"a": 1}}])),
        ("examples/low.json", json.dumps([EXAMPLE | {"tokens": [["a"], "b"]}])),
        ("examples/low.json", json.dumps([EXAMPLE | {"values": [1, 10**400]}])),
        ("examples/low.json", json.dumps([EXAMPLE | {"values": [1, float("nan")]}])),
        ("examples/low.json", json.dumps([EXAMPLE | {"peak": "x"}])),
        ("examples/low.json", "[" * 100_000),
        ("examples/low.parquet", "PAR1"),
        ("examples/low.parquet", ""),
    ],
)
def test_the_file_that_cannot_be_shown_is_named(file, data):
    assert drawn(publish({file: data.encode()})) == (None, [file])


@pytest.mark.parametrize("metrics", [{"l0": 1.7976931348623157e308}, {"l0": -(2**63)}, {"l0": {}}])
def test_odd_metrics_are_drawn(metrics):
    assert drawn(publish({}, metrics=metrics))[0] is not None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(string.ascii_lowercase, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = ["index", "tokens", "values", "peak", "activation", "document"]
EXAMPLES = JSON | st.lists(
    st.dictionaries(st.sampled_from(FIELDS), JSON).map(lambda changes: EXAMPLE | changes),
    max_size=3,
)
STRIPS = JSON | st.dictionaries(
    st.sampled_from(["1:0", "2:0", "9:9", ""]),
    st.dictionaries(st.sampled_from([*STRIP, "media", "extra"]), JSON).map(
        lambda changes: STRIP | changes
    ),
)
LEVELS = st.fixed_dictionaries(
    {},
    optional={
        "metrics": st.dictionaries(st.text(max_size=3), JSON, max_size=3),
        "timestep": st.integers(-(2**70), 2**70),
        "hookpoint": st.text(max_size=4),
        "n_concepts": st.integers(1, 2**63),
    },
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(EXAMPLES, STRIPS, LEVELS)
def test_whatever_the_files_hold_is_drawn_or_named(examples, strips, level):
    files = {
        "examples/low.json": json.dumps(examples).encode(),
        "steering.json": json.dumps(strips).encode(),
        "assumptions.json": json.dumps(strips).encode(),
    }
    try:
        name = publish(files, **level)
    except ValueError:
        # Such a level is refused before it is published.
        return
    page, named = drawn(name)
    assert (page is None) == bool(named)
