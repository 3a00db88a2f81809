"""Graph-aware steering: an edit of a whole carried down to its parts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from compute.steering.edits import Edit
from compute.steering.steering_levels import ConceptLevel, concept_levels, find_level
from storage.graph.concept_graph import concept_place

if TYPE_CHECKING:
    from storage.graph.concept_graph import ConceptGraph

__all__ = ["propagate"]


def propagate(
    edits: Iterable[Edit],
    graph: ConceptGraph,
    artifact: Any = None,
    *,
    active: Collection[str] | None = None,
    depth: int | None = None,
    min_confidence: float = 0.0,
) -> list[Edit]:
    """Return the edits, and after them the edits of the parts that follow through the graph.

    A whole that is scaled by ``s`` scales a part by ``1 + (s − 1) · w``, where ``w`` is the edge's
    strength as a share of the strongest edge into that whole, negative for a part that speaks
    against it; no code is turned negative. What is added or set is carried over in units of the
    concepts' observed ranges. Parts that several wholes reach take the largest of their changes; a
    concept that is edited by hand keeps its edit. Refuted edges carry nothing.

    A part is **spared** when it would be weakened but also belongs to a whole that is active and
    not itself edited: removing a house leaves the box that the car needs.

    Parameters
    ----------
    artifact : artifact or levels; needed for names of levels and for ``add`` and ``value``.
    active : ids of the wholes to protect, those that are active in the sample. None protects every
        whole that is not edited.
    depth : number of levels to go down; None is to the lowest. Observed variables are not edited.
    min_confidence : weaker edges carry nothing.

    Raises
    ------
    ValueError : an edit's level is a name or its concept has no known range, and no artifact tells.
    """
    levels = concept_levels(artifact) if artifact is not None else ()
    known = graph.subgraph(min_confidence=min_confidence, verdicts=("confirmed", "untested"))
    given = list(edits)
    chosen = {_id(edit, levels): edit for edit in given}
    front, done, step = dict(chosen), dict(chosen), 0
    while front and (depth is None or step < depth):
        step += 1
        found: dict[str, Edit] = {}
        for whole, edit in front.items():
            for part, share in _shares(known, whole):
                carried = _carried(edit, whole, part, share, levels)
                if part in done or carried is None:
                    continue
                if part not in found or _size(carried) > _size(found[part]):
                    found[part] = carried
        front = {
            part: edit
            for part, edit in found.items()
            if not (_weakens(edit) and _is_needed(known, part, active, done))
        }
        done |= front
    return given + [edit for name, edit in done.items() if name not in chosen]


def _id(edit: Edit, levels: Sequence[ConceptLevel]) -> str:
    if isinstance(edit.level, int):
        return edit.id
    if not levels:
        raise ValueError(
            f"level {edit.level!r} of an edit is a name: give its number, or pass the artifact"
        )
    return f"{find_level(levels, edit.level).level}:{edit.index}"


def _shares(graph: ConceptGraph, whole: str) -> list[tuple[str, float]]:
    """Return the parts of a whole that are concepts, each with its signed share."""
    if whole not in graph:
        return []
    edges = [edge for edge in graph.edges_into(whole) if edge["source"][:2] != "0:"]
    strongest = max((abs(edge["strength"]) for edge in edges), default=0.0)
    if not strongest:
        return []
    return [
        (edge["source"], abs(edge["strength"]) / strongest * (-1 if edge.get("sign") == -1 else 1))
        for edge in edges
    ]


def _carried(
    edit: Edit, whole: str, part: str, share: float, levels: Sequence[ConceptLevel]
) -> Edit | None:
    """Return what an edit of a whole means for one part, or None for nothing."""
    level, index = concept_place(part)
    # Its own steps and threshold: those of the whole are of another level.
    moved = replace(edit, level=level, concept=index, timesteps=None, above=None)
    if edit.donor is not None:
        return moved if edit.donor.has(level, index) else None
    if edit.value is not None or edit.add:
        if share < 0:
            return None
        ratio = share * _largest(part, levels) / _largest(whole, levels)
        if edit.value is not None:
            return replace(moved, value=np.asarray(edit.value, dtype=np.float64) * ratio)
        moved = replace(moved, add=edit.add * ratio)
    scale = max(0.0, 1 + (edit.scale - 1) * share)
    moved = replace(moved, scale=scale)
    return None if moved.changes_nothing else moved


def _largest(concept: str, levels: Sequence[ConceptLevel]) -> float:
    level, index = concept_place(concept)
    if not levels:
        raise ValueError(
            f"what is added to or set at {concept} is carried over in units of observed ranges: "
            "pass the artifact"
        )
    return find_level(levels, level).largest_of(index)


def _size(edit: Edit) -> float:
    if edit.value is not None:
        return float("inf")
    return max(abs(edit.scale - 1), float(np.abs(edit.add)))


def _weakens(edit: Edit) -> bool:
    if edit.value is not None:
        return bool(np.all(np.asarray(edit.value) == 0))
    return edit.scale < 1 or edit.add < 0


def _is_needed(
    graph: ConceptGraph, part: str, active: Collection[str] | None, edited: Collection[str]
) -> bool:
    wholes = [whole for whole in graph.children(part) if whole not in edited]
    return any(active is None or whole in active for whole in wholes)
