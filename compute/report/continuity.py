"""What a run's concepts are to the versions before it: identities, histories, changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compute.report.findings import Findings, describe_levels
from compute.steps.learn import DICTIONARY_FILES
from storage.artifacts import Artifact, LevelEntry
from storage.atlas import Changes, HistoryEntry
from storage.exports.saelens import from_saelens
from storage.graph.comparison import Change, compare_graphs, matched_cosines
from storage.graph.concept_graph import ConceptGraph
from storage.graph.identity import FreshLevel, carry_identities, concept_histories
from storage.records import digest
from storage.sealing.seals import SealedFolder
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeSet

__all__ = ["Continuity", "continue_from"]

# Rows are shuffled globally, so the first ones are a fair sample of all.
_ROWS = 8192
_GONE_SHOWN = 60


@dataclass(frozen=True)
class Continuity:
    """Findings whose concepts have their identities, and what these say.

    Attributes
    ----------
    findings : Findings
        With identities in the graph's column ``concept``.
    changes : Changes or None
        Since the version before; None for the first.
    metrics : dict
        ``kept_share``: share of the version's concepts before that are still there, the counts of
        ``changes`` and, by the level's name, ``cosine``: the mean |cosine| of the directions of
        concepts that are in both; empty for the first version.
    """

    findings: Findings
    changes: Changes | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    _fates: Mapping[str, Sequence[tuple[int | None, str]]] = field(default_factory=dict)

    def histories(self, version: int) -> dict[str, tuple[HistoryEntry, ...]]:
        """Fates of every concept by its id, oldest first, for the page of this version."""
        return {
            node: tuple(
                HistoryEntry(version=version if at is None else at, status=fate)
                for at, fate in fates
            )
            for node, fates in self._fates.items()
        }


def continue_from(
    ancestors: Sequence[Artifact],
    findings: Findings,
    activations: ActivationSet,
    codes: CodeSet,
    learned: SealedFolder,
) -> Continuity:
    """Give every concept the identity that it had before, or one of its own.

    Parameters
    ----------
    ancestors : sequence of Artifact
        The versions before, oldest first; the last one is the parent.
    findings : Findings
        The new run.
    activations, codes, learned
        Its rows (both dictionaries read the first of them, to be compared by their codes), which of
        these take part in fits, and where its dictionaries lie.
    """
    kept = codes.kept(0, min(_ROWS, len(activations)))
    levels, contents = [], []
    for described in describe_levels(findings):
        entry = LevelEntry.model_validate(described)
        folder = f"dictionaries/{entry.name}"
        files = {name: learned.get(f"{folder}/{name}") for name in DICTIONARY_FILES}
        contents += [files[name] for name in sorted(files)]
        rows = activations.read(entry.name, 0, len(kept))[kept] if ancestors else None
        levels.append(FreshLevel(entry, from_saelens(files), rows))
    parent = ancestors[-1] if ancestors else None
    identities = carry_identities(parent, levels, origin=digest(contents)[:12])
    graph = _named(findings.graph, identities)
    findings = dataclasses.replace(findings, graph=graph)
    fates = concept_histories([a for a in ancestors if "graph/nodes.parquet" in a.files], graph)
    if parent is None or "graph/nodes.parquet" not in parent.files:
        return Continuity(findings, _fates=fates)
    compared = compare_graphs(parent.graph, graph)
    if compared is None:
        return Continuity(findings, _fates=fates)
    counts = [
        {fate: sum(c.fate == fate for c in found) for fate in ("kept", "changed", "born", "gone")}
        for found in compared
    ]
    gone = [change.label for change in compared[0] if change.fate == "gone"]
    cosines = _cosines(compared[0], parent, levels)
    changes = Changes(
        since=parent.version,
        concepts=counts[0],
        edges=counts[1],
        gone=tuple(gone[:_GONE_SHOWN]),
        cosines=cosines,
    )
    before = counts[0]["kept"] + counts[0]["changed"] + counts[0]["gone"]
    metrics = {
        "since": parent.version,
        "kept_share": 1.0 - counts[0]["gone"] / before if before else 1.0,
        "concepts": counts[0],
        "edges": counts[1],
        "cosine": cosines,
    }
    return Continuity(findings, changes, metrics, fates)


def _cosines(
    concepts: Sequence[Change], parent: Artifact, levels: Sequence[FreshLevel]
) -> dict[str, float]:
    """Name of a level → mean |cosine| of the concepts that it has in both versions."""
    fresh = {level.entry.level: level for level in levels}
    found = matched_cosines(
        concepts,
        lambda level: parent.dictionary(level).directions,
        lambda level: fresh[level].dictionary.directions,
    )
    return {
        fresh[level].entry.name: cosine
        for level, (_, cosine) in sorted(found.items())
        if cosine is not None
    }


def _named(graph: ConceptGraph, identities: Mapping[str, str]) -> ConceptGraph:
    nodes = {name: graph.nodes.column(name).to_pylist() for name in graph.nodes.column_names}
    edges = {name: graph.edges.column(name) for name in graph.edges.column_names}
    nodes["concept"] = [identities.get(node) for node in nodes["id"]]
    return ConceptGraph.from_columns(nodes, edges)
