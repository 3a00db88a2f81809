"""Inputs of a run: documents and prompts, from a file, a folder or a built-in source."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compute.settings import InputSettings

__all__ = ["MOST_TEXT_BYTES", "Document", "documents_hash", "read_documents", "read_prompts"]

ENDLESS_COUNT = 2000
"""Samples taken by default of a source that has no end."""
MOST_TEXT_BYTES = 2**33
"""Bytes of the longest file of texts that is read, as a whole."""

_SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".parquet")
_COMPRESSED = (".gz", ".zst")
# A row of a table has to fit into one.
_CSV_BLOCK = 2**26

_log = logging.getLogger("strata")


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the name under which reports speak of it."""

    name: str
    text: str


def read_documents(settings: InputSettings) -> list[Document]:
    """Read all documents, in a fixed order, leaving out blank ones.

    Raises
    ------
    ValueError
        If the source is unknown, does not exist, or holds no text.
    """
    source = settings.source
    if source.startswith("builtin:"):
        found = list(_builtin(source, settings.count or ENDLESS_COUNT))
    else:
        found = [d for file in _files(source, "text") for d in _read(*file, settings.column)]
    return _with_text(found, source, "text")


def read_prompts(settings: InputSettings, *, seed: int = 0) -> list[Document]:
    """Read all prompts, in a fixed order: one a line of a .txt file, else one a row.

    Parameters
    ----------
    seed : int
        Of a built-in source.

    Raises
    ------
    ValueError
        If the source is unknown, does not exist, or holds no prompt.
    """
    source = settings.source
    if source == "builtin:sprites":
        from compute.worlds.sprites import SpriteWorld

        captions = SpriteWorld(seed).sample(settings.count or ENDLESS_COUNT).captions
        found = [Document(f"sprite {i}", caption) for i, caption in enumerate(captions)]
    elif source.startswith("builtin:"):
        raise ValueError(
            f"inputs.prompts {source!r} is unknown: the only built-in prompts are "
            "'builtin:sprites'."
        )
    else:
        found = [
            prompt
            for path, name in _files(source, "prompts")
            for document in _read(path, name, settings.column)
            for prompt in (_lines(document) if _kind(path) in (".txt", ".md") else [document])
        ]
    found = _with_text(found, source, "prompts")
    count = settings.count or len(found)
    repeated = (found[i % len(found)] for i in range(count))
    return [
        Document(f"{prompt.name}, drawing {i // len(found) + 1}", prompt.text)
        if count > len(found)
        else prompt
        for i, prompt in enumerate(repeated)
    ]


def _lines(document: Document) -> Iterator[Document]:
    for number, line in enumerate(document.text.splitlines(), 1):
        yield Document(f"{document.name}:{number}", line.strip())


def _with_text(found: list[Document], source: str, field: str) -> list[Document]:
    found = [document for document in found if document.text.strip()]
    if not found:
        raise ValueError(
            f"inputs.{field} {source!r} holds no text: name a file or folder with some."
        )
    return found


def documents_hash(documents: list[Document]) -> str:
    """SHA-256 over names and texts, in order."""
    state = hashlib.sha256()
    for document in documents:
        for part in (document.name, document.text):
            data = part.encode()
            state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def _builtin(name: str, count: int) -> Iterator[Document]:
    if name == "builtin:grammar":
        from compute.worlds.grammar import GrammarWorld

        # Texts of seed 1 are among those that no training saw.
        for i, text in enumerate(GrammarWorld().texts(count, seed=1)):
            yield Document(f"text {i}", text)
        return
    if name != "builtin:python-topics":
        raise ValueError(
            f"inputs.text {name!r} is unknown: use 'builtin:python-topics' or 'builtin:grammar'."
        )
    import pydoc_data.topics as module

    for topic, text in sorted(module.topics.items()):
        yield Document(topic, text)


def _kind(path: Path) -> str:
    """What a file is by its name, whether compressed or not: one of the known suffixes, or none."""
    inner = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    suffix = inner.suffix.lower()
    return suffix if suffix in _SUFFIXES and not (suffix == ".parquet" and inner != path) else ""


