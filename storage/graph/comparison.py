"""What has become of the concepts and edges of one version in another.

Concepts are the same if they carry the same identity (the graph's column ``concept``). Where a
version carries none, its dictionaries are aligned for the occasion. Observed variables are the same
if their labels are, or their indices where labels are not unique.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.graph.concept_graph import concept_place

if TYPE_CHECKING:
    from storage.graph.concept_graph import ConceptGraph
    from storage.registry.versions import Artifact

__all__ = [
    "Change",
    "Comparison",
    "LevelMatch",
    "compare",
    "compare_graphs",
    "matched_cosines",
    "node_differences",
]

Fate = Literal["kept", "changed", "born", "gone"]

_FATES: tuple[Fate, ...] = ("kept", "changed", "born", "gone")
# From here on a difference is worth a look: half of the frequency, a quarter of the strength.
_FREQUENCY_RATIO = 2.0
_STRENGTH_CHANGE = 0.25
# So much of a cosine: about what lies between a concept that comes again and one that hardly does.
_RECURRENCE_CHANGE = 0.25
_NAMED = ("label", "kind", "form")


@dataclass(frozen=True)
class Change:
    """The fate of one concept or one edge.

    Attributes
    ----------
    old, new : str or None
        Its id (or the ids of both ends, joined by `` → ``) in either version.
    label : str
        A name to show.
    fate : str
        kept, changed, born or gone.
    differences : dict
        For what has changed: old and new value by field.
    """

    old: str | None
    new: str | None
    label: str
    fate: Fate
    differences: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class LevelMatch:
    """How alike one level is in two versions.

    Attributes
    ----------
    level : int
    name : str
        As the newer version has it.
    matched : int
        Concepts that are in both.
    cosine : float or None
        Mean |cosine| of their directions in either; None where there are none, or the level's
        dictionaries do not hold them or have another width.
    agreement : tuple of float or None
        What each version says of itself: how its concepts come again from other seeds.
    """

    level: int
    name: str
    matched: int
    cosine: float | None
    agreement: tuple[float | None, float | None]


@dataclass(frozen=True)
class Comparison:
    """Fates of all concepts and edges of two versions of an artifact, and how alike levels are."""

    name: str
    old_version: int
    new_version: int
    concepts: tuple[Change, ...]
    edges: tuple[Change, ...]
    levels: tuple[LevelMatch, ...] = ()

    def counts(self) -> dict[str, dict[str, int]]:
        """How many concepts and edges have which fate."""
        return {
            kind: {fate: sum(change.fate == fate for change in changes) for fate in _FATES}
            for kind, changes in (("concepts", self.concepts), ("edges", self.edges))
        }

    def to_json(self) -> bytes:
        """The comparison as JSON."""
        data = asdict(self) | {"counts": self.counts()}
        return json.dumps(data, ensure_ascii=False, indent=1).encode()

    def to_text(self, *, most: int = 20) -> str:
        """The comparison for a terminal, with up to `most` examples of each fate."""
        lines = [f"{self.name}: version {self.old_version} → {self.new_version}"]
        for kind, changes in (("concepts", self.concepts), ("edges", self.edges)):
            counts = self.counts()[kind]
            lines.append(f"{kind}: " + ", ".join(f"{counts[fate]} {fate}" for fate in _FATES))
            for fate in ("changed", "born", "gone"):
                chosen = [change for change in changes if change.fate == fate]
                lines += [f"  {fate:8}{_line(change)}" for change in chosen[:most]]
                if len(chosen) > most:
                    lines.append(f"  {fate:8}… and {len(chosen) - most} more")
        lines += [_level_line(level) for level in self.levels]
        return "\n".join(lines) + "\n"


def compare(old: Artifact, new: Artifact) -> Comparison:
    """Compare two versions of an artifact."""
    keys = _identities(old.graph, new.graph) or _aligned_identities(old, new)
    concepts, edges = _fates(old.graph, new.graph, *keys)
    levels = _level_matches(old, new, concepts)
    return Comparison(old.name, old.version, new.version, concepts, edges, levels)


def compare_graphs(
    old: ConceptGraph, new: ConceptGraph
) -> tuple[tuple[Change, ...], tuple[Change, ...]] | None:
    """Fates of the concepts and of the edges of two graphs; None if one names no identities."""
    keys = _identities(old, new)
    return None if keys is None else _fates(old, new, *keys)


def matched_cosines(
    changes: Iterable[Change],
    old: Callable[[int], NDArray[Any] | None],
    new: Callable[[int], NDArray[Any] | None],
) -> dict[int, tuple[int, float | None]]:
    """Level → how many concepts are in both versions, and the mean |cosine| of their directions.

    Parameters
    ----------
    changes : iterable of Change
        Fates of concepts.
    old, new : callable
        A level's directions (n, d) in either version, None where there are none.
    """
    pairs: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for change in changes:
        if change.old is not None and change.new is not None:
            level, index = concept_place(change.new)
            pairs[level].append((concept_place(change.old)[1], index))
    return {level: (len(p), _mean_cosine(old(level), new(level), p)) for level, p in pairs.items()}


def _mean_cosine(
    old: NDArray[Any] | None, new: NDArray[Any] | None, pairs: list[tuple[int, int]]
) -> float | None:
    if old is None or new is None or old.shape[1] != new.shape[1]:
        return None
    first, second = np.asarray(pairs).T
    if first.max() >= len(old) or second.max() >= len(new):
        return None
    a, b = (rows.astype(np.float64) for rows in (old[first], new[second]))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.abs((a * b).sum(axis=1)) / np.where(lengths > 0, lengths, 1.0)
    return float(np.minimum(cosines, 1.0).mean())


def _level_matches(
    old: Artifact, new: Artifact, concepts: tuple[Change, ...]
) -> tuple[LevelMatch, ...]:
    found = matched_cosines(concepts, *(_directions_of(artifact) for artifact in (old, new)))
    before = {entry.level: entry for entry in old.levels}
    matches = []
    for entry in new.levels:
        if entry.level in before:
            matched, cosine = found.get(entry.level, (0, None))
            own, twin = entry.metrics, before[entry.level].metrics
            agreement = (_number(twin.get("agreement")), _number(own.get("agreement")))
            matches.append(LevelMatch(entry.level, entry.name, matched, cosine, agreement))
    return tuple(matches)


def _directions_of(artifact: Artifact) -> Callable[[int], NDArray[Any] | None]:
    def directions(level: int) -> NDArray[Any] | None:
        names = [entry.name for entry in artifact.levels if entry.level == level]
        if not any(path.startswith(f"dictionaries/{n}/") for n in names for path in artifact.files):
            return None
        return artifact.dictionary(level).directions

    return directions


def _number(value: Any) -> float | None:
    """What a manifest says, if it is a number: its metrics are anybody's."""
    return float(value) if isinstance(value, int | float) else None


