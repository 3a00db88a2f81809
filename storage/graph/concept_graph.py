"""The concept graph: typed nodes and edges in columns, from observed variables up to the top level.

An edge runs part → whole, from a lower level to a higher one, so that the graph is acyclic by its
shape. The columns are Arrow tables; what is not known is null. Node columns:

=============  =======  ==========================================================================
id             string   ``"{level}:{index}"``
level          int32    0 for observed variables, 1..L for concepts, lowest first
index          int32    position inside the level: column of the codes, row of the decoder
label          string   token text, word, patch, or the name given to a concept
concept        string   identity of the concept across versions
frequency      double   share of rows in which the node is active
kind           string   what the test of its parents says, e.g. selection or common cause
form           string   functional form of the whole, e.g. and, or, threshold, linear
unexplained    double   error share: what its parents leave unexplained, 0 to 1
=============  =======  ==========================================================================

Edge columns:

=============  =======  ==========================================================================
source         string   id of the part
target         string   id of the whole
strength       double   size of the dependence, in the unit of the method that found it
confidence     double   0 to 1
sign           int8     +1, −1, or 0 where the method gives none
stability      double   share of half-samples whose own selection has the edge
variant        string   which variant of the method found it
effect         double   effect of an intervention on the part, measured at the whole
effect_low     double   lower end of the interval of `effect`
effect_high    double   upper end
verdict        string   confirmed, refuted or untested
=============  =======  ==========================================================================

Further columns of numbers, texts or truth values are kept as they are. One such is ``recurrence``
(double), how a concept comes again from other seeds: its mean |cosine| with what they have found in
its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.exports.notebook import card, figure, table, titled
from storage.graph.graph_columns import (
    EDGE_SCHEMA,
    NODE_SCHEMA,
    known,
    make_table,
    parquet_bytes,
    read_table,
    to_numpy,
)
from storage.graph.graph_formats import graphml, networkx_graph, node_link
from storage.sealing.seals import Files

__all__ = ["GRAPH_FILES", "VERDICTS", "ConceptGraph", "concept_ids", "concept_place"]

VERDICTS = ("confirmed", "refuted", "untested")
GRAPH_FILES = ("nodes.parquet", "edges.parquet")
# Strongest edges that a notebook shows.
_SHOWN = 5

Positions = NDArray[np.int64]


def concept_ids(level: int, indices: Iterable[int]) -> list[str]:
    """Ids ``"{level}:{index}"`` of the nodes at `indices` of a level."""
    return [f"{level}:{int(index)}" for index in indices]


def concept_place(concept: str) -> tuple[int, int]:
    """Level and index of a concept, from its id."""
    level, index = concept.split(":")
    return int(level), int(index)


@dataclass(frozen=True, eq=False)
class ConceptGraph:
    """A directed acyclic graph of parts and wholes; build it with :meth:`from_columns`.

    Attributes
    ----------
    nodes : pyarrow.Table
        One row per node in the columns above, sorted by level and index.
    edges : pyarrow.Table
        One row per edge, sorted by source and target.
    """

    nodes: pa.Table
    edges: pa.Table

    @classmethod
    def from_columns(
        cls, nodes: Mapping[str, Sequence[Any] | NDArray[Any]], edges: Mapping[str, Any]
    ) -> ConceptGraph:
        """Build a graph from columns of equal length.

        Parameters
        ----------
        nodes : mapping
            ``level`` and ``index`` are needed; the id follows from them.
        edges : mapping
            ``source`` and ``target`` (ids, see :func:`concept_ids`), ``strength`` and
            ``confidence`` are needed; ``verdict`` is untested where not given; NaN means unknown.

        Raises
        ------
        ValueError
            If a needed column is missing, lengths differ, an id is not unique, an edge names no
            node or does not run upwards, a share is outside 0..1, or a verdict is unknown.
        """
        columns = dict(nodes)
        for name in ("level", "index"):
            if name not in columns:
                raise ValueError(f"nodes lack the column {name!r}.")
        derived = [f"{int(lv)}:{int(ix)}" for lv, ix in zip(columns["level"], columns["index"])]
        given = columns.get("id")
        if given is not None and list(given) != derived:
            raise ValueError("the column 'id' of nodes must be '{level}:{index}': leave it out.")
        node_table = make_table(columns | {"id": derived}, NODE_SCHEMA, "nodes")
        edge_columns = dict(edges)
        if "verdict" not in edge_columns:
            edge_columns["verdict"] = ["untested"] * len(edge_columns.get("source", ()))
        edge_table = make_table(edge_columns, EDGE_SCHEMA, "edges")
        return cls._validated(node_table, edge_table)

    @classmethod
    def read(cls, files: Files) -> ConceptGraph:
        """Read the graph that lies as `GRAPH_FILES` in the folder of a step.

        Raises
        ------
        ValueError
            If a file is no Parquet file or its columns do not make a graph.
        """
        nodes, edges = GRAPH_FILES
        return cls.from_parquet(files.get(nodes), files.get(edges))

    @classmethod
    def from_parquet(cls, nodes: bytes | str | Path, edges: bytes | str | Path) -> ConceptGraph:
        """Read a graph from two Parquet files, given as bytes or as paths.

        Raises
        ------
        ValueError
            If a file is no Parquet file or its columns do not make a graph.
        """
        node_table = read_table(nodes, NODE_SCHEMA, "nodes")
        edge_table = read_table(edges, EDGE_SCHEMA, "edges")
        return cls._validated(node_table, edge_table)

    @classmethod
    def _validated(cls, nodes: pa.Table, edges: pa.Table) -> ConceptGraph:
        nodes = nodes.sort_by([("level", "ascending"), ("index", "ascending")]).combine_chunks()
        level = to_numpy(nodes["level"])
        if len(level) and level[0] < 0:
            raise ValueError(f"nodes have the level {level[0]}: levels begin at 0, the observed.")
        if pc.count_distinct(nodes["id"]).as_py() != len(nodes):
            raise ValueError("nodes repeat an id: give one row per level and index.")
        ends = []
        for end in ("source", "target"):
            position = pc.index_in(edges[end], value_set=nodes["id"].combine_chunks())
            if position.null_count:
                missing = edges[end].filter(pc.is_null(position))[0].as_py()
                raise ValueError(f"edges name the {end} {missing!r}, which is not among the nodes.")
            ends.append(to_numpy(position).astype(np.int64))
        source, target = ends
        downward = np.flatnonzero(level[source] >= level[target])
        if len(downward):
            row = int(downward[0])
            raise ValueError(
                f"edge {edges['source'][row]} → {edges['target'][row]} does not run upwards: a "
                "part lies at a lower level than its whole."
            )
        order = np.lexsort((target, source))
        repeated = (np.diff(source[order]) == 0) & (np.diff(target[order]) == 0)
        if repeated.any():
            row = int(order[np.flatnonzero(repeated)[0]])
            raise ValueError(f"edge {edges['source'][row]} → {edges['target'][row]} is repeated.")
        wrong = set(pc.unique(edges["verdict"]).to_pylist()) - set(VERDICTS)
        if wrong:
            raise ValueError(f"verdict {wrong.pop()!r} is none of {', '.join(VERDICTS)}.")
        graph = cls(nodes, edges.take(_to_arrow(order)).combine_chunks())
        graph.__dict__["_ends"] = (source[order], target[order])
        return graph

    # ---- looking at it -------------------------------------------------------------------------

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return int(self.nodes.num_rows)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.edges.num_rows)

    @cached_property
    def levels(self) -> dict[int, int]:
        """Number of nodes of each level, lowest first."""
        level, count = np.unique(to_numpy(self.nodes["level"]), return_counts=True)
        return dict(zip(level.tolist(), count.tolist()))

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._position

    def __repr__(self) -> str:
        return f"<ConceptGraph of {self.n_nodes:,} nodes and {self.n_edges:,} edges>"

    def _repr_html_(self) -> str:
        label = dict(zip(self.nodes["id"].to_pylist(), self.nodes["label"].to_pylist()))
        strongest = pc.select_k_unstable(
            self.edges.append_column("size", pc.abs(self.edges["strength"])),
            _SHOWN,
            [("size", "descending")],
        )
        rows = [
            [titled(edge[end], label[edge[end]]) for end in ("source", "target")]
            + [figure(edge[column]) for column in ("strength", "confidence", "verdict")]
            for edge in self.edges.take(strongest).to_pylist()
        ]
        return card(
            f"{self.n_nodes:,} nodes, {self.n_edges:,} edges, part → whole",
            table(["level", "nodes"], [[n, f"{size:,}"] for n, size in self.levels.items()]),
            table(["part", "whole", "strength", "confidence", "verdict"], rows),
        )

    def equals(self, other: ConceptGraph) -> bool:
        """Whether both graphs have the same nodes and edges with the same columns."""
        return bool(self.nodes.equals(other.nodes) and self.edges.equals(other.edges))

    def node(self, node_id: str) -> dict[str, Any]:
        """Return the known columns of one node; raise KeyError if there is none."""
        return known(self.nodes.slice(self._at(node_id), 1).to_pylist()[0])

    def edge(self, source: str, target: str) -> dict[str, Any]:
        """Return the known columns of one edge; raise KeyError if there is none."""
        start, stop = self._children_pointer[self._at(source) :][:2]
        row = np.flatnonzero(self._target[start:stop] == self._at(target))
        if not len(row):
            raise KeyError(f"no edge {source} → {target}")
        return self._edge_rows(start + row)[0]

    def edges_into(self, whole: str) -> list[dict[str, Any]]:
        """Return the known columns of the edges from a node's parts."""
        start, stop = self._parents_pointer[self._at(whole) :][:2]
        return self._edge_rows(self._by_target[start:stop])

    def edges_from(self, part: str) -> list[dict[str, Any]]:
        """Return the known columns of the edges to the wholes that a node is a part of."""
        start, stop = self._children_pointer[self._at(part) :][:2]
        return self._edge_rows(np.arange(start, stop))

    # ---- asking it -----------------------------------------------------------------------------

    def parents(self, node_id: str) -> list[str]:
        """Ids of the parts of a node, one step down."""
        return self._names(self._below(self._at(node_id)))

    def children(self, node_id: str) -> list[str]:
        """Ids of the wholes that a node is a part of, one step up."""
        return self._names(self._above(self._at(node_id)))

    def ancestors(self, node_id: str) -> list[str]:
        """Ids of all parts of a node, at any depth."""
        return self._names(self._reach(self._at(node_id), upwards=False))

    def descendants(self, node_id: str) -> list[str]:
        """Ids of all wholes that a node takes part in, at any height."""
        return self._names(self._reach(self._at(node_id), upwards=True))

    def minimal_parts(self, whole: str, *, level: int | None = None) -> list[str]:
        """Ids of the parts that a whole comes down to.

        These are its ancestors at `level`; without a level, the ancestors that have no parts of
        their own. To leave weak or refuted edges out, ask the :meth:`subgraph` without them.
        """
        below = self._reach(self._at(whole), upwards=False)
        if level is None:
            atomic = np.diff(self._parents_pointer)[below] == 0
        else:
            atomic = to_numpy(self.nodes["level"])[below] == level
        return self._names(below[atomic])

    def paths(self, source: str, target: str) -> Iterator[list[str]]:
        """Yield every directed path from a part to a whole as a list of ids, lazily.

        Their number can grow exponentially with the number of levels: take what is needed with
        ``itertools.islice``.
        """
        start, end = self._at(source), self._at(target)
        useful = np.zeros(self.n_nodes, dtype=bool)
        useful[self._reach(end, upwards=False)] = True
        useful[end] = True
        if not useful[start] or start == end:
            return
        ids = self.nodes["id"]
        stack: list[tuple[int, tuple[int, ...]]] = [(start, (start,))]
        while stack:
            position, path = stack.pop()
            if position == end:
                yield [ids[step].as_py() for step in path]
                continue
            above = self._above(position)
            for step in above[useful[above]][::-1].tolist():
                stack.append((step, (*path, step)))

    def subgraph(
        self,
        *,
        min_confidence: float = 0.0,
        verdicts: Iterable[str] = VERDICTS,
        levels: Iterable[int] | None = None,
        ids: Iterable[str] | None = None,
        drop_isolated: bool = False,
    ) -> ConceptGraph:
        """Return the graph of the chosen nodes and, among them, the chosen edges.

        Parameters
        ----------
        min_confidence : float
            Edges of a lower confidence are left out.
        verdicts : iterable of str
            Edges of another verdict are left out.
        levels, ids : iterable, optional
            Nodes of another level, or of another id, are left out.
        drop_isolated : bool
            Leave out nodes that keep no edge.

        Raises
        ------
        KeyError
            If one of `ids` is not in the graph.
        """
        keep = np.ones(self.n_nodes, dtype=bool)
        if levels is not None:
            keep &= np.isin(to_numpy(self.nodes["level"]), list(levels))
        if ids is not None:
            chosen = np.zeros(self.n_nodes, dtype=bool)
            chosen[[self._at(node_id) for node_id in ids]] = True
            keep &= chosen
        edge_keep = to_numpy(self.edges["confidence"]) >= min_confidence
        chosen_verdict = pc.is_in(self.edges["verdict"], pa.array(list(verdicts), pa.string()))
        edge_keep &= to_numpy(chosen_verdict.cast(pa.int8())) == 1
        edge_keep &= keep[self._source] & keep[self._target]
        if drop_isolated:
            linked = np.zeros(self.n_nodes, dtype=bool)
            linked[self._source[edge_keep]] = True
            linked[self._target[edge_keep]] = True
            keep &= linked
        return ConceptGraph._validated(
            self.nodes.take(_to_arrow(np.flatnonzero(keep))),
            self.edges.take(_to_arrow(np.flatnonzero(edge_keep))),
        )

    def neighbourhood(self, node_id: str, *, depth: int = 1) -> ConceptGraph:
        """Return the graph of a node and all that lies within `depth` steps below or above it."""
        reached = {self._at(node_id)}
        for upwards in (False, True):
            reached |= set(self._reach(self._at(node_id), upwards=upwards, depth=depth).tolist())
        return self.subgraph(ids=self._names(np.array(sorted(reached), dtype=np.int64)))

    # ---- taking it elsewhere -------------------------------------------------------------------

    @property
    def edges_by_level(self) -> dict[int, int]:
        """Number of edges that point to nodes of each level, of levels that have any."""
        found: dict[int, int] = {}
        for target in self.edges.column("target").to_pylist():
            level, _ = concept_place(target)
            found[level] = found.get(level, 0) + 1
        return found

    def to_parquet(self) -> dict[str, bytes]:
        """Return the files `GRAPH_FILES`."""
        nodes, edges = GRAPH_FILES
        return {nodes: parquet_bytes(self.nodes), edges: parquet_bytes(self.edges)}

    def to_networkx(self) -> Any:
        """Return a ``networkx.DiGraph`` whose attributes are the known columns."""
        return networkx_graph(self.nodes, self.edges)

    def to_node_link(self) -> dict[str, Any]:
        """Return the plain data that ``networkx.node_link_graph`` takes."""
        return node_link(self.nodes, self.edges)

    def to_json(self) -> bytes:
        """Return :meth:`to_node_link` as JSON."""
        return json.dumps(self.to_node_link(), ensure_ascii=False, allow_nan=False).encode()

    def to_graphml(self) -> bytes:
        """Return GraphML; characters that XML cannot carry become U+FFFD."""
        return graphml(self.nodes, self.edges)

    def files(self) -> dict[str, bytes]:
        """Return the graph in all its formats, by the file names of an artifact's ``graph/``."""
        return {
            "graph.json": self.to_json(),
            "graph.graphml": self.to_graphml(),
            **self.to_parquet(),
        }

    # ---- inside --------------------------------------------------------------------------------

    @cached_property
    def _ends(self) -> tuple[Positions, Positions]:
        ids = self.nodes["id"].combine_chunks()
        source = pc.index_in(self.edges["source"], value_set=ids)
        target = pc.index_in(self.edges["target"], value_set=ids)
        return to_numpy(source).astype(np.int64), to_numpy(target).astype(np.int64)

    @property
    def _source(self) -> Positions:
        return self._ends[0]

    @property
    def _target(self) -> Positions:
        return self._ends[1]

    @cached_property
    def _position(self) -> dict[str, int]:
        return {node_id: i for i, node_id in enumerate(self.nodes["id"].to_pylist())}

    @cached_property
    def _children_pointer(self) -> Positions:
        return _pointer(self._source, self.n_nodes)

    @cached_property
    def _parents_pointer(self) -> Positions:
        return _pointer(self._target, self.n_nodes)

    @cached_property
    def _by_target(self) -> Positions:
        return np.argsort(self._target, kind="stable")

    @cached_property
    def _parents_of(self) -> Positions:
        return self._source[self._by_target]

    def _at(self, node_id: str) -> int:
        try:
            return self._position[node_id]
        except KeyError:
            raise KeyError(f"no node {node_id!r} in this graph") from None

    def _names(self, positions: Positions) -> list[str]:
        names: list[str] = self.nodes["id"].take(_to_arrow(positions)).to_pylist()
        return names

    def _edge_rows(self, rows: Positions) -> list[dict[str, Any]]:
        # One look at the table for all rows: each costs more than a row does.
        return [known(row) for row in self.edges.take(_to_arrow(rows)).to_pylist()]

    def _above(self, position: int) -> Positions:
        start, stop = self._children_pointer[position : position + 2]
        return self._target[start:stop]

    def _below(self, position: int) -> Positions:
        start, stop = self._parents_pointer[position : position + 2]
        return self._parents_of[start:stop]

    def _reach(self, position: int, *, upwards: bool, depth: int | None = None) -> Positions:
        """Positions of all nodes that can be reached, without the first, in ascending order."""
        step = self._above if upwards else self._below
        seen = {position}
        frontier = [position]
        while frontier and (depth is None or depth > 0):
            found = {int(p) for at in frontier for p in step(at)} - seen
            seen |= found
            frontier = list(found)
            depth = None if depth is None else depth - 1
        return np.array(sorted(seen - {position}), dtype=np.int64)


def _to_arrow(positions: Positions) -> pa.Array:
    values = np.ascontiguousarray(positions, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def _pointer(ends: Positions, n_nodes: int) -> Positions:
    counts = np.bincount(ends, minlength=n_nodes)
    return np.concatenate([[0], np.cumsum(counts)])