def _files(source: str, field: str) -> list[tuple[Path, str]]:
    """Files to read, and the names under which reports speak of them."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_below(path)
    if not path.is_file():
        raise ValueError(
            f"inputs.{field} {source!r} does not exist, looked for as {path.absolute()}: name a "
            "file or a folder."
        )
    if not _kind(path):
        known, packed = ", ".join(_SUFFIXES), " or ".join(_COMPRESSED)
        raise ValueError(
            f"inputs.{field} {source!r} is of no known kind: use {known}, or these in {packed}."
        )
    return [(path, path.name)]


def _files_below(folder: Path) -> list[tuple[Path, str]]:
    """Files of a folder and those below it that are read; says what is left out."""
    found: list[tuple[Path, str]] = []
    left_out: Counter[str] = Counter()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            left_out["hidden"] += 1
        elif _kind(path):
            found.append((path, inside.as_posix()))
        else:
            left_out[path.suffix or "without a suffix"] += 1
    if left_out:
        told = ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common())
        _log.info("reads %s files of %s, and leaves out %s", f"{len(found):,}", folder, told)
    return found


def _read(path: Path, name: str, column: str) -> Iterator[Document]:
    """The documents of one file.

    Raises
    ------
    ValueError
        Naming the file and the place in it, if it is not what its name says, or larger than a text
        is.
    """
    size = path.stat().st_size
    if size > MOST_TEXT_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes, which is more than {MOST_TEXT_BYTES:,}: split it."
        )
    kind = _kind(path)
    if kind in (".txt", ".md"):
        yield Document(name, _decoded(_content(path), f"{path}"))
        return
    for number, place, record in _records(path, kind, column):
        text = _text(record, column, place)
        if text is not None:
            try:
                text.encode()
            except UnicodeError:
                raise ValueError(f"{place} is not text in UTF-8: take it out.") from None
            yield Document(f"{name}:{number}", text)


def _records(path: Path, kind: str, column: str) -> Iterator[tuple[int, str, Any]]:
    """Number, place in words and content of each record of a file of records."""
    if kind == ".jsonl":
        for number, line in enumerate(_raw_lines(path), 1):
            place = f"line {number} of {path}"
            text = _decoded(line, place)
            if text.strip():
                yield number, place, _parsed(text, place)
        return
    if kind == ".json":
        rows = _parsed(_decoded(_content(path), f"{path}"), f"{path}")
        if not isinstance(rows, list):
            raise ValueError(
                f"{path} is no list of records: give one, or a record a line in .jsonl."
            )
    else:
        rows = _csv(path, column) if kind == ".csv" else _parquet(path, column)
    for number, row in enumerate(rows, 1):
        yield number, f"row {number} of {path}", row


def _raw_lines(path: Path) -> Iterator[bytes]:
    if path.suffix.lower() in _COMPRESSED:
        yield from _content(path).split(b"\n")
    else:
        with path.open("rb") as lines:
            yield from lines


def _content(path: Path) -> bytes:
    """What a file holds, decompressed."""
    import pyarrow as pa

    if path.suffix.lower() not in _COMPRESSED:
        return path.read_bytes()
    with (
        _refused(path, "cannot be decompressed", ": take it out"),
        pa.input_stream(str(path), compression="detect") as stream,
    ):
        data: bytes = stream.read(MOST_TEXT_BYTES + 1)
    if len(data) > MOST_TEXT_BYTES:
        raise ValueError(f"{path} holds more than {MOST_TEXT_BYTES:,} bytes: split it.")
    return data


@contextlib.contextmanager
def _refused(path: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Refuse a file in one sentence where Arrow cannot read it, by the first line of its reason."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} {what} ({reason}){remedy}.") from None


def _decoded(data: bytes, place: str) -> str:
    try:
        # A mark of the byte order, which other systems begin a file with, is no text.
        return data.decode("utf-8-sig")
    except UnicodeError as error:
        line = ""
        if isinstance(error, UnicodeDecodeError) and b"\n" in data:
            line = f"line {data[: error.start].count(10) + 1} of "
        raise ValueError(
            f"{line}{place} is not text in UTF-8: convert it, or take it out."
        ) from None


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it lies too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{place} is not JSON ({reason}).") from None


def _csv(path: Path, column: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv

    options = csv.ConvertOptions(column_types={column: pa.string()}, strings_can_be_null=False)
    parse = csv.ParseOptions(newlines_in_values=True)
    reading = csv.ReadOptions(block_size=_CSV_BLOCK)
    with (
        _refused(path, "is not a readable CSV file"),
        pa.input_stream(str(path), compression="detect") as stream,
        csv.open_csv(stream, reading, parse, options) as table,
    ):
        for batch in table:
            yield from batch.select([n for n in batch.schema.names if n == column]).to_pylist()


def _parquet(path: Path, column: str) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet as pq

    with _refused(path, "is not a readable Parquet file"), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        own = column if column in names else column.partition(".")[0]
        if own not in names:
            raise ValueError(f"inputs.column {column!r} is not a column of {path}: name one.")
        for batch in file.iter_batches(columns=[own]):
            yield from batch.to_pylist()


def _text(record: Any, column: str, place: str) -> str | None:
    """The text of a record under the name of a column, or its path as in ``a.b``; None if null.

    Raises
    ------
    ValueError
        If there is no such column, or what it holds is no text.
    """
    found = record
    path = [column] if isinstance(record, Mapping) and column in record else column.split(".")
    for name in path:
        if found is None:
            return None
        if not isinstance(found, Mapping) or name not in found:
            raise ValueError(f"inputs.column {column!r} is missing in {place}: name one it has.")
        found = found[name]
    if found is None or isinstance(found, str):
        return found
    raise ValueError(
        f"inputs.column {column!r} holds {found!r:.40} in {place}, which is no text: name a column "
        "of texts."
    )
