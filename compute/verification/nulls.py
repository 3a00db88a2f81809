"""Graphs to compare with: the same shape without the structure, or with plain correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

__all__ = ["correlation_edges", "random_edges", "shuffled_edges"]

Edges = NDArray[np.bool_]


def shuffled_edges(edges: Any, rng: np.random.Generator) -> Any:
    """Return a graph in which every whole has as many parts, and every part about as many wholes.

    The ends of the edges are permuted; a whole that would get one part twice gets another at
    random.

    Parameters
    ----------
    edges : sparse bool ``(n_parts, n_wholes)``.
    """
    part, whole = edges.nonzero()
    order = np.argsort(whole, kind="stable")
    part, whole = rng.permutation(part), whole[order]
    used: set[tuple[int, int]] = set()
    pool = np.unique(part)
    for row in range(len(part)):
        while (int(part[row]), int(whole[row])) in used:
            part[row] = rng.choice(pool)
        used.add((int(part[row]), int(whole[row])))
        if len(used) and (edges.shape[0] == 1 or len(pool) == 1):
            break
    return _graph(part, whole, edges.shape)


def random_edges(edges: Any, rng: np.random.Generator) -> Any:
    """Return as many pairs that are no edges, into the same wholes and from the same parts."""
    taken = set(zip(*(ends.tolist() for ends in edges.nonzero()), strict=True))
    parts, wholes = (np.unique(ends) for ends in edges.nonzero())
    found: set[tuple[int, int]] = set()
    for _ in range(20 * len(taken)):
        if len(found) == len(taken):
            break
        pair = (int(rng.choice(parts)), int(rng.choice(wholes)))
        if pair not in taken:
            found.add(pair)
    ordered = sorted(found)
    return _graph([p for p, _ in ordered], [w for _, w in ordered], edges.shape)


def correlation_edges(edges: Any, parts: Any, wholes: Any) -> Any:
    """Return a graph in which every whole has as many parts: those most correlated with it.

    Parameters
    ----------
    edges : sparse bool ``(n_parts, n_wholes)``, whose number of parts per whole is taken over.
    parts, wholes : sparse codes ``(n, n_parts)`` and ``(n, n_wholes)`` of the same rows.
    """
    degree = np.asarray(edges.sum(axis=0)).ravel().astype(int)
    n = parts.shape[0]
    mean = np.asarray(parts.mean(axis=0)).ravel()
    square = np.asarray(parts.multiply(parts).mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    deviation[deviation == 0] = np.inf
    chosen = np.flatnonzero(degree)
    joint = np.asarray((parts.T @ wholes[:, chosen]).todense()) / n
    average = np.asarray(wholes[:, chosen].mean(axis=0)).ravel()
    # A whole's own deviation does not change the order of its parts.
    score = np.abs(joint - mean[:, None] * average) / deviation[:, None]
    part, whole = [], []
    for column, j in enumerate(chosen):
        best = np.argsort(-score[:, column], kind="stable")[: degree[j]]
        part += best.tolist()
        whole += [int(j)] * len(best)
    return _graph(part, whole, edges.shape)


def _graph(part: Any, whole: Any, shape: tuple[int, int]) -> Any:
    return csr_matrix((np.ones(len(part), dtype=bool), (part, whole)), shape=shape)
