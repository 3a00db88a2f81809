"""Which parts may be parents of which whole: forward selection on second moments.

Forward selection from the correlation matrix alone (Efroymson's step-up, as orthogonal matching
pursuit) costs nothing per row, and conditioning each step on the parts already chosen keeps out the
many parts that are only correlated with a parent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compute.graphs.likeness import LEAST_NEW, TWIN

# Of more wholes than this only those most correlated with a whole are looked at as its siblings.
_LIKELY_SIBLINGS = 256


def forward_select(
    among: NDArray[np.floating],
    to_whole: NDArray[np.floating],
    steps: int,
    least: float,
    barred: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """Choose ``steps`` candidate parents for each whole.

    Parameters
    ----------
    among
        (p, p) correlations of the parts.
    to_whole
        (p, w) correlations of parts and wholes.
    steps
        Most candidates, at most p.
    least
        Selection ends when every whole has had two steps in a row that gain no more than this.
    barred
        (p,) bool: parts that are not to be chosen; at least ``steps`` others are left.

    Returns
    -------
    chosen : (w, m) int, m at most ``steps``
        Candidates in order of choice; distinct for each whole.
    gain : (w, m) float
        What each step added to the explained share, relative to what the steps before had left.
    """
    p, w = to_whole.shape
    rows = np.arange(w)
    chosen = np.zeros((w, steps), dtype=np.int64)
    partial = np.ascontiguousarray(to_whole.T)
    new = np.ones((w, p), dtype=partial.dtype)
    directions = np.zeros((w, steps, p), dtype=partial.dtype)
    taken = np.tile(barred, (w, 1))
    gains = np.zeros((w, steps), dtype=partial.dtype)
    left = np.ones(w, dtype=partial.dtype)
    for m in range(steps):
        gain = partial * partial / np.maximum(new, LEAST_NEW)
        gain[new < LEAST_NEW] = -1.0
        gain[taken] = -2.0
        best = gain.argmax(axis=1)
        chosen[:, m] = best
        taken[rows, best] = True
        gains[:, m] = np.maximum(gain[rows, best], 0.0) / np.maximum(left, 1e-6)
        left -= np.maximum(gain[rows, best], 0.0)
        direction = among[best]
        if m:
            weights = directions[rows, :m, best]
            direction = direction - np.matmul(weights[:, None, :], directions[:, :m])[:, 0]
        norm = np.sqrt(np.maximum(new[rows, best], LEAST_NEW))[:, None]
        direction = direction / norm
        step = partial[rows, best][:, None] / norm
        if m and (np.maximum(gains[:, m - 1], gains[:, m]) <= least).all():
            return chosen[:, : m + 1], gains[:, : m + 1]
        directions[:, m] = direction
        new -= direction * direction
        partial -= step * direction
    return chosen, gains


def pick_siblings(
    among: NDArray[np.floating],
    to_whole: NDArray[np.floating],
    wholes: NDArray[np.floating],
    chosen: NDArray[np.int64],
    group: NDArray[np.int64],
    count: int,
) -> NDArray[np.int64]:
    """Choose, for some wholes, the siblings most correlated with each given its candidates.

    A whole's twins are none of its siblings, and of siblings that are twins one is chosen.

    Parameters
    ----------
    among, to_whole
        As for :func:`forward_select`, over all w wholes.
    wholes
        (w, w) correlations of the wholes.
    chosen
        (g, m) candidates of the wholes of the group.
    group
        (g,) int: which wholes.
    count
        Siblings per whole, at most w − 1.

    Returns
    -------
    (g, count) int; -1, last, where fewer are left
    """
    if count == 0:
        return chosen[:, :0]
    rows = np.arange(len(group))[:, None]
    likely = np.broadcast_to(np.arange(len(wholes)), (len(group), len(wholes)))
    if len(wholes) > _LIKELY_SIBLINGS:
        size = np.abs(wholes[group])
        likely = np.argpartition(-size, _LIKELY_SIBLINGS - 1, axis=1)[:, :_LIKELY_SIBLINGS]
    m = chosen.shape[1]
    gram = among[chosen[:, :, None], chosen[:, None, :]] + 1e-3 * np.eye(m, dtype=among.dtype)
    cross = to_whole[chosen[:, :, None], likely[:, None, :]]
    inverse = np.linalg.inv(gram)
    left = np.maximum(1.0 - (cross * np.matmul(inverse, cross)).sum(axis=1), 1e-3)
    own = np.matmul(to_whole[chosen, group[:, None]][:, None, :], np.matmul(inverse, cross))[:, 0]
    score = np.square(wholes[group[:, None], likely] - own) / left
    picked = np.full((len(group), count), -1, dtype=np.int64)
    last = group[:, None]
    for s in range(count):
        score[(likely == last) | (np.abs(wholes[last, likely]) > TWIN)] = -1.0
        best = score.argmax(axis=1)[:, None]
        last = likely[rows, best]
        picked[:, s] = np.where(score[rows, best] >= 0, last, -1)[:, 0]
    return picked
