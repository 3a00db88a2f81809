"""Reading raw Zarr shards on a local disk through a memory map, each chunk checked as it is copied.

The codec pipelines read a file into one buffer, copy it for the checksum and copy it again into the
result. A raw chunk needs none of that: it is compared with its checksum and copied once, from the
page cache to where it is wanted. Layout: the ``sharding_indexed`` codec of Zarr v3, index at the
end, whose entries are (offset, length) as little-endian uint64.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

__all__ = ["copy_rows"]

_CHECKSUM = 4
_ENTRY = np.dtype("<u8")


def copy_rows(
    path: Path,
    pieces: Sequence[range],
    out: npt.NDArray[Any],
    *,
    chunk_rows: int,
    n_chunks: int,
) -> None:
    """Copy rows of one shard, piece after piece, into `out`.

    Parameters
    ----------
    path : Path
        The shard's file: `n_chunks` raw chunks of `chunk_rows` rows, each with its CRC-32C.
    pieces : sequence of range
        Rows to copy, counted from the beginning of the shard.
    out : array (total rows, …)
        C-contiguous, in the stored type.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is too short, or a checksum is not that of its chunk.
    """
    row_bytes = out.dtype.itemsize * int(np.prod(out.shape[1:]))
    chunk_bytes = chunk_rows * row_bytes
    flat = out.reshape(-1).view(np.uint8)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        index_bytes = 2 * _ENTRY.itemsize * n_chunks
        if size < index_bytes + _CHECKSUM:
            raise ValueError(f"the file has only {size} bytes")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, dtype=np.uint8)
    index = data[size - index_bytes - _CHECKSUM : size - _CHECKSUM].copy()
    _check(index, data[size - _CHECKSUM :], "the index")
    entries = index.view(_ENTRY).reshape(n_chunks, 2).tolist()
    done = 0
    for piece in pieces:
        for number in range(piece.start // chunk_rows, -(-piece.stop // chunk_rows)):
            offset, length = entries[number]
            if length != chunk_bytes + _CHECKSUM or offset + length > size:
                raise ValueError(f"chunk {number} is not whole")
            first = max(piece.start - number * chunk_rows, 0) * row_bytes
            last = min(piece.stop - number * chunk_rows, chunk_rows) * row_bytes
            wanted = flat[done : done + last - first]
            whole = wanted if len(wanted) == chunk_bytes else np.empty(chunk_bytes, dtype=np.uint8)
            # The copy is what is checked: it is in the cache, and copying lets other threads run.
            whole[:] = data[offset : offset + chunk_bytes]
            _check(whole, data[offset + chunk_bytes : offset + length], f"chunk {number}")
            if whole is not wanted:
                wanted[:] = whole[first:last]
            done += last - first


def _check(content: npt.NDArray[np.uint8], checksum: npt.NDArray[np.uint8], name: str) -> None:
    if google_crc32c.value(content) != int.from_bytes(checksum.tobytes(), "little"):
        raise ValueError(f"the checksum of {name} does not match")
