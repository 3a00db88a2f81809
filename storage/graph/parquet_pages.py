"""How much a Parquet file holds, as the heads of its pages say, before a page is decoded.

A page of a few bytes can stand for very many values: a run length, or a compressed run of one byte,
says how often the same one comes. Arrow decodes a row as a whole, however long its lists are, and a
page as a whole, however large it says that it is. So the heads are walked along first, as Arrow
will do it, and what they promise is summed up. They are structs of Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["ChunkSizes", "measured_chunks"]

_MAGIC = b"PAR1"
_MOST_FOOTER = 2**22
_MOST_PAGES = 2**16
_MOST_DEPTH = 16

# Thrift's types of fields and elements.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)
# Fields of Parquet's structs.
_ROW_GROUPS, _COLUMNS, _META = 4, 1, 3
_VALUES, _DATA_OFFSET, _DICTIONARY_OFFSET = 5, 9, 11
_PAGE_TYPE, _DECODED, _STORED = 1, 2, 3
# Types of pages that hold values, and the field in which each says how many.
_OF_DATA = {0: 5, 3: 8}
_OF_A_DICTIONARY = {2: 7}


class ChunkSizes:
    """What one chunk of a column holds.

    Attributes
    ----------
    column : int
        Number of the column, among those that hold values.
    values : int
        How many there are, unknown ones and those of lists included.
    decoded : int
        Bytes of its pages, decompressed.
    """

    def __init__(self, column: int, values: int, decoded: int) -> None:
        self.column, self.values, self.decoded = column, values, decoded


def measured_chunks(data: bytes | bytearray | memoryview) -> Iterator[ChunkSizes]:
    """Sizes of all column chunks of a Parquet file, in order.

    Raises
    ------
    ValueError
        If the bytes are no Parquet file, its pages do not hold what its footer says, or there are
        more of them than any writer makes.
    """
    view = memoryview(data)
    if len(view) < 12 or bytes(view[-4:]) != _MAGIC:
        raise ValueError("it does not end as one")
    length = int.from_bytes(view[-8:-4], "little")
    if length > min(len(view) - 12, _MOST_FOOTER):
        raise ValueError(f"its footer has {length:,} bytes")
    try:
        footer = _Reader(view[: len(view) - 8], len(view) - 8 - length).struct()
        chunks = [
            (column, chunk[_META])
            for group in footer.get(_ROW_GROUPS, [])
            for column, chunk in enumerate(group[_COLUMNS])
        ]
        pages = _MOST_PAGES
        for column, meta in chunks:
            sizes, seen = _measured(view, column, meta, pages)
            pages -= seen
            yield sizes
    except (IndexError, KeyError, TypeError, AttributeError):
        raise ValueError("its footer or the head of a page is damaged") from None


def _measured(
    view: memoryview, column: int, meta: dict[int, Any], most: int
) -> tuple[ChunkSizes, int]:
    offsets = (meta[_DATA_OFFSET], meta.get(_DICTIONARY_OFFSET, 0))
    at = min(offset for offset in offsets if offset > 0 or offset == offsets[0])
    values = decoded = pages = 0
    while values < meta[_VALUES]:
        pages += 1
        if at < 0 or pages > most:
            raise ValueError(f"it has more than {_MOST_PAGES:,} pages, or one before its beginning")
        reader = _Reader(view, at)
        head = reader.struct()
        if min(head[_DECODED], head[_STORED]) < 0:
            raise ValueError("a page has less than no bytes")
        at = reader.at + head[_STORED]
        decoded += head[_DECODED]
        kind = head[_PAGE_TYPE]
        if kind in _OF_DATA:
            held = head[_OF_DATA[kind]][1]
            values += held
        else:
            held = head[_OF_A_DICTIONARY[kind]][1] if kind in _OF_A_DICTIONARY else 0
        # The values of a dictionary have four bytes at least, and Arrow makes room for all of them.
        if held < 0 or (kind in _OF_A_DICTIONARY and held > head[_DECODED]):
            raise ValueError("a page cannot hold as many values as it says")
    if values != meta[_VALUES]:
        raise ValueError("its pages hold more values than its footer says")
    return ChunkSizes(column, values, decoded), pages


class _Reader:
    """Reads Thrift's compact protocol: a struct as its fields by number, a list as a list."""

    def __init__(self, view: memoryview, at: int) -> None:
        self._view = view
        self.at = at

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The struct that begins here."""
        if depth > _MOST_DEPTH:
            raise IndexError
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._whole()
            kind = head & 15
            found[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return found

    def _byte(self) -> int:
        self.at += 1
        return self._view[self.at - 1]

    def _unsigned(self) -> int:
        found = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            found |= (byte & 127) << shift
            if byte < 128:
                return found
        raise IndexError

    def _whole(self) -> int:
        found = self._unsigned()
        return (found >> 1) ^ -(found & 1)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._whole()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            head = self._byte()
            length = head >> 4 if head >> 4 < 15 else self._unsigned()
            return self._values(head & 15, length, depth + 1)
        if kind == _MAP:
            length = self._unsigned()
            kinds = self._byte() if length else 0
            pairs = ((kinds >> 4, kinds & 15) for _ in range(self._possible(length)))
            return [(self._value(key, depth + 1), self._value(to, depth + 1)) for key, to in pairs]
        return self._skip({_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}.get(kind), kind)

    def _values(self, kind: int, length: int, depth: int) -> list[Any]:
        if depth > _MOST_DEPTH:
            raise IndexError
        return [self._value(kind, depth) for _ in range(self._possible(length))]

    def _possible(self, length: int) -> int:
        # Each element has a byte at least.
        if length > len(self._view) - self.at:
            raise IndexError
        return length

    def _skip(self, length: int | None, kind: int) -> None:
        if length is None and kind != _BINARY:
            raise IndexError
        length = self._possible(self._unsigned() if length is None else length)
        self.at += length
