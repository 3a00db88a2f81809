"""The atlas of a version that brought no page of its own: what its files say, and no more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from storage.atlas.data import AtlasData, Concept, Edge, Level, TokenExample
from storage.registry.versions import STRIPS_FILE

if TYPE_CHECKING:
    from storage.registry.versions import Artifact

__all__ = ["published_atlas"]


def published_atlas(artifact: Artifact) -> AtlasData:
    """What the atlas shows of a published version.

    Raises
    ------
    KeyError
        If the version has no graph.
    CorruptArtifact
        If a file is damaged.
    """
    graph = artifact.graph
    examples = {entry.level: _examples(artifact, entry.level) for entry in artifact.levels}
    strips = json.loads(artifact.read(STRIPS_FILE)) if STRIPS_FILE in artifact.files else {}
    rows = graph.nodes.to_pylist()
    sizes = Counter(row["level"] for row in rows)
    names = {entry.level: entry for entry in artifact.levels}
    levels = []
    for number in sorted(sizes):
        entry = names.get(number)
        metrics = {} if entry is None else _numbers(entry.metrics)
        levels.append(
            Level(
                level=number,
                name="observed" if number == 0 else entry.name if entry else f"level-{number}",
                hookpoint=entry.hookpoint if entry else "",
                timestep=entry.timestep if entry else None,
                n_concepts=entry.n_concepts if entry else sizes[number],
                metrics=metrics,
            )
        )
    return AtlasData(
        name=artifact.name,
        version=artifact.version,
        created_at=artifact.manifest.created_at.isoformat(),
        title=f"{artifact.name}, version {artifact.version}",
        levels=tuple(levels),
        concepts=tuple(_concept(row, examples, strips) for row in rows),
        edges=tuple(_edge(row) for row in graph.edges.to_pylist()),
    )


def _concept(
    row: Mapping[str, Any],
    examples: Mapping[int, Mapping[int, list[TokenExample]]],
    strips: Mapping[str, Any],
) -> Concept:
    shown = examples.get(row["level"], {}).get(row["index"], [])
    return Concept(
        id=row["id"],
        level=row["level"],
        index=row["index"],
        label=row["label"] or "",
        frequency=row["frequency"] or 0.0,
        max_activation=max((example.activation for example in shown), default=0.0),
        examples=tuple(shown),
        kind=row["kind"],
        form=row["form"],
        unexplained=row["unexplained"],
        steering=strips.get(row["id"]),
    )


def _edge(row: Mapping[str, Any]) -> Edge:
    return Edge(
        source=row["source"],
        target=row["target"],
        strength=abs(row["strength"]),
        confidence=row["confidence"],
        sign=-1 if (row["sign"] or 1) < 0 else 1,
        stability=row["stability"],
        verdict=row["verdict"],
        effect=row["effect"],
    )


def _examples(artifact: Artifact, level: int) -> dict[int, list[TokenExample]]:
    found: dict[int, list[TokenExample]] = {}
    try:
        records = artifact.examples(level)
    except KeyError:
        return found
    for record in records:
        tokens, values = record.get("tokens") or [], record.get("values") or []
        if tokens and len(tokens) == len(values):
            example = TokenExample(
                tokens=tuple(tokens),
                values=tuple(max(0.0, float(value)) for value in values),
                peak=min(max(0, int(record.get("peak", 0))), len(tokens) - 1),
                activation=max(0.0, float(record.get("activation", 0.0))),
                source=str(record.get("document", "")),
            )
            found.setdefault(int(record["index"]), []).append(example)
    return found


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
