"""How the parents of a whole combine.

Read from one table: for every pattern of active parents, in how many rows it occurs and in how
many of them the whole is active.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from compute.graphs.result import Form

# A simpler form is kept unless the next explains this much more of the whole's activity.
_FORM_MARGIN = 0.01


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
    code = parts.astype(np.int64) @ (1 << np.arange(k))
    table = np.bincount(2 * code + whole, minlength=2 << k).reshape(-1, 2).astype(np.float64)
    table[0, 0] += n - len(parts)
    bits = ((np.arange(1 << k)[:, None] >> np.arange(k)) & 1).astype(np.bool_)
    counts = table.sum(axis=1)
    rate = table[:, 1] / np.maximum(counts, 1.0)
    best: tuple[Form, float] = ("sum-threshold", -1.0)
    for form, gate in _gates(np.where(sign < 0, ~bits, bits), counts, rate):
        fit = _r_squared(gate.astype(np.float64), rate, counts)
        if fit > best[1] + _FORM_MARGIN:
            best = (form, fit)
    return best[0]


def _gates(
    bits: NDArray[np.bool_], counts: NDArray[np.float64], rate: NDArray[np.float64]
) -> Iterator[tuple[Form, NDArray[np.bool_]]]:
    k = bits.shape[1]
    yield "and", np.all(bits, axis=1)
    yield "or", np.any(bits, axis=1)
    for least in range(2, k):
        yield "sum-threshold", bits.sum(axis=1) >= least
    for chosen in range(1, (1 << k) - 1):
        group = ((chosen >> np.arange(k)) & 1).astype(bool)
        if group[0]:
            yield "and-of-ors", bits[:, group].any(axis=1) & bits[:, ~group].any(axis=1)
    for chosen in range(1, (1 << k) - 1):
        group = ((chosen >> np.arange(k)) & 1).astype(bool)
        for least in range(2, int(group.sum()) + 1):
            enough = bits[:, group].sum(axis=1) >= least
            yield "mixed", enough & bits[:, ~group].any(axis=1)
    # Last, because uneven weights can imitate most of the above. They are those of the best linear
    # fit to the whole's rate.
    design = np.column_stack([np.ones(len(bits)), bits]) * np.sqrt(counts)[:, None]
    weights = np.linalg.lstsq(design, rate * np.sqrt(counts), rcond=None)[0][1:]
    index = bits @ weights
    for bar in np.unique(np.round(index, 9))[1:]:
        yield "sum-threshold", index >= bar - 1e-9


def _r_squared(
    gate: NDArray[np.float64], rate: NDArray[np.float64], counts: NDArray[np.float64]
) -> float:
    weight = counts / counts.sum()
    x, y = gate - weight @ gate, rate - weight @ rate
    return float((weight @ (x * y)) ** 2 / max((weight @ (x * x)) * (weight @ (y * y)), 1e-30))
