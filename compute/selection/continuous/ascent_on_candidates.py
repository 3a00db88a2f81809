"""Coordinate ascent of single rows among their candidates, compiled for the CPU.

The eager path of :mod:`.search` says what is computed; this one keeps all that a row needs in the
cache of one core.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compute.selection.continuous.compiled import compiled

Floats = NDArray[np.float32]
Reals = NDArray[np.float64]
Indices = NDArray[np.int64]

# What makes the search for the best change a loop over vectors; nothing in it is NaN.
_VECTORS = {"nnan", "nsz", "arcp", "contract", "reassoc"}
_NEVER = np.float32(-1e30)


@compiled(fastmath=_VECTORS)
def _gains(
    left: Floats, z: Floats, held: Floats, curve: Floats, slope: Floats, base: Floats, gains: Floats
) -> np.float32:
    """What the best change of each code gains, into ``gains``; returns the largest."""
    most = np.float32(0.0)
    for c in range(len(left)):
        pull = left[c] + z[c]
        on = (curve[c] * pull + slope[c]) * pull + base[c]
        on = on if (pull > 0) & (on > 0) else np.float32(0.0)
        gains[c] = on - (held[c] + z[c] * pull - np.float32(0.5) * z[c] * z[c])
        most = max(most, gains[c])
    return most


@compiled(fastmath={"contract"})
def _take(
    left: Floats, value: np.float32, j: int, index: Indices, gram: Floats, directions: Floats
) -> None:
    """Take what concept ``j`` adds with ``value`` off the pulls of a row's candidates."""
    if len(gram):
        row = gram[j]
        for e in range(len(left)):
            left[e] -= value * row[index[e]]
        return
    own = directions[j]
    for e in range(len(left)):
        other = directions[index[e]]
        product = np.float32(0.0)
        for i in range(len(own)):
            product += own[i] * other[i]
        left[e] -= value * product


@compiled()
def _ascend(
    left: Floats,
    z: Floats,
    held: Floats,
    curve: Floats,
    slope: Floats,
    base: Floats,
    variance: Floats,
    mean: Floats,
    index: Indices,
    gram: Floats,
    directions: Floats,
    gains: Floats,
    tolerance: float,
    steps: int,
) -> float:
    """Change the code that gains most, again and again; returns what was gained."""
    total = 0.0
    for _ in range(steps):
        most = _gains(left, z, held, curve, slope, base, gains)
        if not most > tolerance:
            break
        c = 0
        while gains[c] < most:
            c += 1
        total += most
        pull = left[c] + z[c]
        spread = variance[c] + np.float32(1.0)
        new = np.float32(0.0)
        if pull > 0 and (curve[c] * pull + slope[c]) * pull + base[c] > 0:
            new = max((pull * variance[c] + mean[c]) / spread, np.float32(0.0))
        _take(left, new - z[c], index[c], index, gram, directions)
        z[c] = new
        held[c] = np.float32(0.0)
        if new > 0:
            away = new - mean[c]
            held[c] = base[c] + mean[c] * mean[c] / (2 * spread) - away * away / (2 * variance[c])
    return total


@compiled(nogil=True)
def ascend_rows(
    pull: Floats,
    index: Indices,
    gram: Floats,
    directions: Floats,
    log_odds: Floats,
    mean: Floats,
    variance: Floats,
    z: Floats,
    score: Reals,
    losses: Reals,
    tolerance: float,
    steps: int,
    trial_steps: int,
) -> None:
    """Codes of n rows among C candidates each; see :func:`.search.search`.

    Parameters
    ----------
    pull, index : (n, C) products of the rows with their candidates, and which concepts these are
    gram : (K, K) products of the directions, or (0, 0): then taken from ``directions`` (K, d)
    log_odds, mean : (n, K) or (1, K)
    variance : (K,)
    z, score : (n, C) and (n,), filled
    losses : (K,), added to; with none, (0,), losses are not asked for
    """
    n, width = pull.shape
    work = np.empty((12, width), np.float32)
    left, own, held, gains = work[0], work[1], work[2], work[3]
    curve, slope, base, spread, middle = work[4], work[5], work[6], work[7], work[8]
    left_2, own_2, held_2 = work[9], work[10], work[11]
    for i in range(n):
        odds, means = log_odds[min(i, len(log_odds) - 1)], mean[min(i, len(mean) - 1)]
        for c in range(width):
            j = index[i, c]
            total = variance[j] + np.float32(1.0)
            left[c], own[c], held[c] = pull[i, c], np.float32(0.0), np.float32(0.0)
            spread[c], middle[c] = variance[j], means[j]
            curve[c] = np.float32(0.5) - np.float32(0.5) / total
            slope[c] = means[j] / total
            base[c] = odds[j] - np.float32(0.5) * np.log(total) - means[j] * means[j] / (2 * total)
        score[i] = _ascend(
            left, own, held, curve, slope, base, spread, middle, index[i], gram, directions, gains,
            tolerance, steps,
        )  # fmt: skip
        z[i] = own
        if not len(losses):
            continue
        for c in range(width):
            if not own[c] > 0:
                continue
            left_2[:], own_2[:], held_2[:] = left, own, held
            lost = held[c] + own[c] * (left[c] + own[c]) - np.float32(0.5) * own[c] * own[c]
            _take(left_2, -own[c], index[i, c], index[i], gram, directions)
            own_2[c], held_2[c] = np.float32(0.0), np.float32(0.0)
            kept, base[c] = base[c], _NEVER
            lost -= _ascend(
                left_2, own_2, held_2, curve, slope, base, spread, middle, index[i], gram,
                directions, gains, tolerance, trial_steps,
            )  # fmt: skip
            base[c] = kept
            losses[index[i, c]] += lost


@compiled(nogil=True)
def add_products(z: Floats, index: Indices, gram: Reals, sums: Reals) -> None:
    """Add the products of codes (n, C) to ``gram`` (K, K), the codes to ``sums`` (3, K).

    Sums are of rows in which a concept is active, of its code, and of its square.
    """
    n, width = z.shape
    active = np.empty(width, np.int64)
    for i in range(n):
        count = 0
        for c in range(width):
            if z[i, c] > 0:
                active[count] = c
                count += 1
        for p in range(count):
            j, value = index[i, active[p]], np.float64(z[i, active[p]])
            sums[0, j] += 1.0
            sums[1, j] += value
            sums[2, j] += value * value
            if len(gram):
                for q in range(count):
                    gram[j, index[i, active[q]]] += value * z[i, active[q]]
