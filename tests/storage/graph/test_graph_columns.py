"""Parquet that somebody else has written: measured before it is decoded."""

from __future__ import annotations

import io
import tracemalloc
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storage.graph.graph_columns
from storage.graph.graph_columns import read_parquet


def written(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def test_numbers_texts_and_lists_come_as_they_were_written():
    table = pa.table(
        {
            "n": [1, None, 3],
            "s": ["a", None, "ä" * 1000],
            "tokens": [["a", "b"], [], None],
            "values": pa.array([[1.0], [2.0, None], []], pa.list_(pa.float32())),
            "yes": [True, False, None],
        }
    )
    assert read_parquet(written(table), "examples", lists=True).equals(table)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"x": [{"a": 1, "b": 2}]}),
        pa.table({"x": [["a"]]}),
        pa.table({"x": [b"bytes"]}),
        pa.table({"x": pa.array([b"12345678"], pa.binary(8))}),
        pa.table({"x": pa.array([1], pa.decimal128(30, 2))}),
        pa.table([pa.array([1]), pa.array([2])], names=["x", "x"]),
    ],
)
def test_other_columns_are_refused(table):
    with pytest.raises(ValueError, match=r"^column 'x.*' of nodes holds|^nodes have columns"):
        read_parquet(written(table), "nodes")


def test_a_text_that_is_none_is_refused():
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    with pytest.raises(ValueError, match="nodes is not a readable Parquet file"):
        read_parquet(written(pa.table({"x": broken})), "nodes")


@pytest.mark.parametrize("at", [0, 4, 30, -30, -9, -5, -1])
def test_damage_is_refused(at):
    data = bytearray(written(pa.table({"x": list(range(100)), "s": ["a"] * 100})))
    data[at] ^= 0xFF
    try:
        read_parquet(bytes(data), "nodes")
    except ValueError as error:
        assert "nodes" in str(error)  # noqa: PT017 - not every flipped bit is damage to a reader


@pytest.mark.parametrize("nested", [False, True])
def test_a_few_bytes_that_stand_for_many_are_not_decoded(nested):
    text = "x" * 10_000
    indices = pa.array([0] * 100_000, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array([text]))
    if nested:
        offsets = pa.array(range(0, 100_001, 10), pa.int32())
        column = pa.ListArray.from_arrays(offsets, column)
    data = written(pa.table({"x": column}), store_schema=False)
    assert len(data) < 10**5
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 536,870,912 bytes of rows"):
            read_parquet(data, "examples", lists=nested)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 10**7


def test_one_row_of_very_many_equal_values_is_not_decoded():
    many = pa.ListArray.from_arrays(pa.array([0, 2**25 + 1], pa.int32()), pa.nulls(2**25 + 1))
    data = written(pa.table({"values": many.cast(pa.list_(pa.bool_()))}))
    assert len(data) < 10_000
    del many
    before = pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match="lists hold more than 33,554,432 values"):
        read_parquet(data, "examples", lists=True)
    assert (pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()) == before


def test_a_page_that_grows_when_it_is_decompressed_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(storage.graph.graph_columns, "_MOST_BYTES", 10_000)
    data = written(pa.table({"label": ["x" * 20_000]}), compression="zstd")
    with pytest.raises(ValueError, match="pages hold more than 10,000 bytes"):
        read_parquet(data, "nodes")


def test_more_rows_than_may_be_are_refused_by_the_metadata(monkeypatch):
    monkeypatch.setattr(storage.graph.graph_columns, "_MOST_ROWS", 10)
    with pytest.raises(ValueError, match="have 11 rows, which is more than 10"):
        read_parquet(written(pa.table({"x": list(range(11))})), "nodes")


def test_lists_of_lists_are_refused():
    with pytest.raises(ValueError, match="holds lists of lists of BYTE_ARRAY"):
        read_parquet(written(pa.table({"x": [[["a"]]]})), "examples", lists=True)


def test_no_damaged_byte_ends_the_process():
    data = written(pa.table({"x": list(range(9)), "s": ["a"] * 9}))
    random = Random(0)
    refused = 0
    for _ in range(2000):
        changed = bytearray(data)
        for _ in range(random.choice([1, 2, 4])):
            changed[random.randrange(len(data))] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
        try:
            read_parquet(bytes(changed), "nodes")
        except ValueError:
            refused += 1
    assert 500 < refused < 2000
