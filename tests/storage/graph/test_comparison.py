"""Comparing versions, by identity and by alignment; and the gates that reject them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from storage.artifacts import QualityGate, Registry
from storage.exports.saelens import to_saelens
from storage.graph.comparison import Change, matched_cosines, node_differences
from storage.graph.concept_graph import ConceptGraph
from storage.registry.quality_gates import failures, no_better_than_mean

D = 64


def make_files(directions, concepts, edges, frequency=0.1, label="x"):
    n = len(directions)
    weights = {
        "W_enc": directions.T,
        "W_dec": directions,
        "b_enc": np.zeros(n),
        "b_dec": np.zeros(D),
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    files = {
        f"dictionaries/low/{path}": data
        for path, data in to_saelens(weights, architecture="topk", k=2).items()
    }
    graph = ConceptGraph.from_columns(
        {
            "level": [0, 0] + [1] * n,
            "index": [0, 1, *range(n)],
            "label": ["cat", "hat"] + [label] * n,
            "concept": [None, None, *concepts],
            "frequency": [None, None] + [frequency] * n,
        },
        {
            "source": [source for source, _, _ in edges],
            "target": [target for _, target, _ in edges],
            "strength": [strength for *_, strength in edges],
            "confidence": [1.0] * len(edges),
        },
    )
    return files | {f"graph/{path}": data for path, data in graph.files().items()}


@pytest.fixture(params=["identity", "alignment"])
def registry(request, tmp_path):
    rng = np.random.default_rng(0)
    old = rng.normal(size=(4, D))
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    fresh = rng.normal(size=D)
    # Concepts 0, 1, 2 move to 2, 0, 1; concept 3 goes and another comes in its place.
    new = np.stack([old[1], old[2], old[0], fresh / np.linalg.norm(fresh)])
    named = request.param == "identity"
    concepts = [["A", "B", "C", "D"], ["B", "C", "A", "E"]] if named else [[None] * 4] * 2
    edges = [("0:0", "1:0", 1.0), ("0:1", "1:1", 1.0), ("0:0", "1:3", 1.0)]
    later = [("0:0", "1:2", 1.0), ("0:1", "1:0", 3.0), ("0:1", "1:3", 1.0)]
    levels = [{"level": 1, "name": "low", "n_concepts": 4, "d": D}]
    registry = Registry(tmp_path)
    for i, files in enumerate(
        [make_files(old, concepts[0], edges), make_files(new, concepts[1], later, frequency=0.3)]
    ):
        # The first was fitted from one seed.
        told = [levels[0] | {"metrics": {"agreement": 0.875} if i else {}}]
        registry.publish("toy", files, fingerprint=str(i), levels=told)
    return registry


def test_fates_of_concepts_and_edges(registry):
    found = registry.compare("toy", 1, 2)
    fates = {(change.old, change.new): change.fate for change in found.concepts}
    assert fates == {
        ("1:0", "1:2"): "changed",
        ("1:1", "1:0"): "changed",
        ("1:2", "1:1"): "changed",
        (None, "1:3"): "born",
        ("1:3", None): "gone",
    }
    edges = {(change.old, change.new): change for change in found.edges}
    assert edges["0:0 → 1:0", "0:0 → 1:2"].fate == "kept"
    changed = edges["0:1 → 1:1", "0:1 → 1:0"]
    assert (changed.fate, changed.differences) == ("changed", {"strength": (1.0, 3.0)})
    assert edges[None, "0:1 → 1:3"].fate == "born"
    assert edges["0:0 → 1:3", None].fate == "gone"
    assert json.loads(found.to_json())["counts"] == found.counts()
    text = found.to_text(most=1)
    assert "version 1 → 2" in text
    assert "3 changed, 1 born, 1 gone" in text
    assert "and 2 more" in text


def test_the_comparison_says_how_alike_a_level_is(registry):
    (level,) = registry.compare("toy", 1, 2).levels
    assert (level.level, level.name, level.matched) == (1, "low", 3)
    assert level.cosine == pytest.approx(1, abs=1e-6)
    assert level.agreement == (None, 0.875)
    text = registry.compare("toy", 1, 2).to_text()
    assert "level 1 low: 3 concepts in both, mean |cosine| 1.000" in text
    assert "agreement between seeds – → 0.875" in text


@pytest.mark.parametrize("index", [[0, 1], [0, 9]])
def test_cosines_are_those_of_the_matched_concepts(index):
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(3, 8)), rng.normal(size=(4, 8))
    changes = [Change(f"2:{i}", f"2:{3 - i}", "", "kept", {}) for i in index]
    changes += [Change("2:2", None, "", "gone", {}), Change(None, "2:1", "", "born", {})]
    found = matched_cosines(changes, lambda level: old, lambda level: new)
    if 9 in index:
        # A graph that speaks of concepts which no dictionary has.
        assert found == {2: (2, None)}
        return
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (old, new)]
    expected = (abs(unit[0][0] @ unit[1][3]) + abs(unit[0][1] @ unit[1][2])) / 2
    assert found == {2: (2, pytest.approx(expected))}


def test_a_concept_that_no_longer_comes_again_has_changed():
    row = {"label": "x", "kind": None, "form": None, "frequency": 0.1}
    assert node_differences(row | {"recurrence": 0.9}, row | {"recurrence": 0.8}) == {}
    assert node_differences(row | {"recurrence": 0.9}, row | {"recurrence": None}) == {}
    found = node_differences(row | {"recurrence": 0.9}, row | {"recurrence": 0.4})
    assert found == {"recurrence": (0.9, 0.4)}


def test_a_version_compared_with_itself_is_all_kept(registry):
    counts = registry.compare("toy", 1, 1).counts()
    assert counts["concepts"] == {"kept": 4, "changed": 0, "born": 0, "gone": 0}
    assert counts["edges"] == {"kept": 3, "changed": 0, "born": 0, "gone": 0}


def test_a_version_that_fails_a_gate_never_becomes_latest(tmp_path):
    registry = Registry(tmp_path)
    gates = [
        QualityGate("stability", at_least=0.9),
        QualityGate("dead", at_most=0.1, per_level=True),
    ]
    level = {"level": 1, "name": "low", "n_concepts": 4, "d": D}

    def publish(i, stability, dead):
        files = {"dictionaries/low/cfg.json": b"{}", "a.txt": b"%d" % i}
        return registry.publish(
            "toy",
            files,
            fingerprint=str(i),
            levels=[level | {"metrics": {"dead": dead}}],
            metrics={"stability": stability},
            gates=gates,
        )

    assert publish(1, 0.95, 0.02).status == "published"
    rejected = publish(2, 0.5, 0.3)
    assert rejected.status == "rejected"
    assert rejected.rejections == ("stability = 0.5 is below 0.9", "dead of low = 0.3 is above 0.1")
    assert registry.load("toy").version == 1
    assert registry.load("toy", 2).manifest.rejections == rejected.rejections


@pytest.mark.parametrize("value", [None, float("nan"), "0.99", True])
def test_what_is_not_reported_fails(value):
    assert failures([QualityGate("fit.r2", at_least=0.5)], {"fit": {"r2": value}}) == [
        "fit.r2 is not reported"
    ]
    assert failures([QualityGate("fit.r2", at_least=0.5)], {}) == ["fit.r2 is not reported"]


@pytest.mark.parametrize(
    ("value", "told"), [(-0.06, "-0.06"), (0.0, "0"), (None, "not a number"), (0.01, None)]
)
def test_a_dictionary_must_explain_more_than_the_mean(value, told):
    levels = [("good", {"explained_variance": 0.7}), ("low", {"explained_variance": value})]
    reason = "the dictionary of low explains no more than the mean of its rows does: its "
    reason += f"explained_variance is {told}"
    assert no_better_than_mean(levels) == ([] if told is None else [reason])
    other = [
        QualityGate("explained_variance", at_least=0.1),
        QualityGate("dead", at_most=1, per_level=True),
    ]
    assert no_better_than_mean(levels, other) == no_better_than_mean(levels)
    own = [*other, QualityGate("explained_variance", at_least=-1, per_level=True)]
    assert no_better_than_mean(levels, own) == []


def test_a_gate_needs_a_bound():
    with pytest.raises(ValueError, match="no bound"):
        QualityGate("fit")
