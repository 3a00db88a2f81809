"""Greedy coordinate ascent of single rows in which pairs of codes have terms of their own.

A row is ``x = z W + y U + noise`` with products ``y_t = z_first(t) z_second(t)`` of two codes, or
of one with itself. Given all other codes it is linear in one code, along a direction that depends
on those beside it, or quadratic where a term is in its square. :mod:`.ascent` does the same for
rows without terms, several times as fast.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from compute.selection.continuous.ascent import Floats, subtract

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]

# Newton steps towards the best value of a code with a term in its square.
_NEWTON = 6


class Terms(NamedTuple):
    """Pairs of concepts with a term (t,).

    ``own[begins[j] : begins[j + 1]]`` are the terms of concept j with others, which are named by
    ``other``; ``square`` (c,) is the term of a concept with itself, or -1.
    """

    first: Indices
    second: Indices
    begins: Indices
    own: Indices
    other: Indices
    square: Indices


class Row(NamedTuple):
    """What the search of a row keeps.

    ``shown`` (c + t,) are the products of the row with the directions of concepts and terms, and
    ``left`` those of what its ``features``, codes and their products, leave. ``mean`` and
    ``log_bayes_factor`` are (c,). ``at`` and ``weight`` hold one direction as a sum of features.
    """

    shown: Floats
    mean: Floats
    log_bayes_factor: Floats
    noise: float
    features: Doubles
    left: Doubles
    at: Indices
    weight: Doubles


def terms_of(first: Indices, second: Indices, c: int) -> Terms:
    """Pairs (t,) of ``c`` concepts, by concept."""
    apart = np.flatnonzero(first != second)
    alone = np.flatnonzero(first == second)
    concept = np.concatenate([first[apart], second[apart]])
    other = np.concatenate([second[apart], first[apart]])
    order = np.argsort(concept, kind="stable")
    begins = np.searchsorted(concept[order], np.arange(c + 1))
    square = np.full(c, -1)
    square[first[alone]] = alone
    return Terms(first, second, begins, np.tile(apart, 2)[order], other[order], square)


@njit(nogil=True, error_model="numpy")
def ascend_with_terms(
    projections: Floats,
    gram: Doubles,
    terms: Terms,
    noise: Floats,
    variance: Floats,
    mean: Floats,
    log_bayes_factor: Floats,
    z: Floats,
    log_posterior: Doubles,
    tolerance: float,
    most_steps: int,
) -> None:
    """Raise the log posterior of n rows until no change of one code raises it by more.

    Parameters
    ----------
    projections : (n, c + t) products of the rows with the directions of concepts and of terms
    gram : (c + t, c + t) products of these directions
    terms : which pairs of concepts they belong to
    noise, variance, mean, log_bayes_factor, z, log_posterior, tolerance, most_steps :
        as in :func:`compute.selection.continuous.ascent.ascend`
    """
    n, c = z.shape
    size = len(gram)
    features, left = np.empty(size), np.empty(size)
    at, weight = np.empty(size, np.int64), np.empty(size)
    own, moved = np.empty(c), np.empty(c)
    for i in range(n):
        own[:] = z[i]
        row = Row(
            projections[i],
            mean[min(i, len(mean) - 1)],
            log_bayes_factor[min(i, len(log_bayes_factor) - 1)],
            np.float64(noise[min(i, len(noise) - 1)]),
            features,
            left,
            at,
            weight,
        )
        now = _account(own, row, gram, terms, variance)
        for _ in range(most_steps):
            most, best, value = tolerance, -1, 0.0
            for j in range(c):
                new, gain = _change(j, own, row, gram, terms, variance)
                if gain > most:
                    most, best, value = gain, j, new
            if best < 0:
                break
            if own[best] > 0 and value > 0:
                # Where no code would rather turn on or off, active ones move together.
                moved[:] = own
                if _together(moved, row, gram, terms, variance):
                    then = _account(moved, row, gram, terms, variance)
                    if then > now + most:
                        own[:] = moved
                        now = then
                        continue
            own[best] = value
            now = _account(own, row, gram, terms, variance)
        z[i] = own
        log_posterior[i] = now


@njit(nogil=True, error_model="numpy")
def _account(z: Doubles, row: Row, gram: Doubles, terms: Terms, variance: Floats) -> float:
    """Fill in the features of codes, and what they leave of the row; returns the log posterior."""
    c, size = len(z), len(gram)
    for f in range(size):
        row.left[f] = row.shown[f]
        row.features[f] = z[f] if f < c else z[terms.first[f - c]] * z[terms.second[f - c]]
    for f in range(size):
        if row.features[f] > 0:
            subtract(row.left, row.features[f], gram[f])
    log_posterior = 0.0
    for f in range(size):
        log_posterior += row.features[f] * (row.shown[f] + row.left[f]) / (2 * row.noise)
    for j in range(c):
        if z[j] > 0:
            log_posterior += _own(z[j], row.mean[j], row.log_bayes_factor[j], variance[j])
    return log_posterior


@njit(nogil=True, error_model="numpy")
def _own(value: float, mean: float, log_bayes_factor: float, variance: float) -> float:
    """What an active code adds to the log posterior by itself."""
    return log_bayes_factor - (value - mean) ** 2 / (2 * variance)


@njit(nogil=True, error_model="numpy")
def _along(j: int, z: Doubles, row: Row, terms: Terms) -> int:
    """Fill in the direction of a code beside the others, its square left out; how many features."""
    row.at[0], row.weight[0] = j, 1.0
    size = 1
    for a in range(terms.begins[j], terms.begins[j + 1]):
        beside = z[terms.other[a]]
        if beside > 0:
            row.at[size], row.weight[size] = len(z) + terms.own[a], beside
            size += 1
    return size


@njit(nogil=True, error_model="numpy")
def _change(
    j: int, z: Doubles, row: Row, gram: Doubles, terms: Terms, variance: Floats
) -> tuple[float, float]:
    """The best value of a code with all others as they are, and what it gains."""
    size = _along(j, z, row, terms)
    value, noise = z[j], row.noise
    mean, log_bayes_factor, spread = row.mean[j], row.log_bayes_factor[j], variance[j]
    # Coefficients of the quartic in the value, over the noise, that the row's fit gains by it.
    a = q = b = d = u = 0.0
    for f in range(size):
        a += row.weight[f] * row.left[row.at[f]]
        for g in range(size):
            q += row.weight[f] * row.weight[g] * gram[row.at[f], row.at[g]]
    bends = terms.square[j] >= 0
    if bends:
        square = len(z) + terms.square[j]
        for f in range(size):
            d += row.weight[f] * gram[row.at[f], square]
        u = gram[square, square]
        b = row.left[square] + value * d + value * value * u
    a += value * q + value * value * d
    new = (a / noise + mean / spread) / (q / noise + 1 / spread)
    if bends:
        for _ in range(_NEWTON):
            slope = (a + new * (2 * b - q - new * (3 * d + 2 * new * u))) / noise
            slope -= (new - mean) / spread
            curve = (2 * b - q - new * (6 * d + 6 * new * u)) / noise - 1 / spread
            if curve >= 0:
                break
            new -= slope / curve
    old = 0.0
    if value > 0:
        old = _quartic(value, a, b, q, d, u) / noise
        old += _own(value, mean, log_bayes_factor, spread)
    on = -np.inf
    if new > 0:
        on = _quartic(new, a, b, q, d, u) / noise
        on += _own(new, mean, log_bayes_factor, spread)
    return (new, on - old) if on > 0 else (0.0, -old)


@njit(nogil=True, error_model="numpy")
def _quartic(v: float, a: float, b: float, q: float, d: float, u: float) -> float:
    """``a v + b v² - q v² / 2 - d v³ - u v⁴ / 2``."""
    return v * (a + v * (b - q / 2 - v * (d + v * u / 2)))


@njit(nogil=True, error_model="numpy")
def _together(z: Doubles, row: Row, gram: Doubles, terms: Terms, variance: Floats) -> bool:
    """Move all active codes of a row by a Gauss-Newton step; false if not all stay positive."""
    active = np.flatnonzero(z > 0)
    n = len(active)
    # Of hundreds of features a row has few, and only these change.
    own = np.flatnonzero(row.features > 0)
    place = np.zeros(len(gram), np.int64)
    place[own] = np.arange(len(own))
    slopes = np.zeros((n, len(own)))
    for i in range(n):
        j = active[i]
        for f in range(_along(j, z, row, terms)):
            slopes[i, place[row.at[f]]] = row.weight[f]
        if terms.square[j] >= 0:
            slopes[i, place[len(z) + terms.square[j]]] = 2 * z[j]
    matrix = slopes @ gram[own][:, own] @ slopes.T / row.noise
    step = slopes @ row.left[own] / row.noise
    for i in range(n):
        j = active[i]
        matrix[i, i] += 1 / variance[j]
        step[i] -= (z[j] - row.mean[j]) / variance[j]
    change = np.linalg.solve(matrix, step)
    for i in range(n):
        if not z[active[i]] + change[i] > 0:
            return False
    for i in range(n):
        z[active[i]] += change[i]
    return True
