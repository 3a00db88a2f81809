"""Greedy coordinate ascent of single rows, compiled: the inner loop of :mod:`.coding`.

A step looks at all concepts of a row and changes one code. As operations on whole arrays every step
would stream a dozen of them through memory; row by row, all that a step touches stays in cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Reals = NDArray[np.floating]

# What makes the search for the best change a loop over vectors. Nothing in it is NaN; concepts that
# may not be active have an infinite log Bayes factor, so infinities are left as they are.
_VECTORS = {"nnan", "nsz", "arcp", "contract", "reassoc"}


@njit(nogil=True, error_model="numpy")
def ascend(
    projections: Floats,
    gram: Floats,
    noise: Floats,
    variance: Floats,
    mean: Floats,
    log_bayes_factor: Floats,
    z: Floats,
    log_posterior: NDArray[np.float64],
    tolerance: float,
    most_steps: int,
) -> None:
    """Raise the log posterior of n rows over c concepts until no change of one code raises it.

    Parameters
    ----------
    projections : (n, c) products of the rows with the directions
    gram : (c, c) products of the directions
    noise : (n,) or (1,) variance of the noise per coordinate
    variance : (c,) of active codes
    mean : (n, c) or (1, c), of an active code under the prior
    log_bayes_factor : (n, c) or (1, c), what activity adds before the row speaks; see
        :meth:`compute.selection.continuous.coding.SufficientStatistics.codes`
    z : (n, c) codes to start from; those found take their place
    log_posterior : (n,) is filled with the log posterior against that of no active concept
    tolerance : gain for which a code is not changed any more
    most_steps : changes per row
    """
    n, c = z.shape
    total, curve = np.empty_like(variance), np.empty_like(variance)
    slope, base, held = np.empty_like(variance), np.empty_like(variance), np.empty_like(variance)
    gains, left = np.empty_like(variance), np.empty_like(variance)
    for i in range(n):
        own = z[i]
        m, e = mean[min(i, len(mean) - 1)], log_bayes_factor[min(i, len(log_bayes_factor) - 1)]
        own_noise = noise[min(i, len(noise) - 1)]
        precision = np.float32(1.0) / own_noise
        for j in range(c):
            total[j] = variance[j] + own_noise
            curve[j] = 0.5 * precision - 0.5 / total[j]
            slope[j] = m[j] / total[j]
            base[j] = e[j] - m[j] * m[j] / (2 * total[j])
        _account(own, projections[i], m, e, gram, variance, own_noise, left, held)
        # Where active codes have just moved together, what one of them gains by itself is rounding.
        together = False
        for _ in range(most_steps):
            most = _gains(left, own, held, curve, slope, base, precision, gains)
            if together:
                most = _forget_moves(gains, left, own, curve, slope, base)
            if not most > tolerance:
                break
            best = 0
            while gains[best] < most:
                best += 1
            pull = left[best] + own[best]
            on = (curve[best] * pull + slope[best]) * pull + base[best]
            new = np.float32(0.0)
            if pull > 0 and on > 0:
                new = np.float32(
                    max((pull * variance[best] + m[best] * own_noise) / total[best], 0.0)
                )
                if own[best] > 0 and _together(own, left, m, gram, variance, own_noise):
                    _account(own, projections[i], m, e, gram, variance, own_noise, left, held)
                    together = True
                    continue
            together = False
            subtract(left, new - own[best], gram[best])
            own[best] = new
            held[best] = np.float32(0.0)
            if new > 0:
                held[best] = _held(new, m[best], e[best], variance[best], own_noise)
        log_posterior[i] = _log_posterior(own, projections[i], m, e, gram, variance, own_noise)


@njit(nogil=True, error_model="numpy", fastmath=_VECTORS)
def _gains(
    left: Floats,
    z: Floats,
    held: Floats,
    curve: Floats,
    slope: Floats,
    base: Floats,
    precision: np.float32,
    gains: Floats,
) -> np.float32:
    """What the best change of every code gains; returns the largest."""
    most = np.float32(0.0)
    for j in range(len(left)):
        pull = left[j] + z[j]
        on = (curve[j] * pull + slope[j]) * pull + base[j]
        on = on if (pull > 0) & (on > 0) else np.float32(0.0)
        gains[j] = on - (z[j] * pull * precision + held[j])
        most = max(most, gains[j])
    return most


@njit(nogil=True, error_model="numpy")
def _forget_moves(
    gains: Floats, left: Floats, z: Floats, curve: Floats, slope: Floats, base: Floats
) -> np.float32:
    """Leave out the gains of active codes that would stay active; returns the largest left."""
    most = np.float32(0.0)
    for j in range(len(gains)):
        if z[j] > 0:
            pull = left[j] + z[j]
            if pull > 0 and (curve[j] * pull + slope[j]) * pull + base[j] > 0:
                gains[j] = np.float32(0.0)
        most = max(most, gains[j])
    return most


@njit(nogil=True, error_model="numpy")
def _account(
    z: Floats,
    projections: Floats,
    mean: Floats,
    log_bayes_factor: Floats,
    gram: Floats,
    variance: Floats,
    noise: float,
    left: Floats,
    held: Floats,
) -> None:
    """Fill in what the codes of a row leave of its products, and what they add by themselves."""
    for j in range(len(z)):
        left[j] = projections[j]
        held[j] = np.float32(0.0)
    for j in range(len(z)):
        if z[j] > 0:
            held[j] = _held(z[j], mean[j], log_bayes_factor[j], variance[j], noise)
            subtract(left, z[j], gram[j])


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def subtract(left: Reals, value: float, row: Reals) -> None:
    """Take a multiple of a row of products from what is left of them."""
    for j in range(len(left)):
        left[j] -= value * row[j]


@njit(nogil=True, error_model="numpy")
def _held(
    value: np.float32,
    mean: np.float32,
    log_bayes_factor: np.float32,
    variance: np.float32,
    noise: float,
) -> np.float32:
    """What an active code adds to the log posterior, apart from its pull on the residual."""
    away = value - mean
    return np.float32(log_bayes_factor - value * value / (2 * noise) - away * away / (2 * variance))


@njit(nogil=True, error_model="numpy")
def _together(
    z: Floats, left: Floats, mean: Floats, gram: Floats, variance: Floats, noise: float
) -> bool:
    """Move all active codes of a row to the values that maximise its log posterior together.

    Only if all stay positive, as they must; tells whether they did. At the maximum the slope of the
    log posterior is zero; it is linear in the active codes.
    """
    active = np.flatnonzero(z > 0)
    a = len(active)
    lower = np.empty((a, a))
    step = np.empty(a)
    for i in range(a):
        j = active[i]
        step[i] = left[j] / noise - (z[j] - mean[j]) / variance[j]
        for k in range(i + 1):
            lower[i, k] = gram[j, active[k]] / noise
        lower[i, i] += 1.0 / variance[j]
    # Cholesky: the matrix is positive definite.
    for i in range(a):
        for k in range(i + 1):
            value = lower[i, k]
            for b in range(k):
                value -= lower[i, b] * lower[k, b]
            lower[i, k] = np.sqrt(value) if i == k else value / lower[k, k]
        for b in range(i):
            step[i] -= lower[i, b] * step[b]
        step[i] /= lower[i, i]
    for i in range(a - 1, -1, -1):
        for b in range(i + 1, a):
            step[i] -= lower[b, i] * step[b]
        step[i] /= lower[i, i]
    for i in range(a):
        if not z[active[i]] + step[i] > 0:
            return False
    for i in range(a):
        z[active[i]] += np.float32(step[i])
    return True


@njit(nogil=True, error_model="numpy")
def _log_posterior(
    z: Floats,
    projections: Floats,
    mean: Floats,
    log_bayes_factor: Floats,
    gram: Floats,
    variance: Floats,
    noise: float,
) -> float:
    active = np.flatnonzero(z > 0)
    log_posterior = 0.0
    for j in active:
        explained = 0.0
        for k in active:
            explained += np.float64(gram[j, k]) * z[k]
        away = np.float64(z[j] - mean[j])
        log_posterior += z[j] * (projections[j] - 0.5 * explained) / noise
        log_posterior += log_bayes_factor[j] - away * away / (2 * variance[j])
    return log_posterior
