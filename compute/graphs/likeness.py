"""Columns of a level that are nearly the same: twins among wholes, echoes among parts.

Two wholes that hardly differ explain one another better than their parts do. Held beside each
other in a regression, as siblings are, they would leave their parts nothing to explain, and both
would lose all edges. Between two parts that hardly differ no rows can decide.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Wholes whose |correlation| exceeds this are twins: more of one is the other than is its own.
TWIN = 0.9
# A part of which less than this share of variance is new given others adds nothing that could be
# estimated.
LEAST_NEW = 1e-3
_COLUMNS_AT_ONCE = 512


class Echoes(NamedTuple):
    """Parts that cannot be told from one before them.

    ``pairs`` is (e, 2) int: a part, and the echo that it stands for; ``barred`` is (p,) bool:
    whether a part is such an echo.
    """

    pairs: NDArray[np.int64]
    barred: NDArray[np.bool_]


def twins(wholes: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return (t, 2) int: the pairs of twins, by the (w, w) correlations of the wholes."""
    return _alike(wholes, TWIN)


def echoes(parts: NDArray[np.floating]) -> Echoes:
    """Find the echoes among parts, by their (p, p) correlations.

    The first of several stands for the others, so that all halves of the rows choose the same.
    """
    barred = np.zeros(len(parts), dtype=np.bool_)
    pairs = []
    for first, second in _alike(parts, np.sqrt(1.0 - LEAST_NEW)):
        if not barred[first] and not barred[second]:
            barred[second] = True
            pairs.append((first, second))
    return Echoes(np.asarray(pairs, dtype=np.int64).reshape(-1, 2), barred)


def partners(pairs: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Return column → the columns that it makes a pair with, from (t, 2) pairs."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    owner, start = np.unique(both[:, 0], return_index=True)
    return dict(zip(owner.tolist(), np.split(both[:, 1], start[1:])))


def _alike(corr: NDArray[np.floating], least: float) -> NDArray[np.int64]:
    """Return (t, 2) int: pairs of columns, first < second, correlated by more than ``least``."""
    found = [np.empty((0, 2), dtype=np.int64)]
    for a in range(0, len(corr), _COLUMNS_AT_ONCE):
        block = np.argwhere(np.abs(corr[a : a + _COLUMNS_AT_ONCE, a:]) > least) + a
        found.append(block[block[:, 0] < block[:, 1]])
    return np.concatenate(found)
