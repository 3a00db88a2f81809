"""How the parents of a whole combine.

Read from one table: for every pattern of active parents, in how many rows it occurs and in how
many of them the whole is active.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from compute.graphs.result import Form

# A simpler form is kept unless the next explains this much more of the whole's activity.
_FORM_MARGIN = 0.01
# With more parents than this the ways to group them are too many to try.
_MOST_GROUPED = 8


def form_of(
    parts: NDArray[np.bool_], whole: NDArray[np.bool_], sign: NDArray[np.int64], n: int
) -> Form:
    """Tell the form of one whole: the gate that explains its activity best, simpler gates first.

    Parameters
    ----------
    parts, whole
        (m, k) and (m,) activity; rows in which nothing is active may be left out.
    sign
        (k,) sign of each part's effect; an inhibiting part takes part by its absence.
    n
        Number of rows, those left out included.
    """
    k = parts.shape[1]
    if k == 1:
        return "single"
    powers = 1 << np.arange(k)
    code = parts.astype(np.int64) @ powers
    table = np.bincount(2 * code + whole, minlength=2 << k).reshape(-1, 2).astype(np.float64)
    table[0, 0] += n - len(parts)
    table = table[np.arange(1 << k) ^ int(powers[sign < 0].sum())]
    weight = table.sum(axis=1) / n
    rate = table[:, 1] / np.maximum(table.sum(axis=1), 1.0)
    best: tuple[Form, float] = ("sum-threshold", -1.0)
    for form, gates in (*_gates(k), ("sum-threshold", _weighted_sums(k, weight, rate))):
        fit = float(_r_squared(gates, rate, weight).max(initial=0.0))
        if fit > best[1] + _FORM_MARGIN:
            best = (form, fit)
    return best[0]


def _bits(k: int) -> NDArray[np.bool_]:
    return ((np.arange(1 << k)[:, None] >> np.arange(k)) & 1).astype(np.bool_)


@cache
def _gates(k: int) -> tuple[tuple[Form, NDArray[np.float32]], ...]:
    """Return forms, simplest first, each with its (2^k, gates) truth tables."""
    bits = _bits(k)
    count = bits.sum(axis=1)
    tables: dict[Form, list[NDArray[np.bool_]]] = {
        "and": [count == k],
        "or": [count > 0],
        "sum-threshold": [count >= least for least in range(2, k)],
        "and-of-ors": [],
        "mixed": [],
    }
    for chosen in range(1, (1 << k) - 1 if k <= _MOST_GROUPED else 1):
        group = _bits(k)[chosen]
        within, either = bits[:, group].sum(axis=1), bits[:, ~group].any(axis=1)
        if group[0]:
            tables["and-of-ors"].append((within > 0) & either)
        tables["mixed"] += [(within >= least) & either for least in range(2, group.sum() + 1)]
    return tuple(
        (form, np.stack(gates, axis=1).astype(np.float32))
        for form, gates in tables.items()
        if gates
    )


def _weighted_sums(
    k: int, weight: NDArray[np.float64], rate: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the thresholds of the best linear fit to the whole's rate.

    They are tried last, because uneven weights can imitate most other gates.
    """
    bits = _bits(k)
    root = np.sqrt(weight)
    design = np.column_stack([np.ones(len(bits)), bits]) * root[:, None]
    index = bits @ np.linalg.lstsq(design, rate * root, rcond=None)[0][1:]
    thresholds = np.unique(np.round(index[weight > 0], 9))[1:]
    return np.asarray(index[:, None] >= thresholds - 1e-9, dtype=np.float32)


def _r_squared(
    gates: NDArray[np.float32], rate: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    mean, centred = weight @ rate, weight * (rate - weight @ rate)
    share = weight @ gates
    variance = (share - share**2) * (weight @ (rate - mean) ** 2)
    return np.asarray((centred @ gates) ** 2 / np.maximum(variance, 1e-30))
