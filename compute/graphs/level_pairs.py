"""Looks at the rows of two levels: correlations over all of them, and single wholes in detail."""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from compute.graphs.jobs import in_parallel
from compute.graphs.regression_columns import DenseColumns, SparseColumns

_PRODUCT_COLUMNS = 512


class Correlations(NamedTuple):
    """Correlations of parts (p, p), of parts with wholes (p, w) and of wholes (w, w), float32."""

    parts: NDArray[np.float32]
    cross: NDArray[np.float32]
    wholes: NDArray[np.float32]


class Close(NamedTuple):
    """The rows of one whole: candidate parents (m, k), controls (m, c) and the whole (m,).

    Of sparse levels, rows in which all of them are zero are left out.
    """

    values: NDArray[np.float32]
    controls: NDArray[np.float32]
    whole: NDArray[np.float32]


class LevelPair(Protocol):
    """What recovery needs to see of the data."""

    n: int
    n_controls: int
    second_look: bool

    def set_apart(self, twins: dict[int, NDArray[np.int64]]) -> None:
        """Hold no whole beside its ``twins``, from now on."""

    def correlations(self) -> Correlations:
        """Correlations over all rows."""

    def close(self, whole: int, parts: NDArray[np.int64], siblings: NDArray[np.int64]) -> Close:
        """Return one whole with some parts and siblings."""

    def activity(
        self, whole: int, parts: NDArray[np.int64], close: Close
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the (m, k) activity of the parts and (m,) of the whole, of rows from ``close``."""

    def residual_shares(self, residuals: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return (p, len(residuals)) squared correlations of parts with (n,) residuals.

        Only asked for where ``second_look`` is true.
        """


class DenseLevelPair:
    """Two dense levels. The last control is the sum of all other wholes: what selection sees.

    Twins of a whole are left out of its sum.
    """

    def __init__(self, parts: DenseColumns, wholes: DenseColumns) -> None:
        self.parts, self.wholes = parts, wholes
        self.n = len(parts.values)
        self.n_controls = 1
        self.second_look = True
        self._total = wholes.values.sum(axis=1)
        self._twins: dict[int, NDArray[np.int64]] = {}

    def set_apart(self, twins: dict[int, NDArray[np.int64]]) -> None:
        """Leave the ``twins`` of a whole out of the sum of all others, from now on."""
        self._twins = twins

    def correlations(self) -> Correlations:
        """Correlations over all rows."""
        x, y = self.parts.values, self.wholes.values
        n = np.float32(self.n)
        return Correlations(*(_product(a, b) / n for a, b in ((x, x), (x, y), (y, y))))

    def close(self, whole: int, parts: NDArray[np.int64], siblings: NDArray[np.int64]) -> Close:
        """Return one whole with some parts and siblings, and the sum of all other wholes."""
        y = self.wholes.values
        controls = np.empty((self.n, len(siblings) + 1), dtype=np.float32)
        controls[:, :-1] = y[:, siblings]
        np.subtract(self._total, y[:, whole], out=controls[:, -1])
        if whole in self._twins:
            controls[:, -1] -= y[:, self._twins[whole]].sum(axis=1)
        return Close(self.parts.values[:, parts], controls, y[:, whole])

    def activity(
        self, whole: int, parts: NDArray[np.int64], close: Close
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the (n, k) activity of the parts and the (n,) activity of the whole."""
        return self.parts.active(parts, close.values), self.wholes.active(whole, close.whole)

    def residual_shares(self, residuals: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return (p, len(residuals)) squared correlations of parts with (n,) residuals."""
        x = self.parts.values
        if not residuals:
            return np.zeros((x.shape[1], 0), dtype=np.float32)
        # Residuals are in units of the whole's deviation and so are not scaled again.
        return np.asarray(np.square(x.T @ np.stack(residuals, axis=1) / np.float32(self.n)))


class SparseLevelPair:
    """Two sparse levels. Their residuals are not sparse, so there is no second look at them."""

    def __init__(self, parts: SparseColumns, wholes: SparseColumns) -> None:
        self.parts, self.wholes = parts, wholes
        self.n = parts.values.shape[0]
        self.n_controls = 0
        self.second_look = False
        self._scratch = threading.local()

    def set_apart(self, twins: dict[int, NDArray[np.int64]]) -> None:
        """Do nothing: there is no sum of all others."""

    def correlations(self) -> Correlations:
        """Correlations over all rows."""
        sums = no_products(self.parts.values.shape[1], self.wholes.values.shape[1])
        add_products(sums, self.parts.values, self.wholes.values)
        return centre(sums, self.parts.mean, self.wholes.mean, self.n)

    def close(self, whole: int, parts: NDArray[np.int64], siblings: NDArray[np.int64]) -> Close:
        """Return one whole with some parts and siblings, in the rows where any is present."""
        x, y = self.parts.values, self.wholes.values
        columns = [(x, int(i)) for i in parts] + [(y, int(i)) for i in (*siblings, whole)]
        table = self._gather(columns)
        k = len(parts)
        return Close(table[:, :k], table[:, k:-1], table[:, -1])

    def activity(
        self, whole: int, parts: NDArray[np.int64], close: Close
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return where the parts and the whole are present."""
        return self.parts.active(parts, close.values), self.wholes.active(whole, close.whole)

    def _gather(self, columns: list[tuple[sparse.csc_array, int]]) -> NDArray[np.float32]:
        spans = [(m.indptr[i], m.indptr[i + 1]) for m, i in columns]
        rows = [m.indices[a:b] for (m, _), (a, b) in zip(columns, spans)]
        every = np.concatenate(rows)
        # Writing each position into its row's slot leaves one winner per row: the distinct rows,
        # without sorting all of them.
        slot = self._slots()
        order = np.arange(len(every), dtype=np.int32)
        slot[every] = order
        distinct = np.sort(every[slot[every] == order])
        slot[distinct] = np.arange(len(distinct), dtype=np.int32)
        out = np.zeros((len(columns), len(distinct)), dtype=np.float32)
        for c, ((m, _), (a, b)) in enumerate(zip(columns, spans)):
            out[c, slot[rows[c]]] = m.data[a:b]
        return out.T

    def residual_shares(self, residuals: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Refuse: see the class."""
        raise NotImplementedError

    def _slots(self) -> NDArray[np.int32]:
        """Return this thread's scratch, one number per row."""
        if not hasattr(self._scratch, "slot"):
            self._scratch.slot = np.zeros(self.n, dtype=np.int32)
        slot: NDArray[np.int32] = self._scratch.slot
        return slot


def _product(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    starts = range(0, left.shape[1], _PRODUCT_COLUMNS)
    return np.concatenate(
        in_parallel(lambda a: left[:, a : a + _PRODUCT_COLUMNS].T @ right, starts)
    )


def no_products(p: int, w: int) -> Correlations:
    """Sums of no rows yet, for :func:`add_products`."""
    return Correlations(
        np.zeros((p, p), np.float32), np.zeros((p, w), np.float32), np.zeros((w, w), np.float32)
    )


def add_products(
    sums: Correlations,
    parts: sparse.csr_array | sparse.csc_array,
    wholes: sparse.csr_array | sparse.csc_array,
) -> None:
    """Add the products of all pairs of columns, summed over some rows, to ``sums``, in place.

    Only what both have in a row is touched: time is linear in rows and in the square of the
    non-zeros of a row.
    """
    part_rows, whole_rows = parts.T.tocsr(), wholes.T.tocsr()
    # One level row by row at a time: a million rows are a quarter of a gigabyte.
    _add_product(sums.parts, part_rows, parts.tocsr(), symmetric=True)
    by_row = wholes.tocsr()
    _add_product(sums.cross, part_rows, by_row, symmetric=False)
    _add_product(sums.wholes, whole_rows, by_row, symmetric=True)


def _add_product(
    target: NDArray[np.float32], left: sparse.csr_array, right: sparse.csr_array, *, symmetric: bool
) -> None:
    """Add ``left @ right``, (p, n) by (n, w), to ``target``."""

    def run(a: int) -> None:
        b = min(a + _PRODUCT_COLUMNS, left.shape[0])
        # Of a symmetric product the blocks right of the diagonal are enough.
        start = a if symmetric else 0
        block = (left[a:b] @ (right[:, start:] if start else right)).toarray()
        target[a:b, start:] += block
        if symmetric:
            target[b:, a:b] += block[:, b - a :].T

    in_parallel(run, range(0, left.shape[0], _PRODUCT_COLUMNS))


def centre(
    sums: Correlations, part_mean: NDArray[np.float64], whole_mean: NDArray[np.float64], n: int
) -> Correlations:
    """Turn sums of products of unit-variance columns into correlations, in place."""
    for target, left, right in (
        (sums.parts, part_mean, part_mean),
        (sums.cross, part_mean, whole_mean),
        (sums.wholes, whole_mean, whole_mean),
    ):
        target /= np.float32(n)
        right32 = right.astype(np.float32)
        for i, mean in enumerate(left.astype(np.float32)):
            if mean:
                target[i] -= mean * right32
    return sums
