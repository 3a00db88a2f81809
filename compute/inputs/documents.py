"""Inputs of a run: documents and prompts, from a file, a folder or a built-in source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compute.settings import InputSettings

__all__ = ["MOST_TEXT_BYTES", "Document", "documents_hash", "read_documents", "read_prompts"]

ENDLESS_COUNT = 2000
"""Samples taken by default of a source that has no end."""
MOST_TEXT_BYTES = 2**33
"""Bytes of the longest file of texts that is read, as a whole."""

_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")


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
        found = [d for path in _files(source, "text") for d in _read(path, settings.column)]
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
            for path in _files(source, "prompts")
            for document in _read(path, settings.column)
            for prompt in (_lines(document) if path.suffix in (".txt", ".md") else [document])
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


def _files(source: str, field: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
    if not path.is_file():
        raise ValueError(f"inputs.{field} {source!r} does not exist: name a file or a folder.")
    if path.suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise ValueError(f"inputs.{field} {source!r} is of no known kind: use {known}.")
    return [path]


def _read(path: Path, column: str) -> Iterator[Document]:
    """The documents of one file.

    Raises
    ------
    ValueError
        Naming the file, if it is not what its name says, or larger than a text is.
    """
    size = path.stat().st_size
    if size > MOST_TEXT_BYTES:
        raise ValueError(
            f"{path} has {size:,} bytes, which is more than {MOST_TEXT_BYTES:,}: split it."
        )
    try:
        for document in _parsed(path, column):
            document.text.encode()
            yield document
    except UnicodeError:
        raise ValueError(f"{path} is not text in UTF-8: convert it, or take it out.") from None


def _parsed(path: Path, column: str) -> Iterator[Document]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield Document(f"{path.name}:{number}", _field(line, column, path, number))
    elif path.suffix == ".parquet":
        texts = _column(path, column)
        for number, text in enumerate(texts, 1):
            yield Document(f"{path.name}:{number}", str(text or ""))
    else:
        yield Document(path.name, path.read_text(encoding="utf-8"))


def _column(path: Path, column: str) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if column not in pq.read_schema(path).names:
            raise ValueError(f"inputs.column {column!r} is not a column of {path}: name one.")
        texts: list[Any] = pq.read_table(path, columns=[column]).column(0).to_pylist()
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a readable Parquet file ({reason}).") from None
    return texts


def _field(line: str, column: str, path: Path, number: int) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "it lies too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"line {number} of {path} is not JSON ({reason}).") from None
    if not isinstance(record, dict) or column not in record:
        raise ValueError(
            f"inputs.column {column!r} is missing in line {number} of {path}: name one it has."
        )
    return str(record[column])
