"""How the parents of a whole combine.

Read from one table: for every pattern of active parents, in how many rows it occurs and in how
many of them the whole is active.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compute.graphs.result import Form

# A simpler form is kept unless the next explains this much more of the whole's activity.
_FORM_MARGIN = 0.01
# With more parents than this the ways to group them are too many to try.
_MOST_GROUPED = 8
# Up to here all patterns are counted, which is faster than finding those that occur.
_MOST_COUNTED = 12


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
    if parts.shape[1] == 1:
        return "single"
    table = _Table.of(parts, whole, sign, n)
    best: tuple[Form, float] = ("sum-threshold", -1.0)
    for form, fit in (*_gate_fits(table), ("sum-threshold", _best_weighted_sum(table))):
        if fit > best[1] + _FORM_MARGIN:
            best = (form, fit)
    return best[0]


class _Table(NamedTuple):
    """The patterns of active parts that occur.

    ``bits`` is (t, k), inhibiting parts turned over; ``weight`` (t,) the share of rows that have
    the pattern, and ``rate`` (t,) the share of these in which the whole is active.
    """

    bits: NDArray[np.bool_]
    weight: NDArray[np.float64]
    rate: NDArray[np.float64]

    @classmethod
    def of(
        cls, parts: NDArray[np.bool_], whole: NDArray[np.bool_], sign: NDArray[np.int64], n: int
    ) -> _Table:
        k = parts.shape[1]
        if k <= _MOST_COUNTED:
            code = parts.astype(np.int64) @ (1 << np.arange(k))
            count = np.bincount(2 * code + whole, minlength=2 << k).reshape(-1, 2).astype(float)
            count[0, 0] += n - len(parts)
            occurs = count.any(axis=1)
            bits, count = _bits(k)[occurs], count[occurs]
        else:
            # One row more, of which nothing is active, stands for those that were left out.
            padded = np.vstack([parts, np.zeros((1, k), np.bool_)])
            packed = np.ascontiguousarray(np.packbits(padded, axis=1))
            rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
            kept, where = np.unique(rows, return_inverse=True)
            count = np.zeros((len(kept), 2))
            np.add.at(count, (where[:-1], whole.astype(np.int64)), 1.0)
            count[where[-1], 0] += n - len(parts)
            unpacked = np.frombuffer(kept.tobytes(), dtype=np.uint8).reshape(len(kept), -1)
            bits = np.unpackbits(unpacked, axis=1, count=k).astype(np.bool_)
        total = count.sum(axis=1)
        return cls(bits ^ (sign < 0), total / n, count[:, 1] / np.maximum(total, 1.0))


def _bits(k: int) -> NDArray[np.bool_]:
    return ((np.arange(1 << k)[:, None] >> np.arange(k)) & 1).astype(np.bool_)


def _gate_fits(table: _Table) -> Iterator[tuple[Form, float]]:
    """Yield forms, simplest first, each with the R² of its best gate."""
    k = table.bits.shape[1]
    if k <= _MOST_GROUPED:
        code = table.bits @ (1 << np.arange(k))
        for form, gates in _gates(k):
            yield form, float(_r_squared(gates[code], table).max(initial=0.0))
        return
    count = table.bits.sum(axis=1)
    thresholds = np.arange(2, k)
    yield "and", float(_r_squared((count == k)[:, None], table)[0])
    yield "or", float(_r_squared((count > 0)[:, None], table)[0])
    yield "sum-threshold", float(_r_squared(count[:, None] >= thresholds, table).max())


@cache
def _gates(k: int) -> tuple[tuple[Form, NDArray[np.float32]], ...]:
    """Return forms, simplest first, each with the (2^k, gates) truth tables of few parts."""
    bits = _bits(k)
    count = bits.sum(axis=1)
    tables: dict[Form, list[NDArray[np.bool_]]] = {
        "and": [count == k],
        "or": [count > 0],
        "sum-threshold": [count >= least for least in range(2, k)],
        "and-of-ors": [],
        "mixed": [],
    }
    for chosen in range(1, (1 << k) - 1):
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


def _best_weighted_sum(table: _Table) -> float:
    """Return the R² of the best threshold of the best linear fit to the whole's rate.

    It is tried last, because uneven weights can imitate most other gates.
    """
    root = np.sqrt(table.weight)
    design = np.column_stack([np.ones(len(root)), table.bits]) * root[:, None]
    weights = np.linalg.lstsq(design, table.rate * root, rcond=None)[0][1:]
    index = np.round(table.bits @ weights, 9)
    order = np.argsort(index)
    first = np.flatnonzero(np.diff(index[order])) + 1
    if not len(first):
        return 0.0
    # A threshold's gate is open for all patterns from one on: sums from the end.
    weight, rate = table.weight[order], table.rate[order]
    mean = weight @ rate
    share = np.cumsum(weight[::-1])[::-1][first]
    opened = np.cumsum((weight * (rate - mean))[::-1])[::-1][first]
    variance = (share - share**2) * (weight @ (rate - mean) ** 2)
    return float((opened**2 / np.maximum(variance, 1e-30)).max())


def _r_squared(gates: NDArray[Any], table: _Table) -> NDArray[np.float64]:
    weight, rate = table.weight, table.rate
    mean, centred = weight @ rate, weight * (rate - weight @ rate)
    share = weight @ gates
    variance = (share - share**2) * (weight @ (rate - mean) ** 2)
    return np.asarray((centred @ gates) ** 2 / np.maximum(variance, 1e-30))
