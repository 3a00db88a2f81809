"""Columns of a concept graph: their schema, and Arrow tables that are checked against it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.graph.parquet_pages import measured_chunks

__all__ = [
    "EDGE_SCHEMA",
    "NODE_SCHEMA",
    "known",
    "make_table",
    "parquet_bytes",
    "read_parquet",
    "read_table",
    "to_numpy",
]

NODE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("level", pa.int32(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        ("label", pa.string()),
        ("concept", pa.string()),
        ("frequency", pa.float64()),
        ("kind", pa.string()),
        ("form", pa.string()),
        ("unexplained", pa.float64()),
    ]
)
EDGE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("strength", pa.float64(), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),
        ("sign", pa.int8()),
        ("stability", pa.float64()),
        ("variant", pa.string()),
        ("effect", pa.float64()),
        ("effect_low", pa.float64()),
        ("effect_high", pa.float64()),
        pa.field("verdict", pa.string(), nullable=False),
    ]
)
# Bytes of a value; of a text, those of its number in a dictionary.
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
_TEXTS = ("STRING", "JSON", "ENUM")
_MOST_BYTES = 2**29
_MOST_ROWS = 2**26
_MOST_IN_LISTS = 2**25
_BATCH_ROWS = 8192
_SHARES = ("frequency", "unexplained", "confidence", "stability")


def make_table(columns: Mapping[str, Any], schema: pa.Schema, what: str) -> pa.Table:
    """Cast known columns to the schema, fill missing ones with null, keep extra ones."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of {what} differ in length: {lengths}.")
    rows = next(iter(lengths.values()), 0)
    arrays: dict[str, Any] = {}
    for item in schema:
        if item.name not in columns:
            if not item.nullable:
                raise ValueError(f"{what} lack the column {item.name!r}.")
            arrays[item.name] = pa.nulls(rows, item.type)
            continue
        arrays[item.name] = _array(columns[item.name], item.name, what, item.type)
    for name in sorted(set(columns) - set(schema.names)):
        arrays[name] = _array(columns[name], name, what, None)
    return _checked(pa.table(arrays), schema, what)


def _array(values: Any, name: str, what: str, to: pa.DataType | None) -> Any:
    try:
        # from_pandas: NaN is how numpy says "not known".
        arrow = isinstance(values, pa.ChunkedArray)
        array = values if arrow else pa.array(values, from_pandas=True)
        return array if to is None else array.cast(to)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"column {name!r} of {what} cannot be read as {to} ({reason}).") from None


def read_table(source: bytes | str | Path, schema: pa.Schema, what: str) -> pa.Table:
    """Read a Parquet file into columns of the schema; `what` names it in errors.

    Raises
    ------
    ValueError
        If it is no Parquet file, or its columns are not those of a graph.
    """
    table = read_parquet(source, what)
    return make_table({name: table[name] for name in table.column_names}, schema, what)


def read_parquet(source: bytes | str | Path, what: str, *, lists: bool = False) -> pa.Table:
    """Read a Parquet file that somebody else may have written.

    Parameters
    ----------
    source : bytes, str or Path
        The file's bytes, or where it lies.
    what : str
        Names it in errors.
    lists : bool
        Whether columns may hold lists of numbers or of texts.

    Raises
    ------
    ValueError
        If it is no Parquet file, repeats a column's name, has columns of other kinds, holds a text
        that is not UTF-8, or more than 512 MiB of rows or 33,554,432 values in lists: a few bytes
        of such a file can stand for terabytes of them.
    """
    if isinstance(source, str | Path):
        source = Path(source).read_bytes()
    try:
        _check_columns(pq.ParquetFile(_opened(source)), what, deepest=int(lists))
        _check_pages(source, what)
        _check_rows(source, what)
        table = pq.ParquetFile(_opened(source)).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what} is not a readable Parquet file ({reason}).") from None
    return table


def _opened(source: bytes) -> Any:
    return pa.BufferReader(source)


