"""The evidence of the edges of one whole, from one more look at its rows.

Strength, sign, stability over half-samples and a chi-squared that holds for rare and heavy-tailed
codes, all from the quadratic regression on the chosen parents and the sibling wholes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from compute.graphs.elimination import Basis, block_losses, standardise

# Rows are cut in this many blocks; every choice of half of them that holds block 0, and its
# complement, is a half-sample: complementary pairs, as in Shah & Samworth (2013).
_BLOCKS = 6
_HALVES = np.asarray(
    [
        [(b in half) == side for b in range(_BLOCKS)]
        for half in combinations(range(_BLOCKS), _BLOCKS // 2)
        if 0 in half
        for side in (True, False)
    ],
    dtype=np.float64,
)


@dataclass(frozen=True)
class WholeEvidence:
    """Evidence for the k chosen parents of one whole.

    Attributes
    ----------
    strength
        (k,) share of the variance explained by the parents that is lost without the part.
    robust
        (k,) chi-squared of that loss from the rows' own scores (heteroscedasticity-consistent).
    freedom
        (k,) its degrees of freedom.
    sign
        (k,) +1 or −1.
    halves
        (k, h) strength in each half-sample.
    unexplained
        Share of the whole's variance that the parents leave.
    half_chi2
        (k, h) its chi-squared.
    residual
        (m,) float32 what the parents and siblings leave of the standardised whole.
    """

    strength: NDArray[np.float64]
    robust: NDArray[np.float64]
    freedom: NDArray[np.int64]
    sign: NDArray[np.int64]
    halves: NDArray[np.float64]
    half_chi2: NDArray[np.float64]
    unexplained: float
    residual: NDArray[np.float32]


def weigh(
    values: NDArray[np.float32],
    controls: NDArray[np.float32],
    whole: NDArray[np.float32],
    n: int,
    quadratic: bool,
) -> WholeEvidence:
    """Weigh the parents of one whole.

    Parameters
    ----------
    values, controls, whole
        (m, k), (m, c) and (m,) rows. Rows in which all are zero may be left out.
    n
        Number of rows, those left out included.
    quadratic
        Whether the basis has squares and products.
    """
    k = values.shape[1]
    basis = Basis(k, controls.shape[1], quadratic)
    features = basis.features(values, controls, whole)
    m = features.shape[1]
    edges = np.linspace(0, m, _BLOCKS + 1).astype(int)
    pieces = [features[:, a:b] for a, b in pairwise(edges)]
    seconds = np.stack([piece @ piece.T for piece in pieces]).astype(np.float64)
    firsts = np.stack([piece.sum(axis=1, dtype=np.float64) for piece in pieces])
    moments = standardise(seconds.sum(axis=0)[None], firsts.sum(axis=0)[None], n)
    everything = np.ones((1, basis.size), dtype=np.bool_)
    loss, freedom, _ = block_losses(moments, everything, basis.blocks)
    alone = everything.copy()
    alone[:, basis.size - basis.controls :] = False
    _, _, by_parents = block_losses(moments, alone, basis.blocks)
    explained = max(float(by_parents[0]), 1e-9)

    half = standardise(np.tensordot(_HALVES, seconds, axes=1), _HALVES @ firsts, n // 2)
    keep = np.ones((len(_HALVES), basis.size), dtype=np.bool_)
    half_loss, half_freedom, half_explained = block_losses(half, keep, basis.blocks)
    chance = (1.0 - half_explained[:, None]) / (n / 2)
    halves = np.maximum(half_loss - half_freedom * chance, 0.0) / explained

    inverse, beta = _solve(moments.gram[0], moments.cross[0], moments.live[0])
    toward = np.stack(
        [
            inverse[:, own] @ np.linalg.solve(inverse[np.ix_(own, own)], beta[own])
            for own in basis.blocks
        ],
        axis=1,
    )
    scale, mean = moments.scale[0], moments.mean[0]
    maps = np.column_stack([toward, beta]) / scale[:-1, None]
    at_zero = mean[:-1] @ maps
    fitted = maps.T.astype(np.float32) @ features[:-1]
    fitted -= at_zero.astype(np.float32)[:, None]
    target = (features[-1] - np.float32(mean[-1])) / np.float32(scale[-1])
    residual = target - fitted[-1]
    score = fitted[:-1] * (residual + fitted[:-1])
    absent = at_zero[:-1] * (at_zero[:-1] - at_zero[-1] + mean[-1] / scale[-1])
    power = np.einsum("kn,kn->k", score, score, dtype=np.float64) + (n - m) * absent**2
    robust = np.square(n * loss[0]) / np.maximum(power, 1e-12)
    chance_all = (1.0 - float(by_parents[0])) / n
    strength = np.maximum(loss[0] - freedom[0] * chance_all, 1e-9) / explained
    slope = np.linalg.lstsq(moments.gram[0][:k, :k], moments.cross[0][:k], rcond=None)[0]
    return WholeEvidence(
        np.minimum(strength, 1.0),
        robust,
        freedom[0],
        np.where(slope < 0, -1, 1),
        halves.T,
        (half_loss / chance).T,
        float(np.clip(1.0 - by_parents[0], 0.0, 1.0)),
        residual,
    )


def _solve(
    gram: NDArray[np.float64], cross: NDArray[np.float64], live: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ridged = gram * np.outer(live, live)
    ridged[np.diag_indices_from(ridged)] = 1.0 + 1e-4
    inverse = np.asarray(np.linalg.inv(ridged), dtype=np.float64)
    return inverse, np.asarray(inverse @ np.where(live, cross, 0.0), dtype=np.float64)
