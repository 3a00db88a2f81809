"""A streaming loader: block-shuffled batches of aligned rows, prefetched, resumable at any step."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from storage.tables.activations import ActivationSet

__all__ = ["ActivationLoader", "kept_rows"]

_Array = npt.NDArray[Any]
_Batch = dict[str, _Array]
# Remote reads ahead, each by a thread of its own.
_AHEAD = 2
# Bytes of a level that are read at once; few, so that they stay in the cache of the processor, and
# that memory does not depend on the shard's size.
_READ_BYTES = 2 << 20


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
        self._local = activations.location.local_path is not None
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
                # Its memory, still in the processor's cache, serves the next read.
                del rows

    def _prefetched(self, pool: ThreadPoolExecutor) -> Iterator[_Batch]:
        reads = self._reads(pool)
        if self._local:
            # A local shard is read by the consumer: handing rows from thread to thread costs more
            # than copying them does. The kernel meanwhile fetches the next shard from the disk.
            yield from itertools.starmap(self._read, reads)
            return
        ahead: deque[Future[_Batch]] = deque()
        try:
            while True:
                while len(ahead) <= _AHEAD:
                    ahead.append(pool.submit(self._read, *next(reads)))
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _reads(self, pool: ThreadPoolExecutor) -> Iterator[tuple[bool, list[range], int]]:
        """What to read, one piece of work after the other: arguments of :meth:`_read`."""
        widest = max(self._set.plan.column(f"levels/{level}").row_bytes for level in self._levels)
        chunk = self._set.plan.chunk_rows
        # Only a local shard can be read in part without reading all of it.
        chunks = max(1, _READ_BYTES // (chunk * widest)) if self._local else sys.maxsize
        # Reads of whole batches, as long as no row is dropped: such a batch is read in place. Of
        # few rows, no more epochs are gathered at once than a batch takes.
        rows = self._batch_size * max(1, min(_READ_BYTES // widest, self.rows) // self._batch_size)
        skip = self._start * self._batch_size
        waiting: list[range] = []
        held = 0
        for (window, starts), (following, _) in itertools.pairwise(self._order()):
            if skip >= window.kept:
                skip -= window.kept
                continue
            for level in self._levels:
                fetch = self._set.prefetch(level, following.start)
                if fetch is not None:
                    pool.submit(fetch)
            pieces = [range(a, min(a + chunk, window.stop)) for a in starts]
            dropped = window.kept < window.stop - window.start
            if self._local and not dropped:
                more = _split(pieces, skip)[1]
                waiting += more
                held += sum(map(len, more))
                while held >= rows:
                    read, waiting = _split(waiting, rows)
                    held -= rows
                    yield False, read, 0
            else:
                if waiting:
                    yield False, waiting, 0
                    waiting, held = [], 0
                step = len(pieces) if skip else min(chunks, len(pieces))
                for i in range(0, len(pieces), step):
                    yield dropped, pieces[i : i + step], skip
            skip = 0

    def _order(self) -> Iterator[tuple[_Window, list[int]]]:
        """Windows, each with the first rows of its chunks, in the order of reading."""
        chunk = self._set.plan.chunk_rows
        epoch = 0
        while True:
            common = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            order = common.permutation(len(self._windows))[self._rank :: self._world_size]
            key = [self._seed, ((self._rank + 1) << 32) + epoch]
            own = np.random.Generator(np.random.Philox(key=key))
            for i in order.tolist():
                window = self._windows[i]
                n_chunks = -(-(window.stop - window.start) // chunk)
                yield window, (window.start + chunk * own.permutation(n_chunks)).tolist()
            epoch += 1

    def _read(self, some_dropped: bool, pieces: list[range], skip: int) -> _Batch:
        """Rows of these pieces, without dropped rows and the first `skip` rows."""
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


def _split(pieces: list[range], rows: int) -> tuple[list[range], list[range]]:
    """The first so many rows, and the rest."""
    for i, piece in enumerate(pieces):
        if len(piece) > rows:
            cut = [piece[:rows]] if rows else []
            return pieces[:i] + cut, [piece[rows:], *pieces[i + 1 :]]
        rows -= len(piece)
    return pieces, []
