"""Canonical JSON, a strict reader of it, and digests: records, their bytes and their names."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

__all__ = ["MAX_DEPTH", "MAX_RECORD", "canonical_json", "digest", "fingerprint", "read_json"]

MAX_RECORD = 2**20
"""Bytes of the longest small record that is read from a store: a ledger entry, a reference, …"""
MAX_DEPTH = 32
"""How deep the lists and objects of a record may lie inside each other."""

_MAX_DIGITS = 20
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space; equal values give equal bytes.

    Raises
    ------
    ValueError
        If a number is not finite, since JSON has no word for it.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def read_json(data: bytes) -> Any:
    """Read JSON that somebody else may have written, as RFC 8259 has it and no further.

    Raises
    ------
    ValueError
        If the bytes are not JSON in UTF-8, lie deeper than :data:`MAX_DEPTH`, repeat a key of one
        object, or hold NaN, an infinity, a whole number of more than 20 digits or half of a
        surrogate pair: what other readers would refuse or, worse, read as something else.
    """
    _check_depth(data)
    value = json.loads(
        data.decode(),
        object_pairs_hook=_unique,
        parse_constant=_refuse_constant,
        parse_float=_finite,
        parse_int=_whole,
    )
    if b"\\ud" in data or b"\\uD" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair") from None
    return value


def _check_depth(data: bytes) -> None:
    # Before anything is parsed, since parsers of JSON go down as deep as their stack allows.
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(data):
        mark = data[found.start()]
        if mark in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"lists and objects lie more than {MAX_DEPTH} deep")
        elif mark in b"]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:60]!r} stands there twice")
    return found


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_DIGITS:
        raise ValueError(f"the whole number {text[:40]}… has more than {_MAX_DIGITS} digits")
    return int(text)


def digest(parts: bytes | memoryview | Iterable[bytes]) -> str:
    """SHA-256 of the bytes, or of the concatenated parts, in hexadecimal."""
    state = hashlib.sha256()
    if isinstance(parts, bytes | memoryview):
        state.update(parts)
    else:
        for part in parts:
            state.update(part)
    return state.hexdigest()


def fingerprint(step: str, implementation: int, settings: Any, upstream: Iterable[str]) -> str:
    """Name of what a step computes: a hash of its settings, inputs and implementation version.

    Equal fingerprints mean equal results, so a fingerprint is never computed twice.

    Parameters
    ----------
    step : str
        The step's name.
    implementation : int
        Raised by whoever changes what the step computes.
    settings : Any
        The settings that the result depends on, as JSON values.
    upstream : iterable of str
        Fingerprints of the inputs, in order.

    Returns
    -------
    str
        16 hexadecimal digits (64 bits).
    """
    record = {
        "step": step,
        "implementation": implementation,
        "settings": settings,
        "upstream": list(upstream),
    }
    return digest(canonical_json(record))[:16]
