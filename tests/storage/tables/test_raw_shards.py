"""Raw shards: what Zarr wrote is read back, in any pieces; damage is named."""

import os

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec

from storage.tables.raw_shards import RawShard, empty

ROWS, CHUNK, WIDTH = 64, 8, 3
VALUES = np.arange(ROWS * WIDTH, dtype="<f4").reshape(ROWS, WIDTH)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("array")
    array = zarr.create_array(
        folder,
        shape=VALUES.shape,
        dtype="<f4",
        shards=VALUES.shape,
        chunks=(CHUNK, WIDTH),
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        filters=None,
        config={"write_empty_chunks": True},
    )
    array[:] = VALUES
    return folder / "c" / "0" / "0"


def opened(path):
    return RawShard(path, chunk_rows=CHUNK, row_bytes=4 * WIDTH, n_chunks=ROWS // CHUNK)


def copied(shard, pieces):
    out = np.empty((sum(map(len, pieces)), WIDTH), dtype="<f4")
    shard.copy(pieces, out)
    return out


pieces = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(1, ROWS)).map(
        lambda pair: range(pair[0], min(sum(pair), ROWS))
    ),
    max_size=6,
)


@settings(deadline=None)
@given(pieces)
def test_pieces_are_what_zarr_wrote(file, wanted):
    rows = [row for piece in wanted for row in piece]
    np.testing.assert_array_equal(copied(opened(file), wanted), VALUES[rows])


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_flipped_byte_is_noticed(file, tmp_path_factory, data):
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path_factory.mktemp("damaged") / "shard"
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=r"checksum|whole"):
        copied(opened(damaged), [range(ROWS)])


@pytest.mark.parametrize("kept", [0, 10, 400])
def test_a_short_file_is_refused(file, tmp_path, kept):
    (tmp_path / "short").write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"checksum|short"):
        copied(opened(tmp_path / "short"), [range(ROWS)])


def test_files_are_closed(file):
    shard = opened(file)
    before = len(os.listdir("/proc/self/fd"))
    del shard
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_memory_begins_at_a_page():
    for rows in (1, 1000):
        array = empty((rows, 3), np.dtype("<f2"))
        assert (array.shape, array.ctypes.data % 4096) == ((rows, 3), 0)


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="Linux only")
def test_a_cold_file_is_fetched(tmp_path):
    path, rows, width = tmp_path / "cold", 1024, 2048
    array = zarr.create_array(
        tmp_path / "array",
        data=np.random.default_rng(0).integers(0, 255, (rows, width)).astype("<f4"),
        shards=(rows, width),
        chunks=(rows // 8, width),
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        filters=None,
    )
    (tmp_path / "array" / "c" / "0" / "0").rename(path)
    shard = RawShard(path, chunk_rows=rows // 8, row_bytes=4 * width, n_chunks=8)
    assert shard.in_memory()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if shard.in_memory():
        pytest.skip("this file system keeps files in memory")
    shard.prefetch()
    shard.copy([range(rows)], np.empty(array.shape, dtype="<f4"))
    assert shard.in_memory()