def _level_line(match: LevelMatch) -> str:
    line = f"level {match.level} {match.name}: {match.matched} concepts in both"
    if match.cosine is not None:
        line += f", mean |cosine| {match.cosine:.3f}"
    before, after = ("–" if value is None else f"{value:.3f}" for value in match.agreement)
    told = any(value is not None for value in match.agreement)
    return line + (f", agreement between seeds {before} → {after}" if told else "")


def _fates(
    old: ConceptGraph, new: ConceptGraph, old_keys: dict[str, str], new_keys: dict[str, str]
) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    nodes = (
        {old_keys[row["id"]]: row for row in old.nodes.to_pylist()},
        {new_keys[row["id"]]: row for row in new.nodes.to_pylist()},
    )
    edges = (
        {(old_keys[r["source"]], old_keys[r["target"]]): r for r in old.edges.to_pylist()},
        {(new_keys[r["source"]], new_keys[r["target"]]): r for r in new.edges.to_pylist()},
    )
    labels = {key: _label(row) for side in nodes for key, row in side.items()}
    concepts = tuple(
        _change(*pair, _label(pair[1] or pair[0]), node_differences)
        for key, pair in _joined(*nodes)
        if (pair[0] or pair[1])["level"] > 0
    )
    links = tuple(
        _change(*pair, f"{labels[key[0]]} → {labels[key[1]]}", _edge_differences)
        for key, pair in _joined(*edges)
    )
    return concepts, links


def _joined(old: dict[Any, Any], new: dict[Any, Any]) -> list[tuple[Any, tuple[Any, Any]]]:
    keys = [*new, *(key for key in old if key not in new)]
    return [(key, (old.get(key), new.get(key))) for key in keys]


