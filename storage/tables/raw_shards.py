"""Reading raw Zarr shards on a local disk, each chunk straight to where it is wanted, and checked.

The codec pipelines read a file into one buffer, copy it for the checksum and copy it again into the
result. A raw chunk needs none of that: it is read once, from the page cache into the result, and
compared with its checksum there. Layout: the ``sharding_indexed`` codec of Zarr v3, index at the
end, whose entries are (offset, length) as little-endian uint64.
"""

from __future__ import annotations

import math
import os
import stat
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fastcrc import crc32

__all__ = ["RawShard", "empty"]

_CHECKSUM = 4
_PAGE = 4096
# The kernel reads no more than this ahead at one request.
_REQUEST = 1 << 20
# What is in memory is so in long runs: a byte of each says enough, and asking costs time.
_PROBE = 4 << 20
_ENTRY = np.dtype("<u8")


class RawShard:
    """One shard of an array, open for reading.

    Parameters
    ----------
    path : Path
        The shard's file: `n_chunks` raw chunks of `chunk_rows` rows, each with its CRC-32C.
    chunk_rows, row_bytes, n_chunks : int
        What the file holds.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no regular file, too short or too long, or a checksum is not that of its chunk.
    """

    def __init__(self, path: Path, *, chunk_rows: int, row_bytes: int, n_chunks: int) -> None:
        # Without O_NONBLOCK, a pipe would be waited for until somebody writes to it.
        self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        self._chunk_rows, self._row_bytes = chunk_rows, row_bytes
        index = np.empty(2 * n_chunks, dtype=_ENTRY)
        self._size = found.st_size
        begin = self._size - index.nbytes - _CHECKSUM
        if begin < 0:
            raise ValueError("the file is too short")
        if begin > n_chunks * (chunk_rows * row_bytes + _CHECKSUM):
            raise ValueError(f"the file is too long, with {self._size:,} bytes")
        self._read(begin, index.view(np.uint8), None)
        # The last shard may have fewer chunks; their entries say so by a length that is no length.
        whole = index[1::2] == chunk_rows * row_bytes + _CHECKSUM
        self._offsets = np.where(whole, index[::2], 0).tolist()
        self._whole = whole.tolist()

    def copy(self, pieces: Sequence[range], out: npt.NDArray[Any]) -> None:
        """Copy rows, piece after piece.

        Parameters
        ----------
        pieces : sequence of range
            Rows to copy, counted from the beginning of the shard.
        out : array (total rows, …)
            C-contiguous, in the stored type.

        Raises
        ------
        ValueError
            If the file is cut short, or a checksum is not that of its chunk.
        """
        flat = out.reshape(-1).view(np.uint8)
        rows, row_bytes = self._chunk_rows, self._row_bytes
        done = 0
        for piece in pieces:
            for chunk in range(piece.start // rows, -(-piece.stop // rows)):
                first = max(piece.start - chunk * rows, 0) * row_bytes
                last = min(piece.stop - chunk * rows, rows) * row_bytes
                wanted = flat[done : done + last - first]
                done += last - first
                if last - first == rows * row_bytes:
                    self._read(self._offsets[chunk], wanted, chunk)
                else:
                    whole = np.empty(rows * row_bytes, dtype=np.uint8)
                    self._read(self._offsets[chunk], whole, chunk)
                    wanted[:] = whole[first:last]

    def in_memory(self) -> bool:
        """Whether the file lies in the page cache, as far as the operating system can say."""
        if not hasattr(os, "RWF_NOWAIT"):
            return True
        byte = bytearray(1)
        try:
            for begin in range(0, self._size, _PROBE):
                os.preadv(self._file, [byte], begin, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            # A file system without this request.
            return True
        return True

    def prefetch(self) -> None:
        """Ask the operating system to fetch the file into its page cache."""
        for begin in range(0, self._size, _REQUEST):
            os.posix_fadvise(self._file, begin, _REQUEST, os.POSIX_FADV_WILLNEED)

    def _read(self, offset: int, content: npt.NDArray[Any], chunk: int | None) -> None:
        if chunk is not None and not self._whole[chunk]:
            raise ValueError(f"chunk {chunk} is not whole")
        checksum = bytearray(_CHECKSUM)
        length = os.preadv(self._file, [content.data, checksum], offset)
        # Checked at once, while the bytes are in the cache.
        expected = int.from_bytes(checksum, "little")
        if length < len(content) + _CHECKSUM or crc32.iscsi(content.data) != expected:
            name = "the index" if chunk is None else f"chunk {chunk}"
            raise ValueError(f"the checksum of {name} does not match")


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An uninitialised array that begins at a page.

    Chunks lie 4 bytes apart in a shard; where the destination is a few bytes ahead of the source,
    modulo a page, the processor takes each load to depend on the last store, and the kernel copies
    2.4 instead of 9.6 GB/s.
    """
    count = math.prod(shape) * dtype.itemsize
    raw = np.empty(count + _PAGE, dtype=np.uint8)
    begin = -raw.__array_interface__["data"][0] % _PAGE
    return raw[begin : begin + count].view(dtype).reshape(shape)
