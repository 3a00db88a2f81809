"""A streaming loader: block-shuffled batches of aligned rows, prefetched, resumable at any step."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from storage.activations import ActivationSet

__all__ = ["ActivationLoader", "kept_rows"]

_Array = npt.NDArray[Any]
_Batch = dict[str, _Array]
# Reads ahead, each by a thread of its own: one maps and copies while another checks.
_AHEAD = 2
# Bytes of a level that are read at once; few, so that memory does not depend on the shard's size.
_READ_BYTES = 4 << 20


class _Window(NamedTuple):
    """A piece of one shard: the unit of reading."""

    start: int
    stop: int
    kept: int


def kept_rows(
    activations: ActivationSet, max_norm: Mapping[str, float], start: int, stop: int
) -> npt.NDArray[np.bool_]:
    """Rows whose norm exceeds no level's bound, (stop − start,) bool.

    A row is aligned across levels, so one outlier (an attention sink, say) drops it from all.
    """
    kept = np.ones(stop - start, dtype=bool)
    for level, bound in max_norm.items():
        kept &= activations.norms(level, start, stop) <= bound
    return kept


class ActivationLoader:
    """An endless stream of batches; equal settings give equal batches.

    The store is shuffled globally at write time, so the loader reads whole shards in sequence,
    which is an order of magnitude faster than gathering rows. Each epoch permutes the shards, and
    the chunks inside a shard, anew. Batches run on across shard and epoch borders, so that every
    batch is full. With several workers each reads its own shards.

    Parameters
    ----------
    activations : ActivationSet
    levels : sequence of str, optional
        Levels to read; all by default.
    split : {"train", "held_out", "all"}
    batch_size : int
        Rows in each batch of each worker.
    seed : int
        Fixes the order of all epochs.
    max_norm : mapping of str to float, optional
        Rows above any of these norms are left out.
    rank, world_size : int
        This worker and the number of workers; the split must have at least as many shards.
    start : int
        The step to begin at: the stream continues exactly as one that began at 0 would from there.

    Raises
    ------
    ValueError
        If no row is left to read, or a number is out of range.
    """

    def __init__(
        self,
        activations: ActivationSet,
        *,
        levels: Sequence[str] | None = None,
        split: Literal["train", "held_out", "all"] = "train",
        batch_size: int,
        seed: int,
        max_norm: Mapping[str, float] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is not positive: use at least 1.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0 to {world_size - 1}.")
        self._set = activations
        self._levels = tuple(levels or activations.levels)
        self._batch_size = batch_size
        self._seed = seed
        self._max_norm = dict(max_norm or {})
        self._rank, self._world_size = rank, world_size
        self._start = start
        bounds = activations.plan.shard_bounds(activations.plan.split(split))
        self._windows = [_Window(a, b, self._count(a, b)) for a, b in bounds]
        self.rows = sum(window.kept for window in self._windows)
        if len(self._windows) < world_size or not self.rows:
            raise ValueError(
                f"split {split!r} has {self.rows} rows in {len(self._windows)} shards: too few for "
                f"{world_size} workers; use smaller shards or fewer workers."
            )

    def __iter__(self) -> Iterator[_Batch]:
        """Yield batches: level → (batch_size, width), in the stored float type."""
        pending: list[_Batch] = []
        have = 0
        with ThreadPoolExecutor(_AHEAD) as pool:
            for rows in self._prefetched(pool):
                size = len(rows[self._levels[0]])
                offset = 0
                while have + size - offset >= self._batch_size:
                    stop = offset + self._batch_size - have
                    pending.append({k: v[offset:stop] for k, v in rows.items()})
                    yield _join(pending)
                    pending, have, offset = [], 0, stop
                if offset < size:
                    pending.append({k: v[offset:] for k, v in rows.items()})
                    have += size - offset

    def _prefetched(self, pool: ThreadPoolExecutor) -> Iterator[_Batch]:
        reads = self._reads()
        ahead: deque[Future[_Batch]] = deque()
        try:
            while True:
                while len(ahead) <= _AHEAD:
                    ahead.append(pool.submit(self._read, *next(reads)))
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _reads(self) -> Iterator[tuple[bool, list[range], int]]:
        """What to read, one piece of work after the other: arguments of :meth:`_read`."""
        chunk = self._set.plan.chunk_rows
        widest = max(self._set.plan.column(f"levels/{level}").row_bytes for level in self._levels)
        # Only a local shard can be read in part without reading all of it.
        local = self._set.location.local_path is not None
        at_once = max(1, _READ_BYTES // (chunk * widest)) if local else sys.maxsize
        skip = self._start * self._batch_size
        for window, rng in self._order():
            if skip >= window.kept:
                skip -= window.kept
                continue
            n_chunks = -(-(window.stop - window.start) // chunk)
            starts = (window.start + chunk * rng.permutation(n_chunks)).tolist()
            pieces = [range(a, min(a + chunk, window.stop)) for a in starts]
            step = len(pieces) if skip else min(at_once, len(pieces))
            for i in range(0, len(pieces), step):
                dropped = window.kept < window.stop - window.start
                yield dropped, pieces[i : i + step], skip
            skip = 0

    def _order(self) -> Iterator[tuple[_Window, np.random.Generator]]:
        epoch = 0
        while True:
            rng = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            order = rng.permutation(len(self._windows))[self._rank :: self._world_size]
            for i in order:
                key = [self._seed, (epoch << 32) + int(i) + 1]
                yield self._windows[i], np.random.Generator(np.random.Philox(key=key))
            epoch += 1

    def _read(self, some_dropped: bool, pieces: list[range], skip: int) -> _Batch:
        """Rows of these pieces of one shard, without dropped rows and the first `skip` rows."""
        rows = {level: self._set.gather(level, pieces) for level in self._levels}
        if some_dropped:
            kept = np.concatenate(
                [kept_rows(self._set, self._max_norm, p.start, p.stop) for p in pieces]
            )
            rows = {level: values[kept] for level, values in rows.items()}
        return {level: values[skip:] for level, values in rows.items()}

    def _count(self, start: int, stop: int) -> int:
        if not self._max_norm:
            return stop - start
        return int(kept_rows(self._set, self._max_norm, start, stop).sum())


def _join(parts: list[_Batch]) -> _Batch:
    if len(parts) == 1:
        return parts[0]
    return {level: np.concatenate([part[level] for part in parts]) for level in parts[0]}