def _change(old: Any, new: Any, label: str, differences: Any) -> Change:
    fate: Fate
    found: dict[str, tuple[Any, Any]] = {}
    if old is None:
        fate = "born"
    elif new is None:
        fate = "gone"
    else:
        found = differences(old, new)
        fate = "changed" if found else "kept"
    return Change(_id(old), _id(new), label, fate, found)


def _id(row: Any) -> str | None:
    if row is None:
        return None
    return str(row["id"]) if "id" in row else f"{row['source']} → {row['target']}"


def _label(row: dict[str, Any]) -> str:
    return str(row["label"] if row["label"] is not None else row["id"])


def _line(change: Change) -> str:
    ids = change.new or change.old
    label = f"  {change.label}" if change.label != ids else ""
    what = ", ".join(f"{key} {_show(a)} → {_show(b)}" for key, (a, b) in change.differences.items())
    return f"{ids}{label}" + (f"  ({what})" if what else "")


def _show(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def node_differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a concept's two rows differ in, noticeably: old and new value by column."""
    found = {key: (old[key], new[key]) for key in _NAMED if old[key] != new[key]}
    low, high = sorted((old["frequency"] or 0.0, new["frequency"] or 0.0))
    known = old["frequency"] is not None and new["frequency"] is not None
    if known and high > _FREQUENCY_RATIO * low:
        found["frequency"] = (old["frequency"], new["frequency"])
    # A column of graphs whose concepts were sought from several seeds.
    before, after = (_number(row.get("recurrence")) for row in (old, new))
    if before is not None and after is not None and abs(after - before) > _RECURRENCE_CHANGE:
        found["recurrence"] = (before, after)
    return found


def _edge_differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    found = {key: (old[key], new[key]) for key in ("sign", "verdict") if old[key] != new[key]}
    larger = max(abs(old["strength"]), abs(new["strength"]))
    if abs(old["strength"] - new["strength"]) > _STRENGTH_CHANGE * larger:
        found["strength"] = (old["strength"], new["strength"])
    return found


Keys = tuple[dict[str, str], dict[str, str]]


def _identities(old: ConceptGraph, new: ConceptGraph) -> Keys | None:
    """A key for every node of both graphs, the same for the same variable or concept.

    None if a concept of either has no identity.
    """
    sides = [graph.nodes.to_pylist() for graph in (old, new)]
    if any(row["concept"] is None for side in sides for row in side if row["level"] > 0):
        return None
    named = [{row["id"]: row["concept"] for row in side if row["level"] > 0} for side in sides]
    observed = _observed(sides)
    return named[0] | observed[0], named[1] | observed[1]


def _aligned_identities(old: Artifact, new: Artifact) -> Keys:
    """The same for versions whose concepts have no identity, by what their directions say."""
    sides = [artifact.graph.nodes.to_pylist() for artifact in (old, new)]
    observed = _observed(sides)
    concepts = {row["id"]: f"old {row['id']}" for row in sides[0] if row["level"] > 0}
    return concepts | observed[0], _aligned_keys(old, new, sides[1]) | observed[1]


def _observed(sides: list[list[dict[str, Any]]]) -> Keys:
    by_label = all(_labels_are_unique(side) for side in sides)
    old, new = (
        {
            row["id"]: f"0:{row['label']}" if by_label else row["id"]
            for row in side
            if row["level"] == 0
        }
        for side in sides
    )
    return old, new


def _labels_are_unique(rows: list[dict[str, Any]]) -> bool:
    labels = [row["label"] for row in rows if row["level"] == 0]
    return None not in labels and len(set(labels)) == len(labels)


def _aligned_keys(old: Artifact, new: Artifact, rows: list[dict[str, Any]]) -> dict[str, str]:
    from storage.graph.alignment import align

    partners: dict[str, str] = {}
    for entry in new.levels:
        twin = next((own for own in old.levels if own.level == entry.level), None)
        if twin is not None and twin.d == entry.d:
            pairs = align(
                old.dictionary(twin.level).directions, new.dictionary(entry.level).directions
            )
            for i, j in zip(pairs.old.tolist(), pairs.new.tolist()):
                partners[f"{entry.level}:{j}"] = f"old {entry.level}:{i}"
    concepts = [row["id"] for row in rows if row["level"] > 0]
    return {node_id: partners.get(node_id, f"new {node_id}") for node_id in concepts}
