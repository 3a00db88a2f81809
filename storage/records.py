"""Canonical JSON and digests: one way to turn small records into bytes, and bytes into names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

__all__ = ["canonical_json", "digest", "fingerprint"]


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
