"""Looks at the rows of two levels: correlations over all of them, and single wholes in detail."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from compute.graphs.columns import DenseColumns, SparseColumns

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


class Rows(Protocol):
    """What recovery needs to see of the data."""

    n: int
    n_controls: int

    def correlations(self) -> Correlations:
        """Correlations over all rows."""

    def close(self, whole: int, parts: NDArray[np.int64], siblings: NDArray[np.int64]) -> Close:
        """Return one whole with some parts and siblings."""

    def activity(
        self, whole: int, parts: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the (m, k) activity of some parts and the (m,) activity of one whole."""

    def residual_shares(self, residuals: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return (p, len(residuals)) squared correlations of parts with (m,) residuals."""


class DenseRows:
    """Two dense levels. The last control is the sum of all other wholes: what selection sees."""

    def __init__(self, parts: DenseColumns, wholes: DenseColumns) -> None:
        self.parts, self.wholes = parts, wholes
        self.n = len(parts.values)
        self.n_controls = 1
        self._total = wholes.values.sum(axis=1)

    def correlations(self) -> Correlations:
        """Correlations over all rows."""
        x, y = self.parts.values, self.wholes.values
        return Correlations(x.T @ x / self.n, x.T @ y / self.n, y.T @ y / self.n)

    def close(self, whole: int, parts: NDArray[np.int64], siblings: NDArray[np.int64]) -> Close:
        """Return one whole with some parts and siblings, and the sum of all other wholes."""
        y = self.wholes.values
        controls = np.empty((self.n, len(siblings) + 1), dtype=np.float32)
        controls[:, :-1] = y[:, siblings]
        np.subtract(self._total, y[:, whole], out=controls[:, -1])
        return Close(self.parts.values[:, parts], controls, y[:, whole])

    def activity(
        self, whole: int, parts: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the (n, k) activity of some parts and the (n,) activity of one whole."""
        return self.parts.active(parts), self.wholes.active(np.asarray([whole]))[:, 0]

    def residual_shares(self, residuals: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return (p, len(residuals)) squared correlations of parts with (n,) residuals."""
        x = self.parts.values
        if not residuals:
            return np.zeros((x.shape[1], 0), dtype=np.float32)
        # Residuals are in units of the whole's deviation and so are not scaled again.
        return np.square(x.T @ np.stack(residuals, axis=1) / np.float32(self.n))


class SparseRows:
    """Two sparse levels."""

    def __init__(self, parts: SparseColumns, wholes: SparseColumns) -> None:
        self.parts, self.wholes = parts, wholes
        self.n = parts.values.shape[0]
        self.n_controls = 0
        self._slot = np.zeros(self.n, dtype=np.int32)

    def correlations(self) -> Correlations:
        """Correlations over all rows."""
        return Correlations(
            self._correlate(self.parts, self.parts),
            self._correlate(self.parts, self.wholes),
            self._correlate(self.wholes, self.wholes),
        )

    def close(self, whole: int, parts: NDArray[np.int64], siblings: NDArray[np.int64]) -> Close:
        """Return one whole with some parts and siblings, in the rows where any is present."""
        x, y = self.parts.values, self.wholes.values
        columns = [(x, int(i)) for i in parts] + [(y, int(i)) for i in (*siblings, whole)]
        table = self._gather(columns)
        k = len(parts)
        return Close(table[:, :k], table[:, k:-1], table[:, -1])

    def activity(
        self, whole: int, parts: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the activity of some parts and of one whole where any of them is present."""
        x, y = self.parts.values, self.wholes.values
        table = self._gather([(x, int(i)) for i in parts] + [(y, whole)]) != 0
        return table[:, :-1], table[:, -1]

    def _gather(self, columns: list[tuple[sparse.csc_array, int]]) -> NDArray[np.float32]:
        spans = [(m.indptr[i], m.indptr[i + 1]) for m, i in columns]
        rows = [m.indices[a:b] for (m, _), (a, b) in zip(columns, spans)]
        every = np.concatenate(rows)
        # Writing each position into its row's slot leaves one winner per row: the distinct rows,
        # without sorting all of them.
        slot = self._slot
        order = np.arange(len(every), dtype=np.int32)
        slot[every] = order
        distinct = np.sort(every[slot[every] == order])
        slot[distinct] = np.arange(len(distinct), dtype=np.int32)
        out = np.zeros((len(columns), len(distinct)), dtype=np.float32)
        for c, ((m, _), (a, b)) in enumerate(zip(columns, spans)):
            out[c, slot[rows[c]]] = m.data[a:b]
        return out.T

    def _correlate(self, left: SparseColumns, right: SparseColumns) -> NDArray[np.float32]:
        out = np.empty((left.values.shape[1], right.values.shape[1]), dtype=np.float32)
        by_column = left.values.T
        right_rows = right.values.tocsr()
        for a in range(0, len(out), _PRODUCT_COLUMNS):
            b = min(a + _PRODUCT_COLUMNS, len(out))
            (by_column[a:b] @ right_rows).toarray(out=out[a:b])
        out /= np.float32(self.n)
        out -= np.outer(left.mean, right.mean).astype(np.float32)
        return out

    def residual_shares(self, residuals: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return zeros: sparse codes are screened on all their rows and get no second look."""
        return np.zeros((self.parts.values.shape[1], len(residuals)), dtype=np.float32)
