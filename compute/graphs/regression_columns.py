"""Checks of the input, and levels made ready for regression: values of unit scale, and activity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

FEWEST_ROWS = 100

# A column with more zeros than this is zero-inflated: zero means "absent", anything else "present".
_ZERO_SHARE = 0.02
# Values beyond this many root-mean-squares of the present values are clipped, so that a handful of
# extreme rows cannot carry an edge alone.
_CLIP = 4.0
# Columns beyond this are scaled before they become float32, which holds the square of it.
_LARGEST = 1e15


@dataclass(frozen=True, slots=True)
class DenseColumns:
    """A level held as a dense matrix.

    Attributes
    ----------
    values
        (n, q) float32, centred, of unit variance; constant columns are all 0.
    above, below
        (q,) float32: a row is active where its value lies over ``above`` or under ``below``; a
        zero-inflated column is active where it is not zero, any other where it exceeds its mean.
    """

    values: NDArray[np.float32]
    above: NDArray[np.float32]
    below: NDArray[np.float32]

    def active(
        self, index: int | NDArray[np.int64], values: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Return the activity of values of some columns."""
        return np.asarray((values > self.above[index]) | (values < self.below[index]))


@dataclass(frozen=True, slots=True)
class SparseColumns:
    """A level held as sparse columns.

    Attributes
    ----------
    values
        (n, q) float32 CSC, of unit variance but not centred, so that absent stays zero.
    mean
        (q,) float64 means of ``values``.
    constant
        (q,) bool: whether a column does not vary; its values are dropped.
    full
        (q,) bool: whether a column is not zero-inflated. Such a one is centred, and a row is active
        where it exceeds the mean; elsewhere it is where it is not zero.
    """

    values: sparse.csc_array
    mean: NDArray[np.float64]
    constant: NDArray[np.bool_]
    full: NDArray[np.bool_]

    def active(
        self, index: int | NDArray[np.int64], values: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Return the activity of values of some columns."""
        return np.asarray(np.where(self.full[index], values > 0, values != 0))


def check_level(name: str, data: Any) -> Any:
    """Return ``data`` as a 2-d numpy array or CSR array of finite numbers, or refuse it.

    Raises
    ------
    ValueError
        If ``data`` is not 2-d, has no column, is not numeric, or holds NaN or infinity.
    """
    is_sparse = sparse.issparse(data)
    matrix: Any = sparse.csr_array(data) if is_sparse else np.asarray(data)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {matrix.shape}; give a matrix (rows, columns) with a column or more."
        )
    stored: NDArray[Any] = matrix.data if is_sparse else matrix
    if stored.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {stored.dtype} values; give floats, integers or booleans.")
    # The sum is finite unless an entry is not (or it overflows, which the full look then clears).
    if (
        stored.dtype.kind == "f"
        and not np.isfinite(stored.sum(dtype=np.float64))
        and not np.isfinite(stored).all()
    ):
        raise ValueError(f"{name} holds NaN or infinite values; drop or impute those rows first.")
    return matrix


def dense_columns(data: NDArray[Any]) -> DenseColumns:
    """Standardise a dense (n, q) matrix of numbers."""
    x = _as_float32(data)
    n = len(x)
    present = np.count_nonzero(x, axis=0)
    zero_inflated = ~is_full(present, n)
    mean = np.zeros(x.shape[1])
    for q in np.flatnonzero(~zero_inflated):
        mean[q], x[:, q] = centred(data[:, q])
    power = np.einsum("ij,ij->j", x, x)
    cap = _CLIP * np.sqrt(power / np.maximum(np.where(zero_inflated, present, n), 1))
    top, bottom = x.max(axis=0), x.min(axis=0)
    for q in np.flatnonzero((top > cap) | (-bottom > cap)):
        np.clip(x[:, q], -cap[q], cap[q], out=x[:, q])
    reach = np.abs(mean) + np.maximum(np.abs(top), np.abs(bottom))
    centre = x.mean(axis=0, dtype=np.float64)
    spread = np.sqrt(np.maximum(np.einsum("ij,ij->j", x, x) / n - centre**2, 0.0))
    constant = (top == bottom) | (spread <= _rounding(data.dtype) * reach)
    scale = np.where(constant, 1.0, spread)
    x -= centre.astype(np.float32)
    x *= np.where(constant, 0.0, 1.0 / scale).astype(np.float32)
    zero = np.where(constant, 0.0, -centre / scale)
    slack = 1e-5 * (1.0 + np.abs(zero))
    return DenseColumns(
        x,
        np.where(zero_inflated, zero + slack, 0.0).astype(np.float32),
        np.where(zero_inflated, zero - slack, -np.inf).astype(np.float32),
    )


def sparse_columns(data: Any) -> SparseColumns:
    """Bring a sparse (n, q) matrix of numbers to unit variance."""
    n, rounding = data.shape[0], _rounding(data.dtype)
    columns = canonical_columns(data)
    full, shift = means_of_full(columns)
    columns = without_means(columns, full, shift)
    counts = np.diff(columns.indptr)
    owner = np.repeat(np.arange(len(counts)), counts)
    values = columns.data
    size = np.abs(values)
    if size.max(initial=0.0) > _LARGEST or size.min(initial=1.0) < 1 / _LARGEST:
        largest = np.zeros(len(counts))
        np.maximum.at(largest, owner, size)
        values = values / np.where(largest > 0, largest, 1.0)[owner]
        shift = shift / np.where(largest > 0, largest, 1.0)
    columns = sparse.csc_array(
        (values.astype(np.float32), columns.indices, columns.indptr), shape=columns.shape
    )
    power = np.bincount(owner, np.square(columns.data, dtype=np.float64), len(counts))
    cap = _CLIP * np.sqrt(power / np.maximum(counts, 1)).astype(np.float32)
    np.clip(columns.data, -cap[owner], cap[owner], out=columns.data)
    mean = np.bincount(owner, columns.data, len(counts)) / n
    square = np.bincount(owner, np.square(columns.data, dtype=np.float64), len(counts)) / n
    variance = square - mean**2
    reach = square + np.square(shift)
    constant = variance <= np.maximum(1e-10 * square, rounding**2 * np.maximum(reach, 1e-30))
    scale = np.where(constant, 0.0, 1.0 / np.sqrt(np.where(constant, 1.0, variance)))
    columns.data *= scale.astype(np.float32)[owner]
    columns.eliminate_zeros()
    return SparseColumns(columns, mean * scale, constant, full)


def canonical_columns(data: Any) -> sparse.csc_array:
    """Return the columns of a sparse matrix, each value stored once and no zero, as a copy."""
    columns = sparse.csc_array(data, copy=True)
    columns.sum_duplicates()
    columns.eliminate_zeros()
    return columns


def is_full(present: NDArray[np.integer[Any]], n: int) -> NDArray[np.bool_]:
    """Whether columns with values in ``present`` of ``n`` rows are so everywhere, nearly."""
    return np.asarray(present >= (1.0 - _ZERO_SHARE) * n)


def means_of_full(columns: sparse.csc_array) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return (q,) which columns, without stored zeros, are full, and their means; 0 for others."""
    n = columns.shape[0]
    full = is_full(np.diff(columns.indptr), n)
    return full, np.where(full, columns.sum(axis=0, dtype=np.float64) / n, 0.0)


def without_means(
    columns: sparse.csc_array, full: NDArray[np.bool_], mean: NDArray[np.float64]
) -> sparse.csc_array:
    """Take the ``mean`` (q,) of the ``full`` (q,) columns away; they get a value in every row."""
    if not full.any():
        return columns
    lists: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for q in range(columns.shape[1]):
        kept = slice(columns.indptr[q], columns.indptr[q + 1])
        if full[q]:
            values = np.full(columns.shape[0], -mean[q])
            values[columns.indices[kept]] += columns.data[kept]
            lists.append((np.arange(columns.shape[0]), values))
        else:
            lists.append((columns.indices[kept], columns.data[kept]))
    ends = np.cumsum([0, *(len(rows) for rows, _ in lists)])
    rows, values = (np.concatenate(each) for each in zip(*lists))
    out = sparse.csc_array((values, rows, ends), shape=columns.shape)
    out.eliminate_zeros()
    return out


def centred(column: NDArray[Any]) -> tuple[float, NDArray[np.float32]]:
    """Return the mean of an (n,) column and what is left without it, in units float32 can square.

    The difference is taken in float64: of 1,000,000.3 float32 would keep 1,000,000.31.
    """
    values = column.astype(np.float64)
    largest = float(np.abs(values).max())
    if largest > _LARGEST or 0.0 < largest < 1 / _LARGEST:
        values /= largest
    mean = float(values.mean())
    return mean, (values - mean).astype(np.float32)


def _as_float32(data: NDArray[Any]) -> NDArray[np.float32]:
    """Copy to float32; columns whose squares it could not hold are brought to unit size first."""
    largest = np.maximum(np.abs(data.max(axis=0)), np.abs(data.min(axis=0))).astype(np.float64)
    extreme = (largest > 0) & ((largest > _LARGEST) | (largest < 1 / _LARGEST))
    if data.dtype.kind == "f" and extreme.any():
        data = data / np.where(extreme, largest, 1.0)
    return np.array(data, dtype=np.float32, order="C")


def _rounding(dtype: np.dtype[Any]) -> float:
    """Return the share of a column's size below which its spread may be what rounding left."""
    return 1e-6 if dtype.kind == "f" and dtype.itemsize <= 4 else 1e-12
