"""Edits of wholes carried to their parts: in proportion, and sparing what others need."""

import numpy as np
import pytest

from compute.steering import ConceptLevel, Edit, propagate
from storage.graph.concept_graph import ConceptGraph
from tests.compute.steering.conftest import random_dictionary

# A house is a box and a triangle, a car a box and wheels, a street a house and a car.
BOX, TRIANGLE, WHEELS, SHADE = "1:0", "1:1", "1:2", "1:3"
HOUSE, CAR, STREET = "2:0", "2:1", "3:0"
EDGES = [
    ("0:0", BOX, 1.0, 1),
    (BOX, HOUSE, 0.4, 1),
    (TRIANGLE, HOUSE, 0.8, 1),
    (SHADE, HOUSE, 0.2, -1),
    (BOX, CAR, 0.5, 1),
    (WHEELS, CAR, 0.5, 1),
    (HOUSE, STREET, 1.0, 1),
    (CAR, STREET, 1.0, 1),
]


@pytest.fixture
def graph():
    ids = sorted({end for edge in EDGES for end in edge[:2]})
    return ConceptGraph.from_columns(
        {"level": [int(i[0]) for i in ids], "index": [int(i[2:]) for i in ids]},
        {
            "source": [e[0] for e in EDGES],
            "target": [e[1] for e in EDGES],
            "strength": [e[2] for e in EDGES],
            "confidence": [0.9] * len(EDGES),
            "sign": [e[3] for e in EDGES],
            "verdict": ["untested"] * len(EDGES),
        },
    )


def scales(edits):
    return {edit.id: edit.scale for edit in edits}


def test_parts_follow_in_proportion_to_strength(graph):
    found = scales(propagate([Edit.of(HOUSE, 0.0)], graph, active=[]))
    assert found == {HOUSE: 0, TRIANGLE: 0, BOX: 0.5, SHADE: pytest.approx(1.25)}
    found = scales(propagate([Edit.of(HOUSE, 3.0)], graph))
    assert found == {HOUSE: 3, TRIANGLE: 3, BOX: 2, SHADE: pytest.approx(0.5)}


def test_removal_spares_what_an_active_whole_needs(graph):
    assert BOX not in scales(propagate([Edit.of(HOUSE, 0.0)], graph, active=[CAR]))
    assert BOX not in scales(propagate([Edit.of(HOUSE, 0.0)], graph))
    both = [Edit.of(HOUSE, 0.0), Edit.of(CAR, 0.0)]
    assert scales(propagate(both, graph, active=[HOUSE, CAR]))[BOX] == 0


def test_down_all_levels_or_to_a_depth(graph):
    found = scales(propagate([Edit.of(STREET, 0.0)], graph))
    assert set(found) == {STREET, HOUSE, CAR, BOX, TRIANGLE, WHEELS, SHADE}
    assert set(scales(propagate([Edit.of(STREET, 0.0)], graph, depth=1))) == {STREET, HOUSE, CAR}


def test_edits_by_hand_stay(graph):
    edits = [Edit.of(HOUSE, 0.0), Edit.of(BOX, 1.0)]
    assert scales(propagate(edits, graph, active=[]))[BOX] == 1
    assert propagate(edits, graph)[:2] == edits


def test_nothing_runs_along_refuted_or_weak_edges(graph):
    assert set(scales(propagate([Edit.of(HOUSE, 0.0)], graph, min_confidence=0.95))) == {HOUSE}
    columns = {name: graph.edges[name].to_pylist() for name in graph.edges.column_names}
    columns["verdict"] = ["refuted"] * len(EDGES)
    nodes = {name: graph.nodes[name].to_pylist() for name in ("level", "index")}
    refuted = ConceptGraph.from_columns(nodes, columns)
    assert set(scales(propagate([Edit.of(HOUSE, 0.0)], refuted))) == {HOUSE}


def test_what_is_set_is_carried_in_units_of_the_ranges(graph):
    def level(number, largest):
        values = np.full(48, largest, np.float32)
        return ConceptLevel(number, f"l{number}", "x", random_dictionary(8), largest=values)

    levels = [level(1, 10.0), level(2, 4.0)]
    edits = propagate([Edit.set("l2", 0, 2.0)], graph, levels)
    assert {e.index: float(e.value) for e in edits if e.level == 1} == {0: 2.5, 1: 5.0}
    edits = propagate([Edit(2, 0, add=4.0)], graph, levels)
    assert {e.index: e.add for e in edits if e.level == 1} == {0: 5.0, 1: 10.0}
    with pytest.raises(ValueError, match="pass the artifact"):
        propagate([Edit.set(2, 0, 2.0)], graph)
