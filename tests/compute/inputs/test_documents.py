"""Documents are read in a fixed order from files, folders and what Python brings."""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compute.inputs.documents import documents_hash, read_documents
from compute.settings import InputSettings


def read(source, **options):
    return read_documents(InputSettings(text=str(source), **options))


def test_the_builtin_text():
    documents = read("builtin:python-topics")
    assert len(documents) > 50
    assert sum(len(d.text) for d in documents) > 400_000
    assert documents == read("builtin:python-topics")


def test_files_of_every_kind(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "skip.bin").write_bytes(b"\0")
    lines = [{"text": "three", "other": 1}, {"text": "four"}]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    pq.write_table(pa.table({"body": ["five"], "text": ["six"]}), tmp_path / "d.parquet")
    assert [d.text for d in read(tmp_path)] == ["one", "two", "three", "four", "six"]
    assert [d.text for d in read(tmp_path / "d.parquet", column="body")] == ["five"]


def test_records_of_every_kind(tmp_path):
    records = [{"a": {"b": "one"}}, {"a": {"b": None}}, {"a": None}, {"a": {"b": "two"}}]
    lines = "\n".join(json.dumps(record) for record in records)
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "x.jsonl.zst").write_bytes(pa.compress(lines.encode(), "zstd", asbytes=True))
    (tmp_path / "x.json").write_text(json.dumps(records))
    pq.write_table(pa.table({"a": [record["a"] for record in records]}), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.json", "x.parquet"):
        found = read(tmp_path / name, column="a.b")
        assert [d.text for d in found] == ["one", "two"]
        assert [d.name for d in found] == [f"{name}:1", f"{name}:4"]
    table = '\ufeffn,text\n1,"one\nline, and another"\n2,\n3,12\n'
    (tmp_path / "x.csv").write_text(table)
    assert [d.text for d in read(tmp_path / "x.csv")] == ["one\nline, and another", "12"]
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"one"))
    assert [d.text for d in read(tmp_path / "x.txt.gz")] == ["one"]


def test_a_folder_says_what_it_leaves_out(tmp_path, caplog):
    for place in ("a", "b", ".git"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.txt").write_text(place)
    (tmp_path / "paper.pdf").touch()
    with caplog.at_level("INFO", "strata"):
        assert [(d.name, d.text) for d in read(tmp_path)] == [("a/x.txt", "a"), ("b/x.txt", "b")]
    assert f"reads 2 files of {tmp_path}, and leaves out 1 hidden, 1 .pdf" in caplog.text


def test_the_hash_sees_every_change(tmp_path):
    (tmp_path / "a.txt").write_text("ab")
    (tmp_path / "b.txt").write_text("c")
    before = documents_hash(read(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("bc")
    assert documents_hash(read(tmp_path)) != before


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("x.pdf", "text", "text", "is of no known kind"),
        ("x.jsonl", '{"a": 1}', "text", "inputs.column 'text' is missing in line 1"),
        ("x.txt", "  \n ", "text", "holds no text"),
        ("x.txt", b"\xff\xfe", "text", r"x\.txt is not text in UTF-8"),
        ("x.jsonl", '{"text": "\\ud800"}', "text", r"x\.jsonl is not text in UTF-8"),
        ("x.jsonl", '{"text": "a"}\n{', "text", r"line 2 of .*x\.jsonl is not JSON"),
        ("x.jsonl", "[" * 100_000, "text", r"line 1 of .*x\.jsonl is not JSON"),
        (
            "x.jsonl",
            '{"text": 12}',
            "text",
            r"column 'text' holds 12 in line 1 of .*, which is no text",
        ),
        ("x.jsonl", '{"text": ["a"]}', "text", "which is no text: name a column of texts"),
        (
            "x.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}',
            "text",
            "line 2 of .* is not text in UTF-8",
        ),
        ("x.txt", b"a\nb \xe9", "text", r"line 2 of .*x\.txt is not text in UTF-8"),
        ("x.json", '{"text": "a"}', "text", "is no list of records"),
        ("x.csv", "a,b\n1,2\n", "text", "inputs.column 'text' is missing in row 1"),
        ("x.csv", "a,b\n1,2,3\n", "a", r"x\.csv is not a readable CSV file"),
        ("x.txt.gz", "none", "text", r"x\.txt\.gz cannot be decompressed"),
        ("x.parquet", "PAR1 none PAR1", "text", r"x\.parquet is not a readable Parquet file"),
    ],
)
def test_unreadable_sources_are_refused(tmp_path, name, content, column, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name, column=column)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.parquet"])
def test_ten_terabytes_of_nothing_are_no_text(tmp_path, name):
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 10 * 2**40)
    with pytest.raises(ValueError, match="has 10,995,116,277,760 bytes, which is more than"):
        read(tmp_path)


def test_an_unknown_builtin_is_refused():
    with pytest.raises(ValueError, match="is unknown"):
        read("builtin:nope")
