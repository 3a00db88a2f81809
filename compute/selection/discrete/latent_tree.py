"""A forest of latent discrete variables over observed parts: exact inference and EM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compute.selection.discrete.latent_class import distinct_rows

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_TINY = 1e-300
_SMOOTHING = 1e-3


@dataclass(frozen=True)
class LatentTree:
    """Structure and tables.

    Attributes
    ----------
    parent : (L,) int
        The latent above or beside each latent, -1 for a root.
    tables : list of (c_parent or 1, c_k) float
        P(latent k | its parent); a root's prior is a single row.
    owner : (p,) int
        The latent each part hangs on, -1 if none.
    emissions : list of (c_owner or 1, c_i) float
        P(part i | its latent).
    """

    parent: IntArray
    tables: list[FloatArray]
    owner: IntArray
    emissions: list[FloatArray]


@dataclass
class TreeRows:
    """Rows prepared for a tree: the parts of each latent, as distinct configurations."""

    codes: IntArray
    owner: IntArray
    n_latents: int
    inverse: list[IntArray] = field(init=False)
    onehots: list[dict[int, FloatArray]] = field(init=False)
    n_distinct: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.inverse, self.onehots, self.n_distinct = [], [], []
        cards = self.codes.max(axis=0) + 1
        for latent in range(self.n_latents):
            parts = np.flatnonzero(self.owner == latent)
            rows, _, inverse = distinct_rows(self.codes[:, parts])
            self.inverse.append(inverse)
            self.n_distinct.append(len(rows))
            self.onehots.append(
                {
                    int(i): (column[:, None] == np.arange(cards[i])).astype(np.float64)
                    for i, column in zip(parts, rows.T)
                }
            )

    def likelihood(self, tree: LatentTree, latent: int, without: int = -1) -> FloatArray:
        """P(parts of the latent | its state), (n, c), leaving one part out if asked."""
        table = np.ones((self.n_distinct[latent], tree.tables[latent].shape[1]))
        for i, hot in self.onehots[latent].items():
            if i != without:
                # A held-out table may lack the last states of a part.
                table *= hot @ tree.emissions[i][:, : hot.shape[1]].T
        return np.asarray(table[self.inverse[latent]])


@dataclass(frozen=True)
class Beliefs:
    """Posteriors (n, c_k), pair counts with the parent, and the log-likelihood of each row (n,)."""

    posteriors: list[FloatArray]
    pair_counts: list[FloatArray]
    row_log_likelihood: FloatArray


def infer(tree: LatentTree, likelihoods: Sequence[FloatArray]) -> Beliefs:
    """Exact upward and downward pass (Pearl 1988) for local likelihoods (n, c_k) of each latent."""
    order = _topological(tree.parent)
    inward = [np.array(message) for message in likelihoods]
    to_parent: dict[int, FloatArray] = {}
    log_scale = np.zeros(len(inward[0]))
    for k in order[::-1]:
        scale = np.maximum(inward[k].max(axis=1), _TINY)
        inward[k] /= scale[:, None]
        log_scale += np.log(scale)
        message = inward[k] @ tree.tables[k].T
        if tree.parent[k] < 0:
            log_scale += np.log(np.maximum(message[:, 0], _TINY))
        else:
            to_parent[k] = message
            inward[tree.parent[k]] *= message
    posteriors: list[FloatArray] = [np.empty(0)] * len(inward)
    pair_counts: list[FloatArray] = [np.empty(0)] * len(inward)
    for k in order:
        above = tree.parent[k]
        if above < 0:
            outer = np.ones((len(log_scale), 1))
        else:
            outer = posteriors[above] / np.maximum(to_parent[k], _TINY)
        posterior = (outer @ tree.tables[k]) * inward[k]
        norm = np.maximum(posterior.sum(axis=1, keepdims=True), _TINY)
        posteriors[k] = posterior / norm
        pair_counts[k] = tree.tables[k] * ((outer / norm).T @ inward[k])
    return Beliefs(posteriors, pair_counts, log_scale)


def fit_tree(tree: LatentTree, rows: TreeRows, iterations: int, tolerance: float) -> LatentTree:
    """EM from the given tables until a step gains less than ``tolerance`` nats."""
    previous = -np.inf
    for _ in range(iterations):
        beliefs = infer(tree, [rows.likelihood(tree, k) for k in range(rows.n_latents)])
        score = float(beliefs.row_log_likelihood.sum())
        if score - previous < tolerance:
            break
        previous = score
        emissions = list(tree.emissions)
        for k, posterior in enumerate(beliefs.posteriors):
            counts = np.stack(
                [np.bincount(rows.inverse[k], column, rows.n_distinct[k]) for column in posterior.T]
            )
            for i, hot in rows.onehots[k].items():
                emissions[i] = _normalised(counts @ hot + _SMOOTHING)
        tables = [_normalised(counts + _SMOOTHING) for counts in beliefs.pair_counts]
        tree = LatentTree(tree.parent, tables, tree.owner, emissions)
    return tree


def spanning_forest(codes: IntArray, cards: Sequence[int], least: float) -> IntArray:
    """Maximum-information spanning forest (Chow, Liu 1968) as parents (K,), -1 for roots.

    Edges whose mutual information is below ``least`` times (c_i - 1)(c_j - 1) / 2n are left out.
    """
    n, count = codes.shape
    information = np.full((count, count), -np.inf)
    for i in range(count):
        for j in range(i):
            joint = np.zeros((cards[i], cards[j]))
            np.add.at(joint, (codes[:, i], codes[:, j]), 1.0 / n)
            product = np.outer(joint.sum(axis=1), joint.sum(axis=0))
            held = joint > 0
            value = float((joint[held] * np.log(joint[held] / product[held])).sum())
            if value > least * (cards[i] - 1) * (cards[j] - 1) / (2 * n):
                information[i, j] = information[j, i] = value
    parent = np.full(count, -1, dtype=np.int64)
    outside = set(range(count))
    best = np.full(count, -np.inf)
    while outside:
        k = max(outside, key=lambda i: (best[i], -i))
        outside.remove(k)
        for i in outside:
            if information[k, i] > best[i]:
                best[i], parent[i] = information[k, i], k
    return parent


def _topological(parent: IntArray) -> list[int]:
    order: list[int] = []
    placed: set[int] = {-1}
    while len(order) < len(parent):
        ready = [k for k in range(len(parent)) if k not in placed and int(parent[k]) in placed]
        order.extend(ready)
        placed.update(ready)
    return order


def _normalised(counts: FloatArray) -> FloatArray:
    return np.asarray(counts / counts.sum(axis=-1, keepdims=True))
