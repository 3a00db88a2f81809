"""The atlas of a version that brought no page of its own: what its files say, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from storage.atlas.data import AtlasData, Concept, Edge, Level, SteeringStrip, TokenExample
from storage.registry.manifests import MANIFEST_FILE
from storage.registry.versions import STRIPS_FILE

if TYPE_CHECKING:
    from storage.registry.manifests import LevelEntry
    from storage.registry.versions import Artifact

__all__ = ["published_atlas"]

_STRIPS = TypeAdapter(dict[str, SteeringStrip])


def published_atlas(artifact: Artifact) -> AtlasData:
    """What the atlas shows of a published version.

    Raises
    ------
    KeyError
        If the version has no graph.
    CorruptArtifact
        If a file is damaged, or does not hold what an atlas can show; it names the file.
    """
    graph = artifact.graph
    examples = {entry.level: _examples(artifact, entry) for entry in artifact.levels}
    strips = _strips(artifact)
    rows = graph.nodes.to_pylist()
    sizes = Counter(row["level"] for row in rows)
    names = {entry.level: entry for entry in artifact.levels}
    # What the other files hold has been checked by now: the rest is of the graph and the manifest.
    with artifact.reading("graph/nodes.parquet", "graph/edges.parquet", MANIFEST_FILE):
        levels = []
        for number in sorted(sizes):
            entry = names.get(number)
            levels.append(
                Level(
                    level=number,
                    name="observed" if number == 0 else entry.name if entry else f"level-{number}",
                    hookpoint=entry.hookpoint if entry else "",
                    timestep=entry.timestep if entry else None,
                    n_concepts=entry.n_concepts if entry else sizes[number],
                    metrics=_numbers(entry.metrics) if entry else {},
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
    strips: Mapping[str, SteeringStrip],
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
        recurrence=_share(row.get("recurrence")),
        steering=strips.get(row["id"]),
    )


def _share(value: Any) -> float | None:
    """A share of a column that no schema holds, if it is one."""
    return value if isinstance(value, float) and 0 <= value <= 1 else None


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


def _strips(artifact: Artifact) -> dict[str, SteeringStrip]:
    if STRIPS_FILE not in artifact.files:
        return {}
    found = artifact.read_json(STRIPS_FILE)
    with artifact.reading(STRIPS_FILE):
        return _STRIPS.validate_python(found)


def _examples(artifact: Artifact, level: LevelEntry) -> dict[int, list[TokenExample]]:
    found: dict[int, list[TokenExample]] = {}
    paths = [path for path in artifact.files if path.rpartition(".")[0] == f"examples/{level.name}"]
    try:
        records = artifact.examples(level.level)
    except KeyError:
        return found
    with artifact.reading(*paths):
        for record in records:
            index, tokens, values = (record.get(key) for key in ("index", "tokens", "values"))
            if index is not None and tokens and values and len(tokens) == len(values):
                example = TokenExample(
                    tokens=tuple(tokens),
                    values=tuple(max(0.0, value) for value in values),
                    peak=min(max(0, record.get("peak") or 0), len(tokens) - 1),
                    activation=max(0.0, record.get("activation") or 0.0),
                    source=str(record.get("document") or ""),
                )
                found.setdefault(index, []).append(example)
    return found


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
