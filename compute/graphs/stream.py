"""Edges from rows that come in blocks and are seen once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from compute.graphs.invariance import check_environment
from compute.graphs.jobs import single_threaded_blas
from compute.graphs.level_pairs import Correlations, add_products, no_products
from compute.graphs.recovery import recover_from
from compute.graphs.regression_columns import (
    FEWEST_ROWS,
    canonical_columns,
    check_level,
    means_of_full,
    without_means,
)
from compute.graphs.result import EdgeRecovery

# Screening uses all rows; the closer look at each whole uses this many, drawn evenly.
MOST_ROWS_KEPT = 1_000_000
_CLIP = 4.0
# Blocks wait until there are this many rows, from which columns are scaled.
_ROWS_TO_SCALE = 1000


def recover_edges_stream(
    blocks: Iterable[tuple[Any, ...]], seed: int = 0, *, rows_kept: int = MOST_ROWS_KEPT
) -> EdgeRecovery:
    """Recover edges from blocks of rows, in one pass and in memory that no number of rows grows.

    Second moments are summed over all rows. The rows from which the parents of each whole are
    then settled are an even sample of ``rows_kept`` rows, or all where there are no more.

    Parameters
    ----------
    blocks
        Pairs ``(parts, wholes)`` or triples ``(parts, wholes, environment)`` of (b, p), (b, w) and
        (b,); dense or sparse, b free, p and w the same throughout.
    seed
        Seed of the sample of rows.
    rows_kept
        Size of the sample.

    Returns
    -------
    EdgeRecovery
        As from :func:`recover_edges`; ``n_rows`` is the size of the sample, of whose halves the
        stability tells. Memory is
        ``8 (p² + p w + w²)`` bytes for the moments, of all rows and of a half, and up to
        ``2 rows_kept`` rows.

    Raises
    ------
    ValueError
        As :func:`recover_edges`; also if the blocks disagree in shape or there is none.
    """
    rng = np.random.default_rng([seed, 5])
    moments: _Moments | None = None
    sample = _Sample(rows_kept)
    for number, block in enumerate(blocks):
        lower = sparse.csr_array(check_level(f"parts of block {number}", block[0]))
        upper = sparse.csr_array(check_level(f"wholes of block {number}", block[1]))
        if lower.shape[0] != upper.shape[0]:
            raise ValueError(
                f"block {number} has {lower.shape[0]} rows of parts and {upper.shape[0]} of "
                "wholes; row r of both must be the same sample."
            )
        if moments is None:
            moments = _Moments(lower, upper)
        moments.add(lower, upper, number)
        sample.add(lower, upper, block[2] if len(block) > 2 else None, rng.random(lower.shape[0]))
    if moments is None or moments.n < FEWEST_ROWS:
        rows = 0 if moments is None else moments.n
        raise ValueError(f"the blocks hold {rows} rows in all; edges need {FEWEST_ROWS} or more.")
    lower, upper, environment = sample.take()
    labels = None if environment is None else check_environment(environment, lower.shape[0])
    with single_threaded_blas:
        return recover_from(lower, upper, labels, moments.correlations())


class _Scaling(NamedTuple):
    """How the columns (q,) of a level are scaled, as its first rows tell.

    ``mean`` is taken off the columns that are ``full``, whose digits an offset would use up, and
    values are clipped at ``cap``, which becomes 1.
    """

    full: NDArray[np.bool_]
    mean: NDArray[np.float64]
    cap: NDArray[np.float64]

    @classmethod
    def of(cls, level: sparse.csr_array) -> _Scaling:
        columns = canonical_columns(level)
        full, mean = means_of_full(columns)
        columns = without_means(columns, full, mean)
        count = np.diff(columns.indptr)
        owner = np.repeat(np.arange(len(count)), count)
        power = np.bincount(owner, np.square(columns.data, dtype=np.float64), len(count))
        root = np.sqrt(power / np.maximum(count, 1))
        # A column that is still absent is clipped as the typical other.
        usual = float(np.median(root[root > 0])) if (root > 0).any() else 1.0
        return cls(full, mean, _CLIP * np.where(root > 0, root, usual))

    def apply(self, level: sparse.csr_array) -> sparse.csc_array:
        columns = without_means(canonical_columns(level), self.full, self.mean)
        owner = np.repeat(np.arange(len(self.cap)), np.diff(columns.indptr))
        data = np.clip(columns.data / self.cap[owner], -1.0, 1.0).astype(np.float32)
        return sparse.csc_array((data, columns.indices, columns.indptr), shape=columns.shape)


class _Moments:
    """Running sums of products of columns that are scaled by the first rows."""

    def __init__(self, lower: sparse.csr_array, upper: sparse.csr_array) -> None:
        self._widths = p, w = lower.shape[1], upper.shape[1]
        self.n = 0
        self._sums = no_products(p, w)
        self._totals = np.zeros(p), np.zeros(w)
        self._waiting: list[tuple[sparse.csr_array, sparse.csr_array]] = []
        self._scaling: tuple[_Scaling, _Scaling] | None = None

    def add(self, lower: sparse.csr_array, upper: sparse.csr_array, number: int) -> None:
        """Add a block."""
        for level, width in zip((lower, upper), self._widths):
            if level.shape[1] != width:
                raise ValueError(
                    f"block {number} has {level.shape[1]} columns where the first has {width}; "
                    "all blocks must have the same."
                )
        self._waiting.append((lower, upper))
        self.n += lower.shape[0]
        if self._scaling is not None or self.n >= _ROWS_TO_SCALE:
            self._sum_up()

    def _sum_up(self) -> None:
        lower, upper = (sparse.vstack(level, format="csr") for level in zip(*self._waiting))
        self._waiting = []
        if self._scaling is None:
            self._scaling = _Scaling.of(lower), _Scaling.of(upper)
        scaled = [each.apply(level) for each, level in zip(self._scaling, (lower, upper))]
        for columns, total in zip(scaled, self._totals):
            total += np.asarray(columns.sum(axis=0, dtype=np.float64)).ravel()
        add_products(self._sums, *scaled)

    def correlations(self) -> Correlations:
        """Return the correlations of all rows so far; the sums are used up."""
        if self._waiting:
            self._sum_up()
        means = [total / self.n for total in self._totals]
        squares = [np.diag(m).astype(np.float64) / self.n for m in self._sums[::2]]
        deviations = []
        for mean, square in zip(means, squares):
            variance = square - mean**2
            flat = variance <= 1e-6 * np.maximum(square, 1e-30)
            deviations.append(np.where(flat, np.inf, np.sqrt(np.where(flat, 1.0, variance))))
        for target, left, right in zip(self._sums, (0, 0, 1), (0, 1, 1)):
            row_mean, row_scale = means[left], 1.0 / deviations[left]
            column_mean = (means[right] / deviations[right]).astype(np.float32)
            target *= (1.0 / deviations[right] / self.n).astype(np.float32)
            for i in range(len(target)):
                target[i] *= np.float32(row_scale[i])
                target[i] -= np.float32(row_mean[i] * row_scale[i]) * column_mean
        return self._sums


class _Sample:
    """The rows with the smallest of random keys: an even sample of a stream of unknown length."""

    def __init__(self, size: int) -> None:
        if size < FEWEST_ROWS:
            raise ValueError(f"rows_kept={size} is too few; keep {FEWEST_ROWS} or more.")
        self._size = size
        self._keys = np.empty(0)
        self._held: list[tuple[sparse.csr_array, sparse.csr_array, NDArray[Any] | None]] = []

    def add(
        self,
        lower: sparse.csr_array,
        upper: sparse.csr_array,
        environment: ArrayLike | None,
        keys: NDArray[np.float64],
    ) -> None:
        """Add a block; once twice too many rows are held, the surplus goes."""
        labels = None if environment is None else np.asarray(environment)
        if labels is not None and labels.shape != keys.shape:
            raise ValueError(
                f"environment has shape {labels.shape} in a block of {len(keys)} rows; give one "
                "label a row."
            )
        self._held.append((lower, upper, labels))
        self._keys = np.concatenate([self._keys, keys])
        if len(self._keys) > 2 * self._size:
            self.take()

    def take(self) -> tuple[sparse.csr_array, sparse.csr_array, NDArray[Any] | None]:
        """Return the sample of all rows so far, in their order."""
        lower, upper, labels = zip(*self._held)
        given = [x for x in labels if x is not None]
        if given and len(given) < len(labels):
            raise ValueError("some blocks have an environment and others none; give all or none.")
        rows = np.arange(len(self._keys))
        if len(rows) > self._size:
            rows = np.sort(np.argpartition(self._keys, self._size)[: self._size])
        kept = (
            sparse.csr_array(sparse.vstack(lower, format="csr"))[rows],
            sparse.csr_array(sparse.vstack(upper, format="csr"))[rows],
            np.concatenate(given)[rows] if given else None,
        )
        self._held, self._keys = [kept], self._keys[rows]
        return kept
