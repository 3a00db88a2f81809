"""One concept of a published version: what all of its files say of it, in one place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from storage.exports.notebook import card, figure, shaded, table, titled

if TYPE_CHECKING:
    from storage.graph.concept_graph import ConceptGraph

__all__ = ["PublishedConcept", "UnknownConcept", "VersionConcepts"]

# Examples, parts and wholes that a notebook shows.
_SHOWN = 5


class UnknownConcept(KeyError):
    """The graph of the version has no such node."""

    def __str__(self) -> str:
        return str(self.args[0])


class _Version(Protocol):
    """What is read of a version."""

    @property
    def graph(self) -> ConceptGraph: ...
    def examples(self, level: int | str) -> list[dict[str, Any]]: ...
    def dictionary(self, level: int | str) -> Any: ...


class VersionConcepts:
    """The concepts of a version by their ids; a level's files are read once."""

    def __init__(self, version: _Version) -> None:
        self._version = version
        self._examples: dict[int, dict[int, list[dict[str, Any]]]] = {}
        self._directions: dict[int, NDArray[Any]] = {}

    @property
    def graph(self) -> ConceptGraph:
        """The graph of the version."""
        return self._version.graph

    def __getitem__(self, concept_id: str) -> PublishedConcept:
        if concept_id not in self.graph:
            levels = ", ".join(str(level) for level in self.graph.levels)
            raise UnknownConcept(
                f"concept {concept_id!r} is not in the graph: give an id LEVEL:INDEX such as "
                f"{self.graph.nodes['id'][-1].as_py()!r}, with one of the levels {levels}."
            )
        return PublishedConcept(self, self.graph.node(concept_id))

    def examples(self, level: int, index: int) -> list[dict[str, Any]]:
        """Examples of one concept, strongest first; none where the version has none."""
        if level not in self._examples:
            found: dict[int, list[dict[str, Any]]] = {}
            for record in self._records(level):
                if record.get("index") is not None:
                    found.setdefault(record["index"], []).append(record)
            self._examples[level] = found
        shown = self._examples[level].get(index, [])
        return sorted(shown, key=lambda record: -(record.get("activation") or 0.0))

    def direction(self, level: int, index: int) -> NDArray[Any]:
        """Decoder row of one concept.

        Raises
        ------
        UnknownConcept
            If the level has no dictionary, or one of fewer concepts than the graph.
        """
        if level not in self._directions:
            self._directions[level] = self._version.dictionary(level).directions
        rows = self._directions[level]
        if index >= len(rows):
            raise UnknownConcept(
                f"concept {level}:{index} has no direction: the dictionary of its level has "
                f"{len(rows):,} concepts."
            )
        direction: NDArray[Any] = rows[index]
        return direction

    def _records(self, level: int) -> Iterator[dict[str, Any]]:
        try:
            yield from self._version.examples(level)
        except KeyError:
            return


class PublishedConcept:
    """A concept, or an observed variable (level 0), of a published version.

    Attributes
    ----------
    id : str
        ``"{level}:{index}"``.
    level, index : int
    label : str
        Empty where nothing could be said.
    metrics : dict
        The other known columns of the node: ``frequency``, ``kind``, ``form``, ``unexplained`` ….
    """

    def __init__(self, reader: VersionConcepts, node: dict[str, Any]) -> None:
        named = ("id", "level", "index", "label")
        self._reader = reader
        self.id: str = node["id"]
        self.level: int = node["level"]
        self.index: int = node["index"]
        self.label: str = node.get("label") or ""
        self.metrics = {name: value for name, value in node.items() if name not in named}

    def __repr__(self) -> str:
        return f"<concept {self.id} {self.label!r}>"

    def _repr_html_(self) -> str:
        facts = [[name, figure(value)] for name, value in self.metrics.items()]
        kin = (("parts", self.parents), ("wholes", self.children))
        for word, found in kin:
            named = (titled(each.id, each.label) for each in found[:_SHOWN])
            facts += [[f"{len(found)} {word}", ", ".join(named)]] if found else []
        shown = "".join(f"<li>{shaded(example)}</li>" for example in self.examples[:_SHOWN])
        return card(
            f"{self.id} {self.label or '(no label)'}",
            table([], facts),
            f"<ol>{shown}</ol>" if shown else "",
        )

    @property
    def parents(self) -> list[PublishedConcept]:
        """Its parts, one level down, strongest edge first."""
        return self._ends(self._reader.graph.edges_into(self.id), "source")

    @property
    def children(self) -> list[PublishedConcept]:
        """The wholes that it is a part of, one level up, strongest edge first."""
        return self._ends(self._reader.graph.edges_from(self.id), "target")

    @property
    def edges(self) -> list[dict[str, Any]]:
        """Edges from its parts and to its wholes, each with its evidence."""
        graph = self._reader.graph
        return [*graph.edges_into(self.id), *graph.edges_from(self.id)]

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """Its strongest examples, strongest first: ``tokens``, ``values``, ``activation`` …."""
        return self._reader.examples(self.level, self.index) if self.level else []

    @property
    def direction(self) -> NDArray[Any]:
        """Its direction ``(d,)`` in the activations of its level, of unit norm.

        Raises
        ------
        ValueError
            For an observed variable, which has none.
        """
        if self.level == 0:
            raise ValueError(f"{self.id} is an observed variable and has no direction.")
        return self._reader.direction(self.level, self.index)

    def _ends(self, edges: list[dict[str, Any]], end: str) -> list[PublishedConcept]:
        edges = sorted(edges, key=lambda edge: -abs(edge["strength"]))
        return [self._reader[edge[end]] for edge in edges]
