"""The heads of Parquet's pages, walked along as Arrow does it."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.graph.parquet_pages import measured_chunks

TABLE = pa.table(
    {
        "n": [1, None, 3] * 1000,
        "s": ["a", None, "ä" * 100] * 1000,
        "tokens": [["a", "b"], [], None] * 1000,
        "values": pa.array([[1.0], [2.0, None], []] * 1000, pa.list_(pa.float32())),
        "yes": [True, False, None] * 1000,
    }
)


def written(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd"},
        {"data_page_version": "2.0"},
        {"use_dictionary": False},
        {"row_group_size": 100, "data_page_size": 64},
        {"write_page_index": True, "store_schema": False},
    ],
)
def test_values_are_those_that_arrow_counts(options):
    data = written(TABLE, **options)
    found = pq.ParquetFile(io.BytesIO(data)).metadata
    chunks = [(g, c) for g in range(found.num_row_groups) for c in range(found.num_columns)]
    measured = list(measured_chunks(data))
    assert [chunk.column for chunk in measured] == [c for _, c in chunks]
    assert [chunk.values for chunk in measured] == [
        found.row_group(g).column(c).num_values for g, c in chunks
    ]
    assert all(chunk.decoded > 0 for chunk in measured)


def test_a_page_that_holds_more_than_the_footer_says_is_refused():
    data = bytearray(
        written(pa.table({"x": [7] * 33}), use_dictionary=False, write_statistics=False)
    )
    # In the head of the only page: field 1 of its sixth, 33 as Thrift spells it.
    at = data.index(b"\x15\x42")
    data[at + 1] = 0x44
    with pytest.raises(ValueError, match="its pages hold more values than its footer says"):
        list(measured_chunks(bytes(data)))


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1" * 3, b"PAR1\xff\xff\xff\x7fPAR1", b"x" * 40]
)
def test_what_is_no_parquet_file_is_refused(data):
    with pytest.raises(ValueError, match=r"^its? "):
        list(measured_chunks(data))


def test_damage_is_refused_as_such():
    data = written(TABLE)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x5A
        try:
            list(measured_chunks(changed))
        except ValueError:
            continue
