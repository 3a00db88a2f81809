"""Statistics of stored rows that do not fit in memory: Dask views of the store's own arrays.

The arrays returned by :func:`rows` are for any Dask computation; the functions below are the ones
everybody needs, each a reduction whose memory does not grow with the number of rows. Dask's own
threaded scheduler runs them; ``dask.config.set(num_workers=…)`` says how wide.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from storage.tables.activations import ActivationSet
    from storage.tables.codes import CodeSet

__all__ = ["Moments", "coactivation", "moments", "rows"]

# Runs of shards that are reduced apart; at most their results wait, however many rows there are.
_RUNS = 64

Split = Literal["train", "held_out", "all"]


class Moments(NamedTuple):
    """Mean and covariance of a level's rows.

    Attributes
    ----------
    rows : int
        Rows that were counted.
    mean : array (d,) float64
    covariance : array (d, d) float64
        Divided by ``rows`` − 1.
    """

    rows: int
    mean: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]


def rows(activations: ActivationSet, level: str, split: Split = "all") -> Any:
    """A level's activations as a Dask array (n, d), one block a shard, float16 or float32.

    Every block is read through the store, so that a damaged shard raises CorruptShard where Zarr
    alone would give zeros, and bfloat16 arrives as float32.
    """
    import dask.array as da
    from dask.delayed import delayed

    width = activations.plan.column(f"levels/{level}").width
    dtype = np.float16 if activations.plan.dtype == "float16" else np.float32
    # A task per shard, not per chunk: the scheduler's own work would take longer than the reading.
    read = delayed(activations.read, pure=True, traverse=False)
    blocks = [
        da.from_delayed(  # type: ignore[no-untyped-call]
            read(level, start, stop), (stop - start, width), dtype
        )
        for start, stop in activations.plan.shard_bounds(activations.plan.split(split))
    ]
    if not blocks:
        return da.empty((0, width), dtype=dtype)
    return da.concatenate(blocks)  # type: ignore[no-untyped-call]


def moments(
    activations: ActivationSet,
    level: str,
    split: Split = "train",
    *,
    max_norm: Mapping[str, float] | None = None,
) -> Moments:
    """Mean and covariance of a level, in one pass, without the rows above any norm of `max_norm`.

    Each shard is centred on its own mean, and shards are merged pairwise by Chan, Golub and
    LeVeque's update ("Updating formulae and a pairwise algorithm for computing sample variances",
    1979), so that a mean far from zero costs no digits.

    Raises
    ------
    ValueError
        If fewer than two rows are left.
    """

    plan = activations.plan

    def of(start: int, stop: int) -> _Sums:
        from storage.tables.loader import kept_rows

        def sums(first: int, last: int) -> _Sums:
            x = activations.read(level, first, last)
            return _Sums.of(x[kept_rows(activations, max_norm, first, last)] if max_norm else x)

        # A chunk at a time, since float64 takes up to four times the room.
        step = plan.chunk_rows
        chunks = (sums(i, min(i + step, stop)) for i in range(start, stop, step))
        return functools.reduce(_Sums.merge, chunks)

    total: _Sums | None = _reduce(of, plan.shard_bounds(plan.split(split)), _Sums.merge)
    if total is None or total.rows < 2:
        raise ValueError(f"split {split!r} has fewer than two rows: a covariance needs two.")
    return Moments(total.rows, total.mean, total.scatter / (total.rows - 1))


def coactivation(
    codes: CodeSet, level: str, split: Split = "train", *, with_level: str | None = None
) -> csr_matrix:
    """In how many kept rows two concepts are active together, (n_concepts, n_concepts) int64 CSR.

    Entry (i, j) counts rows in which concept i of `level` and concept j of `with_level` (by
    default the same level) are both active; on the diagonal of one level stands how often each
    concept is active at all. Memory is that of the result, which is sparse where codes are.
    """
    other = with_level or level

    def of(start: int, stop: int) -> Any:
        kept = codes.kept(start, stop)
        left, right = (_active(codes.matrix(name, start, stop)[kept]) for name in (level, other))
        return (left.T @ right).tocsr()

    counted: csr_matrix | None = _reduce(
        of, codes.plan.shard_bounds(codes.plan.split(split)), operator.add
    )
    if counted is None:
        raise ValueError(f"split {split!r} has no rows.")
    return counted


class _Sums(NamedTuple):
    rows: int
    mean: npt.NDArray[np.float64]
    scatter: npt.NDArray[np.float64]

    @classmethod
    def of(cls, x: npt.NDArray[Any]) -> _Sums:
        x = x.astype(np.float64)
        mean = x.mean(axis=0) if len(x) else np.zeros(x.shape[1])
        x -= mean
        return cls(len(x), mean, x.T @ x)

    def merge(self, other: _Sums) -> _Sums:
        rows = self.rows + other.rows
        if not rows:
            return self
        shift = other.mean - self.mean
        weight = self.rows * other.rows / rows
        return _Sums(
            rows,
            self.mean + shift * (other.rows / rows),
            self.scatter + other.scatter + weight * np.outer(shift, shift),
        )


def _active(matrix: Any) -> Any:
    matrix.data = np.ones(len(matrix.data), dtype=np.int64)
    return matrix


def _reduce(of: Any, bounds: Any, merge: Any) -> Any:
    """Merge what `of` makes of each shard: within runs of shards, then run after run.

    None if there is no shard. The runs do not depend on the number of threads, so neither does the
    result.
    """
    from dask.delayed import delayed

    def run(shards: Any) -> Any:
        return functools.reduce(merge, (of(start, stop) for start, stop in shards))

    shards = list(bounds)
    length = max(1, math.ceil(len(shards) / _RUNS))
    runs = (shards[i : i + length] for i in range(0, len(shards), length))
    tasks = [delayed(run, traverse=False)(shards) for shards in runs]
    # One after another: in a tree of merges a result would wait on every floor.
    return functools.reduce(delayed(merge), tasks).compute(scheduler="threads") if tasks else None
