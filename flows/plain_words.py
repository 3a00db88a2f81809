"""Words of others, as they may be shown: a terminal does what control characters tell it."""

from __future__ import annotations

import json

from rich.markup import escape

__all__ = ["plain", "plain_json", "plain_markup"]


def plain(text: str) -> str:
    """A text of one or more lines with everything replaced that does not print."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain_markup(text: str) -> str:
    """A text for a console that knows markup: one line, nothing of it taken for markup."""
    return escape(plain(text.replace("\n", "\N{REPLACEMENT CHARACTER}")))


def plain_json(text: str) -> str:
    """The same JSON, with everything that does not print spelt by its number."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
