"""The smallest parent set that keeps the fit: backward elimination in a nonlinear regression.

Each whole is regressed on the complete quadratic of its candidate parents – values, squares and
products, which is what a threshold, an AND and an OR bend into – and on its sibling wholes. What a
parent contributes is what the fit loses when its whole block of features is withheld: its value,
its square and every product it takes part in. As the blocks are nested in one matrix of second
moments, the complete elimination path needs no further look at data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-4


@dataclass(frozen=True)
class Basis:
    """Layout of the features of one whole: values, squares, products, then controls.

    Attributes
    ----------
    candidates
        Number of candidate parents, m.
    controls
        Number of sibling features, which are never eliminated.
    quadratic
        Whether squares and products are there; without them there are too few rows for them.
    """

    candidates: int
    controls: int
    quadratic: bool

    @cached_property
    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First and second candidate of every product, ``m(m + 1)/2`` squares included."""
        if not self.quadratic:
            return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
        first, second = np.triu_indices(self.candidates)
        return first, second

    @property
    def size(self) -> int:
        """Number of features."""
        return self.candidates + len(self.pairs[0]) + self.controls

    @cached_property
    def blocks(self) -> NDArray[np.intp]:
        """(m, block) int: the features that fall with each candidate."""
        m = self.candidates
        first, second = self.pairs
        own = [[i, *(m + np.flatnonzero((first == i) | (second == i)))] for i in range(m)]
        return np.asarray(own, dtype=np.intp).reshape(m, -1)

    def features(
        self, values: NDArray[np.float32], controls: NDArray[np.float32], whole: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Stack (n, m) values, (n, c) controls and the (n,) whole.

        Returns
        -------
        (size + 1, n) float32
            One feature a row; the whole is last.
        """
        m = self.candidates
        stop = m + len(self.pairs[0])
        out = np.empty((self.size + 1, len(values)), dtype=np.float32)
        out[:m] = values.T
        start = m
        for i in range(m if self.quadratic else 0):
            np.multiply(out[i:m], out[i], out=out[start : start + m - i])
            start += m - i
        out[stop:-1] = controls.T
        out[-1] = whole
        return out


@dataclass(frozen=True)
class FeatureMoments:
    """Standardised second moments of the features of many wholes.

    Attributes
    ----------
    gram
        (w, size, size) correlations of the features.
    cross
        (w, size) correlations of features and whole.
    live
        (w, size) bool: whether a feature varies.
    mean, scale
        (w, size + 1) mean and standard deviation of the features and, last, the whole.
    n
        Number of rows behind them.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64]
    live: NDArray[np.bool_]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    n: int


def standardise(
    second: NDArray[np.floating], first: NDArray[np.floating], n: int
) -> FeatureMoments:
    """Turn raw sums over n rows – (w, d, d) products and (w, d) features – into moments."""
    mean = first / n
    cov = second / n - mean[:, :, None] * mean[:, None, :]
    variance = np.diagonal(cov, axis1=1, axis2=2)
    raw = np.diagonal(second, axis1=1, axis2=2) / n
    alive = variance > 1e-6 * raw
    scale = np.sqrt(np.where(alive, variance, 1.0))
    factor = np.where(alive, 1.0 / scale, 0.0)
    corr = (cov * factor[:, :, None] * factor[:, None, :]).astype(np.float64)
    return FeatureMoments(
        corr[:, :-1, :-1], corr[:, :-1, -1], alive[:, :-1], mean, np.asarray(scale), n
    )


@dataclass(frozen=True)
class EliminationPath:
    """Backward elimination of every candidate of every whole.

    Attributes
    ----------
    share
        (w, m) share of the explained variance that each candidate held when it was dropped,
        corrected for chance and made monotone along the path.
    evidence
        (w, m) the loss at that moment in units of chi-squared with ``freedom`` degrees.
    freedom
        (w, m) features in the candidate's block at that moment.
    """

    share: NDArray[np.float64]
    evidence: NDArray[np.float64]
    freedom: NDArray[np.int64]


def block_losses(
    moments: FeatureMoments, keep: NDArray[np.bool_], blocks: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Return what each candidate's block contributes to the fit on the kept features.

    Returns
    -------
    loss (w, m), freedom (w, m), explained (w,)
    """
    keep = keep & moments.live
    gram = moments.gram * (keep[:, :, None] & keep[:, None, :])
    d = gram.shape[1]
    gram[:, np.arange(d), np.arange(d)] = 1.0 + RIDGE
    cross = np.where(keep, moments.cross, 0.0)
    inverse = np.linalg.inv(gram)
    beta = np.matmul(inverse, cross[:, :, None])[:, :, 0]
    part = inverse[:, blocks[:, :, None], blocks[:, None, :]]
    weight = beta[:, blocks]
    loss = np.einsum("wmb,wmb->wm", weight, np.linalg.solve(part, weight[..., None])[..., 0])
    explained = np.clip(np.einsum("wd,wd->w", beta, cross), 0.0, 1.0 - 1e-9)
    return loss, keep[:, blocks].sum(axis=2), explained


def eliminate(moments: FeatureMoments, basis: Basis) -> EliminationPath:
    """Drop the candidate that contributes least, again and again, until none is left."""
    w, m = len(moments.gram), basis.candidates
    rows = np.arange(w)
    keep = np.ones((w, basis.size), dtype=np.bool_)
    gone = np.zeros((w, m), dtype=np.bool_)
    share_at = np.zeros((w, m))
    evidence_at = np.zeros((w, m))
    freedom_at = np.zeros((w, m), dtype=np.int64)
    highest = np.zeros(w)
    explained_by_all = np.ones(w)
    for step in range(m):
        loss, freedom, explained = block_losses(moments, keep, basis.blocks)
        if step == 0:
            explained_by_all = np.maximum(explained, 1e-9)
        spent = (keep & moments.live).sum(axis=1)
        chance = ((1.0 - explained) / (moments.n - spent))[:, None]
        net = np.where(gone, np.inf, loss - freedom * chance)
        least = net.argmin(axis=1)
        highest = np.maximum(highest, net[rows, least])
        share_at[rows, least] = highest / explained_by_all
        evidence_at[rows, least] = (loss / chance)[rows, least]
        freedom_at[rows, least] = freedom[rows, least]
        gone[rows, least] = True
        keep[rows[:, None], basis.blocks[least]] = False
    return EliminationPath(share_at, evidence_at, freedom_at)
