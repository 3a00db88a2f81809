"""Recovery of the concept graph from codes: observed variables → level 1 → … → level L."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from compute.cluster import Progress, connect, ended, next_ready, silent
from compute.settings import RecoverSettings, ResourceSettings
from compute.steps.observed import ObservedVariables
from storage.graph.concept_graph import ConceptGraph, concept_ids
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeSet

__all__ = ["recover_from_codes", "recover_graph"]


def recover_from_codes(
    activations: ActivationSet,
    codes: CodeSet,
    settings: RecoverSettings,
    *,
    resources: ResourceSettings,
    progress: Progress = silent,
) -> ConceptGraph:
    """Recover the graph of a run from its finished activation and code sets.

    Observed variables and the frequencies of concepts are read from the sets themselves; the rest
    is :func:`recover_graph`.
    """
    from compute.inputs.sources import load_samples
    from compute.steps.encode import read_summary
    from compute.steps.observed import observed_variables

    summaries = [read_summary(codes, level) for level in codes.levels]
    return recover_graph(
        activations,
        codes,
        observed_variables(activations, codes, load_samples(activations.files), settings),
        [summary.counts / max(1, summary.rows) for summary in summaries],
        resources=resources,
        progress=progress,
    )


def recover_graph(
    activations: ActivationSet,
    codes: CodeSet,
    observed: ObservedVariables,
    frequencies: Sequence[npt.NDArray[np.float64]],
    *,
    resources: ResourceSettings,
    progress: Progress = silent,
) -> ConceptGraph:
    """Recover the edges between adjacent levels and from observed variables to level 1.

    Each pair of levels is one Ray task. Only kept training rows are used.

    Parameters
    ----------
    frequencies : sequence of array (n_concepts,)
        Per level, the share of rows in which each concept is active; concepts that never are get
        no node.
    progress : callable
        Told the pairs of levels that are done, and all of them.

    Returns
    -------
    ConceptGraph
        Observed variables without an edge are left out; all active concepts are in. Further
        columns of nodes are ``left_out`` and ``limited`` and, where there are any, the ids of its
        ``twins`` and of the identical parts that it ``stands_for``, with spaces between: see
        :class:`compute.graphs.EdgeRecovery`.
    """
    import ray

    pairs = list(enumerate(zip((None, *codes.levels[:-1]), codes.levels, strict=True)))
    connect()
    task = ray.remote(max_retries=3, num_cpus=resources.cpus)(_recover_pair)
    running = {
        task.remote(activations, codes, observed, part, whole): number
        for number, (part, whole) in pairs
    }
    found: dict[int, dict[str, Any]] = {}
    progress(0, len(pairs))
    with ended(list(running)):
        while running:
            ready = next_ready(list(running))
            found[running.pop(ready)] = ray.get(ready)
            progress(len(found), len(pairs))
    edges: dict[str, list[Any]] = {name: [] for name in _EDGE_COLUMNS}
    nodes: dict[str, list[Any]] = {name: [] for name in _NODE_COLUMNS}
    used = np.unique(found[0]["part"])
    same = _ids_of(0, found[0]["identical_parts"])
    _add_nodes(nodes, 0, used, label=[observed.labels[i] for i in used], stands_for=same)
    for number, _ in pairs:
        pair, level = found[number], number + 1
        alive = np.flatnonzero(frequencies[number] > 0)
        _add_nodes(
            nodes,
            level,
            alive,
            frequency=frequencies[number][alive],
            kind=pair["kind"][alive],
            form=pair["form"][alive],
            unexplained=pair["unexplained"][alive],
            twins=_ids_of(level, np.vstack([pair["twins"], pair["twins"][:, ::-1]])),
            stands_for=_ids_of(level, found[level]["identical_parts"]) if level in found else {},
            left_out=pair["left_out"][alive],
            limited=pair["limited"][alive],
        )
        edges["source"] += concept_ids(level - 1, pair["part"])
        edges["target"] += concept_ids(level, pair["whole"])
        for name in _EDGE_COLUMNS[2:]:
            edges[name] += pair[name].tolist()
    # A column that says nothing of any node has no type.
    for name in ("twins", "stands_for"):
        if not any(nodes[name]):
            del nodes[name]
    return ConceptGraph.from_columns(nodes, edges)


_EDGE_COLUMNS = ("source", "target", "strength", "confidence", "sign", "stability")
_NODE_COLUMNS = (
    "level",
    "index",
    "label",
    "frequency",
    "kind",
    "form",
    "unexplained",
    "twins",
    "stands_for",
    "left_out",
    "limited",
)


def _ids_of(level: int, pairs: npt.NDArray[Any]) -> dict[int, str]:
    """First of each pair → the ids of its seconds, in order."""
    found: dict[int, list[int]] = {}
    for first, second in pairs.tolist():
        found.setdefault(first, []).append(second)
    return {one: " ".join(concept_ids(level, sorted(others))) for one, others in found.items()}


def _add_nodes(
    nodes: dict[str, list[Any]], level: int, index: npt.NDArray[Any], **columns: Any
) -> None:
    for name in _NODE_COLUMNS:
        if name == "level":
            nodes[name] += [level] * len(index)
        elif name == "index":
            nodes[name] += index.tolist()
        else:
            given = columns.get(name, {})
            if isinstance(given, dict):
                given = [given.get(i) for i in index.tolist()]
            nodes[name] += given.tolist() if isinstance(given, np.ndarray) else list(given)


def _recover_pair(
    activations: ActivationSet,
    codes: CodeSet,
    observed: ObservedVariables,
    part: str | None,
    whole: str,
) -> dict[str, Any]:
    from compute.graphs import recover_edges

    parts, wholes = [], []
    for start, stop, matrix in codes.blocks(whole, "train"):
        kept = codes.kept(start, stop)
        wholes.append(matrix[kept])
        if part is None:
            sample = activations.index("sample", start, stop)[kept]
            parts.append(observed.matrix(activations.index("observed", start, stop)[kept], sample))
        else:
            parts.append(codes.matrix(part, start, stop)[kept])
    below = vstack(parts).tocsr()
    if not below.shape[1]:
        # No part that could be found: as if there were one that is never active.
        below = csr_matrix(np.zeros((below.shape[0], 1), dtype=np.float32))
    result = recover_edges(below, vstack(wholes).tocsr())
    return {
        "part": result.part,
        "whole": result.whole,
        "strength": result.edge_strength,
        "confidence": result.edge_confidence,
        "sign": result.edge_sign,
        "stability": result.edge_stability,
        "kind": result.kind,
        "form": result.form,
        "unexplained": result.unexplained,
        "twins": result.twins,
        "identical_parts": result.identical_parts,
        "left_out": result.left_out,
        "limited": result.limited,
    }
