"""The evidence of the edges of one whole, from one more look at its rows.

Strength, sign and a chi-squared that holds for rare and heavy-tailed codes, all from the quadratic
regression on the chosen parents and the sibling wholes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compute.graphs.elimination import RIDGE, Basis, FeatureMoments, standardise


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
    unexplained
        Share of the whole's variance that the parents leave.
    """

    strength: NDArray[np.float64]
    robust: NDArray[np.float64]
    freedom: NDArray[np.int64]
    sign: NDArray[np.int64]
    unexplained: float


def weigh(
    values: NDArray[np.float32],
    controls: NDArray[np.float32],
    whole: NDArray[np.float32],
    n: int,
    quadratic: bool,
) -> tuple[WholeEvidence, NDArray[np.float32]]:
    """Weigh the parents of one whole.

    Parameters
    ----------
    values, controls, whole
        (m, k), (m, c) and (m,) rows; parents that matter most first. Rows in which all are zero may
        be left out.
    n
        Number of rows, those left out included.
    quadratic
        Whether the basis has squares and products.

    Returns
    -------
    evidence : WholeEvidence
    residual : (m,) float32
        What the parents and siblings leave of the standardised whole.
    """
    k = values.shape[1]
    basis = Basis(k, controls.shape[1], quadratic)
    second = np.zeros((basis.size + 1, basis.size + 1))
    first = np.zeros(basis.size + 1)
    for features in basis.blocks_of_rows(values, controls, whole):
        second += features @ features.T
        first += features.sum(axis=1, dtype=np.float64)
    moments = standardise(second[None], first[None], n)

    stop = basis.size - basis.controls
    fit = _fit(moments, basis.size)
    alone = _fit(moments, stop)
    linear = _fit(moments, k)
    explained = float(np.clip(alone.beta @ moments.cross[0, :stop], 1e-9, 1.0))
    blocks = [own[own < basis.size] for own in basis.blocks]
    toward = np.stack([_towards(fit, own) for own in blocks], axis=1)
    loss = np.where(moments.live[0], moments.cross[0], 0.0) @ toward
    freedom = np.asarray([moments.live[0][own].sum() for own in blocks])
    strength = (loss - freedom * (1.0 - explained) / n) / explained
    rows = basis.blocks_of_rows(values, controls, whole)
    robust, residual = _scores(rows, moments, toward, fit.beta, loss)
    evidence = WholeEvidence(
        np.clip(strength, 1e-9, 1.0),
        robust,
        freedom,
        np.where(linear.beta < 0, -1, 1),
        float(np.clip(1.0 - explained, 0.0, 1.0)),
    )
    return evidence, residual


class _Regression(NamedTuple):
    inverse: NDArray[np.float64]
    beta: NDArray[np.float64]


def _fit(moments: FeatureMoments, size: int) -> _Regression:
    """Regress on the first ``size`` features."""
    live = moments.live[0, :size]
    gram = moments.gram[0, :size, :size] * (live[:, None] & live)
    gram[np.diag_indices(size)] = 1.0 + RIDGE
    inverse = np.asarray(np.linalg.inv(gram), dtype=np.float64)
    return _Regression(inverse, inverse @ np.where(live, moments.cross[0, :size], 0.0))


def _towards(fit: _Regression, own: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the combination of features that is all a block adds to what the others explain."""
    block = fit.inverse[own[:, None], own]
    return np.asarray(fit.inverse[:, own] @ np.linalg.solve(block, fit.beta[own]))


def _scores(
    blocks: Iterable[NDArray[np.float32]],
    moments: FeatureMoments,
    toward: NDArray[np.float64],
    beta: NDArray[np.float64],
    loss: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the heteroscedasticity-consistent chi-squared of every part, and the residual.

    The score of a row is what the part adds there times what the fit without the part leaves
    there: with the sum of scores over the root of their sum of squares, no part gets a chi-squared
    above the number of rows that carry it (White 1980).
    """
    scale, mean = moments.scale[0], moments.mean[0]
    maps = np.column_stack([toward, beta]) / scale[:-1, None]
    at_zero = mean[:-1] @ maps
    power, left = np.zeros(len(loss)), []
    for features in blocks:
        fitted = maps.T.astype(np.float32) @ features[:-1]
        fitted -= at_zero.astype(np.float32)[:, None]
        residual = (features[-1] - np.float32(mean[-1])) / np.float32(scale[-1])
        residual -= fitted[-1]
        score = fitted[:-1] * (residual + fitted[:-1])
        power += np.einsum("kn,kn->k", score, score, dtype=np.float64)
        left.append(residual)
    residuals = np.concatenate(left)
    # Rows that were left out, being all zero, have a score too.
    absent = at_zero[:-1] * (at_zero[:-1] - at_zero[-1] + mean[-1] / scale[-1])
    power += (moments.n - len(residuals)) * absent**2
    return np.square(moments.n * loss) / np.maximum(power, 1e-12), residuals
