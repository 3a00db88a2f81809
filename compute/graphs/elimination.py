"""The smallest parent set that keeps the fit: backward elimination in a nonlinear regression.

Each whole is regressed on the complete quadratic of its candidate parents – values, squares and
products, which is what a threshold, an AND and an OR bend into – and on its sibling wholes. What a
parent contributes is what the fit loses when its whole block of features is withheld: its value,
its square and every product it takes part in. As the blocks are nested in one matrix of second
moments, the complete elimination path needs no further look at data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-4
# Features are made of so many rows at a time that they are at most this many numbers.
_FEATURE_CELLS = 1 << 24
# Products are formed among this many candidates, the first ones; further ones have a square. All
# products of 27 candidates are 378 features, whose moments take as long as those of 60 wholes of 8.
CROSSED = 8


@dataclass(frozen=True)
class Basis:
    """Layout of the features of one whole: values, squares, products, then controls.

    Attributes
    ----------
    candidates
        Number of candidate parents, m, those that matter most first.
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
        """First and second candidate of every square and product.

        Every candidate has a square; products are of pairs of the first ``CROSSED``.
        """
        if not self.quadratic:
            return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
        first, second = np.triu_indices(self.candidates)
        formed = (second < CROSSED) | (first == second)
        return first[formed], second[formed]

    @property
    def size(self) -> int:
        """Number of features."""
        return self.candidates + len(self.pairs[0]) + self.controls

    @cached_property
    def blocks(self) -> NDArray[np.intp]:
        """(m, block) int: the features that fall with each candidate; ``size`` where it has fewer
        than others."""
        m = self.candidates
        first, second = self.pairs
        own = [[i, *(m + np.flatnonzero((first == i) | (second == i)))] for i in range(m)]
        out = np.full((m, max(map(len, own), default=0)), self.size, dtype=np.intp)
        for i, features in enumerate(own):
            out[i, : len(features)] = features
        return out

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
            other = out[i : max(min(m, CROSSED), i + 1)]
            np.multiply(other, out[i], out=out[start : start + len(other)])
            start += len(other)
        out[stop:-1] = controls.T
        out[-1] = whole
        return out

    def blocks_of_rows(
        self, values: NDArray[np.float32], controls: NDArray[np.float32], whole: NDArray[np.float32]
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the :meth:`features` of some rows after others, in memory that has a bound."""
        step = max(1, _FEATURE_CELLS // (self.size + 1))
        for a in range(0, len(whole), step):
            rows = slice(a, a + step)
            yield self.features(values[rows], controls[rows], whole[rows])


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


class Regressions(NamedTuple):
    """Regressions of w wholes on the features that are left.

    Attributes
    ----------
    inverse
        (w, size + 1, size + 1) inverse of the correlations of what is left; identity elsewhere, and
        in the last place, which is no feature: blocks are filled up with it.
    beta
        (w, size + 1) weights; 0 elsewhere.
    left
        (w, size + 1) bool: the features that vary and were not withheld.
    """

    inverse: NDArray[np.float64]
    beta: NDArray[np.float64]
    left: NDArray[np.bool_]

    @classmethod
    def of(cls, moments: FeatureMoments) -> Regressions:
        """Regress on all features that vary."""
        w, d = moments.live.shape
        left = np.zeros((w, d + 1), dtype=np.bool_)
        left[:, :-1] = moments.live
        gram = np.zeros((w, d + 1, d + 1))
        gram[:, :-1, :-1] = moments.gram * (moments.live[:, :, None] & moments.live[:, None, :])
        gram[:, np.arange(d + 1), np.arange(d + 1)] = np.where(left, 1.0 + RIDGE, 1.0)
        cross = np.zeros((w, d + 1))
        cross[:, :-1] = np.where(moments.live, moments.cross, 0.0)
        inverse = np.linalg.inv(gram)
        return cls(inverse, np.matmul(inverse, cross[:, :, None])[:, :, 0], left)

    def explained(self, moments: FeatureMoments) -> NDArray[np.float64]:
        """(w,) share of the whole's variance."""
        share = np.einsum("wd,wd->w", self.beta[:, :-1], moments.cross)
        return np.asarray(np.clip(share, 0.0, 1.0 - 1e-9))

    def block_losses(
        self, blocks: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return (w, m) what each candidate's block adds to the fit, and its (w, m) features."""
        part = self.inverse[:, blocks[:, :, None], blocks[:, None, :]]
        # The place that fills a block up may stand in it several times.
        size = self.left.shape[1] - 1
        filled = (blocks[:, :, None] == size) & ~np.eye(blocks.shape[1], dtype=np.bool_)
        part[:, filled] = 0.0
        weight = self.beta[:, blocks]
        loss = np.einsum("wmb,wmb->wm", weight, np.linalg.solve(part, weight[..., None])[..., 0])
        return loss, self.left[:, blocks].sum(axis=2)

    def withhold(self, block: NDArray[np.intp]) -> Regressions:
        """Return the regressions without the (w, b) features ``block``, by partitioned inverse."""
        rows = np.arange(len(block))[:, None]
        size = self.left.shape[1] - 1
        # Each feature once: what fills a block up is identity already.
        filled = block == size
        columns = np.where(filled[:, :, None], 0.0, self.inverse[rows, block])
        part = np.take_along_axis(columns, block[:, None, :], axis=2)
        part[:, np.arange(block.shape[1]), np.arange(block.shape[1])] += filled
        beta = np.where(filled, 0.0, self.beta[rows, block])
        solved = np.linalg.solve(part, np.concatenate([columns, beta[:, :, None]], axis=2))
        inverse = self.inverse - np.matmul(columns.transpose(0, 2, 1), solved[:, :, :-1])
        left = self.left.copy()
        left[rows, block] = False
        new = np.where(left, self.beta - np.matmul(beta[:, None, :], solved[:, :, :-1])[:, 0], 0.0)
        inverse *= left[:, :, None] & left[:, None, :]
        every = np.arange(size + 1)
        inverse[:, every, every] += ~left
        return Regressions(inverse, new, left)


def eliminate(moments: FeatureMoments, basis: Basis) -> EliminationPath:
    """Drop the candidate that contributes least, again and again, until none is left."""
    w, m = len(moments.gram), basis.candidates
    rows = np.arange(w)
    gone = np.zeros((w, m), dtype=np.bool_)
    share_at = np.zeros((w, m))
    evidence_at = np.zeros((w, m))
    freedom_at = np.zeros((w, m), dtype=np.int64)
    highest = np.zeros(w)
    fit = Regressions.of(moments)
    explained_by_all = np.maximum(fit.explained(moments), 1e-9)
    for _ in range(m):
        loss, freedom = fit.block_losses(basis.blocks)
        chance = ((1.0 - fit.explained(moments)) / (moments.n - fit.left.sum(axis=1)))[:, None]
        net = np.where(gone, np.inf, loss - freedom * chance)
        least = net.argmin(axis=1)
        highest = np.maximum(highest, net[rows, least])
        share_at[rows, least] = highest / explained_by_all
        evidence_at[rows, least] = (loss / chance)[rows, least]
        freedom_at[rows, least] = freedom[rows, least]
        gone[rows, least] = True
        fit = fit.withhold(basis.blocks[least])
    return EliminationPath(share_at, evidence_at, freedom_at)
