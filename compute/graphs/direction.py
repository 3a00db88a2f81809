"""Which way the arrow runs: does the whole open or close the dependence of its parts?

Parts of a selection whole are (nearly) independent until one looks at the whole, which is their
collider: with the whole present, or absent, knowing one part tells about the other. Effects of a
common cause are dependent until one looks at the cause, which screens them off. So the dependence
of the parts given the whole is compared with their dependence without it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compute.graphs.result import Kind

# Present values of the whole, and absent ones that are graded too, are cut in up to this many
# strata, within which its linear trend is taken out: a cause of graded strength screens off only
# when its strength is held. Each stratum is judged alone, since what a collider opens in one can
# cancel what it opens in another.
_STRATA = 4
_ROWS_PER_STRATUM = 250
_FEWEST_ROWS = 30
# A cause leaves less than half of the dependence, a collider makes more than there was. What lies
# between is undecided: parts that are correlated anyway, or a whole that is both.
_CLOSED = 0.5
_OPENED = 1.0
_STANDARD_ERRORS = 4.0


def kind_of(
    values: NDArray[np.float32],
    whole: NDArray[np.float32],
    active: NDArray[np.bool_],
    sign: NDArray[np.int64],
    n: int,
) -> Kind:
    """Tell the kind of one whole.

    Parameters
    ----------
    values, whole, active
        (m, k) parts, (m,) whole, and (m,) whether the whole is active. Rows left out are those in
        which all of them are zero.
    sign
        (k,) sign of each part's effect: dependence is measured between what promotes the whole.
    n
        Number of rows, those left out included.
    """
    k = values.shape[1]
    if k < 2:
        return "undecided"
    parts = values.astype(np.float64) * sign
    pairs = np.triu_indices(k, 1)
    absent = n - len(parts)
    everything = _scatter(parts, None, absent)
    marginal = float(np.mean(_correlations(everything)[pairs]))
    given = []
    for scatter, rows in _given_whole(parts, whole.astype(np.float64), active, absent):
        r = _correlations(scatter)[pairs]
        chance = 1.0 / max(rows - 2, 1)
        dependence = np.sqrt(max(float(np.mean(r * r)) - chance, 0.0))
        given.append((dependence, np.sqrt(chance / len(r))))
    if not given:
        return "undecided"
    error = 1.0 / np.sqrt(n)
    opened = [d > _STANDARD_ERRORS * e and d > _OPENED * marginal for d, e in given]
    closed = [d < _CLOSED * marginal and e < _CLOSED * marginal / 2 for d, e in given]
    if any(opened):
        return "selection"
    if all(closed) and marginal > _STANDARD_ERRORS * error:
        return "common_cause"
    return "undecided"


def _given_whole(
    parts: NDArray[np.float64],
    whole: NDArray[np.float64],
    active: NDArray[np.bool_],
    absent: int,
) -> list[tuple[NDArray[np.float64], int]]:
    """Return the scatter and rows of every stratum of the whole that has rows enough."""
    out = []
    for present in (False, True):
        mine = active == present
        extra = 0 if present else absent
        count = int(mine.sum()) + extra
        if count < _FEWEST_ROWS:
            continue
        x, y = parts[mine], whole[mine]
        strata = min(_STRATA, count // _ROWS_PER_STRATUM)
        if extra or np.ptp(y) < 1e-6:
            out.append((_scatter(x, None, extra), count))
        elif strata < 2:
            out.append((_scatter(x, y, 0), count))
        else:
            at = (len(y) * np.arange(1, strata)) // strata
            stratum = np.searchsorted(np.unique(np.partition(y, at)[at]), y, side="right")
            for s in np.unique(stratum):
                inside = stratum == s
                if inside.sum() >= _FEWEST_ROWS:
                    out.append((_scatter(x[inside], y[inside], 0), int(inside.sum())))
    return out


def _scatter(
    x: NDArray[np.float64], trend: NDArray[np.float64] | None, absent: int
) -> NDArray[np.float64]:
    """Return (k, k) sums of squares about the mean and a linear trend; ``absent`` rows are 0."""
    n = len(x) + absent
    mean = x.sum(axis=0) / n
    scatter = x.T @ x - n * np.outer(mean, mean)
    if trend is not None:
        t = trend - trend.mean()
        power = float(t @ t)
        if power > 1e-9:
            slope = t @ x
            scatter = scatter - np.outer(slope, slope) / power
    return np.asarray(scatter)


def _correlations(scatter: NDArray[np.float64]) -> NDArray[np.float64]:
    variance = np.diag(scatter)
    varies = variance > 1e-9 * max(float(variance.max()), 1e-30)
    scale = np.where(varies, 1.0 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    return np.asarray(scatter * np.outer(scale, scale))