def _check_columns(file: pq.ParquetFile, what: str, *, deepest: int) -> None:
    columns = [file.schema.column(i) for i in range(len(file.schema))]
    names = [column.path.partition(".")[0] for column in columns]
    if len(set(names)) < len(names):
        raise ValueError(f"{what} have columns of structs, or two columns of one name.")
    for column in columns:
        text = column.physical_type == "BYTE_ARRAY" and column.logical_type.type in _TEXTS
        depth = column.max_repetition_level
        plain = column.physical_type != "BYTE_ARRAY" and column.physical_type in _WIDTHS
        if depth > deepest or not (text or plain):
            kind = "lists of " * depth + str(column.physical_type)
            raise ValueError(
                f"column {column.path!r} of {what} holds {kind}: give numbers, texts or truth "
                "values."
            )
    # Nothing is asked of single column chunks: for some damaged ones pyarrow ends the process.
    rows = file.metadata.num_rows
    if rows > _MOST_ROWS:
        raise ValueError(f"{what} have {rows:,} rows, which is more than {_MOST_ROWS:,}.")


def _check_pages(source: bytes, what: str) -> None:
    """Refuse what would take too much memory, by what pages say of themselves."""
    file = pq.ParquetFile(_opened(source))
    columns = [file.schema.column(i) for i in range(len(file.schema))]
    size = in_lists = 0
    try:
        for chunk in measured_chunks(memoryview(source)):
            column = columns[chunk.column]
            size += max(chunk.decoded, chunk.values * _WIDTHS[column.physical_type])
            in_lists += chunk.values if column.max_repetition_level else 0
            if size > _MOST_BYTES:
                raise ValueError(f"its pages hold more than {_MOST_BYTES:,} bytes of rows")
            if in_lists > _MOST_IN_LISTS:
                raise ValueError(f"its lists hold more than {_MOST_IN_LISTS:,} values")
    except ValueError as error:
        raise ValueError(f"{what} is not a readable Parquet file ({error}).") from None
    except IndexError:
        raise ValueError(f"{what} is not a readable Parquet file (columns differ).") from None


def _check_rows(source: bytes, what: str) -> None:
    """Refuse what would take too much memory, looking at a few rows at a time."""
    file = pq.ParquetFile(_opened(source))
    columns = [file.schema.column(i) for i in range(len(file.schema))]
    # A text that is repeated stays one text with numbers of it, so its length is known beforehand.
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    file = pq.ParquetFile(_opened(source), read_dictionary=texts)
    size = 0
    for batch in file.iter_batches(_BATCH_ROWS):
        size += batch.num_rows + sum(_decoded_bytes(column) for column in batch.columns)
        if size > _MOST_BYTES:
            raise ValueError(f"{what} hold more than {_MOST_BYTES:,} bytes of rows.")


def _decoded_bytes(column: pa.Array) -> int:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return len(column) * 4 + _decoded_bytes(column.flatten())
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary).cast(pa.int64())
        return len(column) * 4 + (pc.sum(lengths.take(column.indices)).as_py() or 0)
    return int(column.nbytes)


def _checked(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    for item in table.schema:
        if not (
            pa.types.is_string(item.type)
            or pa.types.is_boolean(item.type)
            or pa.types.is_integer(item.type)
            or pa.types.is_floating(item.type)
            or pa.types.is_null(item.type)
        ):
            raise ValueError(
                f"column {item.name!r} of {what} has the type {item.type}: give numbers, texts or "
                "truth values."
            )
    for item in schema:
        if not item.nullable and table[item.name].null_count:
            raise ValueError(f"column {item.name!r} of {what} has unknown values.")
    for item in table.schema:
        if pa.types.is_floating(item.type):
            values = to_numpy(table[item.name].drop_null())
            low, high = (0.0, 1.0) if item.name in _SHARES else (-np.inf, np.inf)
            bad = values[~((values >= low) & (values <= high) & np.isfinite(values))]
            if len(bad):
                asked = "between 0 and 1" if item.name in _SHARES else "finite"
                raise ValueError(f"{item.name} {bad[0]} of {what} must be {asked}.")
    return table


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as one compressed Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def to_numpy(column: Any) -> NDArray[Any]:
    """A column without nulls as numpy, without a copy where it has one chunk."""
    # Arrow's own conversions import pandas where it is installed, which costs more than loading.
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.from_dlpack(array)


def known(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what is not known of it."""
    return {name: value for name, value in row.items() if value is not None}
