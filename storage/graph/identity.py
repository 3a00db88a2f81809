"""Identities of a new version's concepts, taken over from the version that it follows.

A level is the same level if number, name, hookpoint, timestep and width are the same. Its two
dictionaries are then aligned (:mod:`storage.graph.alignment`) by their directions and, where rows
of activations are at hand, by the codes that both give to those rows: it is not needed that the
older version's own rows are still there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage.graph.alignment import align, carry_ids
from storage.graph.comparison import node_differences

if TYPE_CHECKING:
    from storage.exports.saelens import SaeLensDictionary
    from storage.graph.concept_graph import ConceptGraph
    from storage.registry.manifests import LevelEntry
    from storage.registry.versions import Artifact

__all__ = ["FreshLevel", "carry_identities", "concept_histories"]

_BLOCK = 256
# A frequency is published as its log10, and zero as -10.
_NEVER = -9.5


@dataclass(frozen=True)
class FreshLevel:
    """One level of the version that is being made.

    Attributes
    ----------
    entry : LevelEntry
        What the manifest will say of it.
    dictionary : SaeLensDictionary
        Its dictionary.
    rows : ndarray of shape (n, d) or None
        Activations of the level, some thousands, to compare codes on.
    """

    entry: LevelEntry
    dictionary: SaeLensDictionary
    rows: NDArray[Any] | None = None


def carry_identities(
    parent: Artifact | None, levels: Iterable[FreshLevel], *, origin: str
) -> dict[str, str]:
    """Identity of every concept by its id ``"{level}:{index}"``, the dead ones included.

    Parameters
    ----------
    parent : Artifact or None
        The version that the new one follows; None if every concept is new.
    levels : iterable of FreshLevel
        The new levels.
    origin : str
        What new identities are named after, such as the beginning of a digest of the content; where
        the parent knows of an identity of this origin already, the parent's number is added.
    """
    known = _known_identities(parent) if parent is not None else {}
    if parent is not None and any(name.endswith(f"@{origin}") for name in known.values()):
        origin = f"{origin}-{parent.version}"
    found: dict[str, str] = {}
    for fresh in levels:
        number, size = fresh.entry.level, fresh.dictionary.n_concepts
        twin = _twin(parent, fresh.entry)
        alignment, old_ids = None, []
        if parent is not None and twin is not None:
            old = parent.dictionary(twin.level)
            old_codes, new_codes = (
                (_codes(old, fresh.rows), _codes(fresh.dictionary, fresh.rows))
                if fresh.rows is not None
                else (None, None)
            )
            alignment = align(
                old.directions,
                fresh.dictionary.directions,
                old_codes=old_codes,
                new_codes=new_codes,
                old_alive=_alive(old),
                new_alive=_alive(fresh.dictionary),
            )
            unnamed = parent.manifest.content_hash[:12]
            old_ids = [
                known.get(f"{number}:{index}", f"{number}:{index}@{unnamed}")
                for index in range(old.n_concepts)
            ]
        ids = carry_ids(alignment, old_ids, size, level=number, origin=origin)
        found |= {f"{number}:{index}": identity for index, identity in enumerate(ids)}
    return found


def concept_histories(
    ancestors: Sequence[Artifact], graph: ConceptGraph
) -> dict[str, list[tuple[int | None, str]]]:
    """What became of every concept of `graph`, version by version, by the concept's id.

    Parameters
    ----------
    ancestors : sequence of Artifact
        The versions before, oldest first.
    graph : ConceptGraph
        The graph of the version that is being made, with identities.

    Returns
    -------
    dict of str to list of (int or None, str)
        Version and ``born``, ``kept``, ``changed`` or ``gone`` (while it was away), oldest first
        and from the concept's first version on; the version of `graph` itself is None.
    """
    steps: list[tuple[int | None, dict[str, dict[str, Any]]]] = [
        (artifact.version, _by_identity(artifact.graph)) for artifact in ancestors
    ]
    current = _by_identity(graph)
    steps.append((None, current))
    return {row["id"]: list(_fates(identity, steps)) for identity, row in current.items()}


def _fates(
    identity: str, steps: Sequence[tuple[int | None, Mapping[str, dict[str, Any]]]]
) -> Iterator[tuple[int | None, str]]:
    before: dict[str, Any] | None = None
    born = False
    for version, rows in steps:
        row = rows.get(identity)
        if row is not None:
            changed = before is not None and node_differences(before, row)
            yield version, "born" if before is None else "changed" if changed else "kept"
            born = True
        elif born:
            yield version, "gone"
        before = row


def _by_identity(graph: ConceptGraph) -> dict[str, dict[str, Any]]:
    rows = graph.nodes.to_pylist()
    return {row["concept"]: row for row in rows if row["level"] > 0 and row["concept"] is not None}


def _known_identities(parent: Artifact) -> dict[str, str]:
    if "graph/nodes.parquet" not in parent.files:
        return {}
    ids, names = (parent.graph.nodes[name].to_pylist() for name in ("id", "concept"))
    return {node: name for node, name in zip(ids, names, strict=True) if name is not None}


def _twin(parent: Artifact | None, entry: LevelEntry) -> LevelEntry | None:
    if parent is None:
        return None
    same = ("level", "name", "hookpoint", "timestep", "d")
    for own in parent.levels:
        if all(getattr(own, field) == getattr(entry, field) for field in same):
            return own
    return None


def _alive(dictionary: SaeLensDictionary) -> NDArray[np.bool_] | None:
    frequency = dictionary.log10_frequency
    return None if frequency is None else np.asarray(frequency > _NEVER)


def _codes(dictionary: SaeLensDictionary, rows: NDArray[Any]) -> Any:
    """Codes of rows as a sparse matrix; dense ones exist for one block of rows at a time."""
    from scipy import sparse

    if not len(rows):
        return sparse.csr_matrix((0, dictionary.n_concepts))
    blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
    encoded = [sparse.csr_matrix(dictionary.encode(b.astype(np.float32))) for b in blocks]
    return sparse.vstack(encoded, format="csr")
