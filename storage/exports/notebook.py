"""Pieces of HTML by which versions, graphs and concepts show themselves in a notebook.

All text is escaped. No style sheet is brought along: colours are the notebook's own, whatever its
theme, but for the shade of active tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["card", "figure", "shaded", "table", "titled"]


def card(head: str, *parts: str) -> str:
    """A heading above parts that are HTML already."""
    return f"<div><strong>{escape(head)}</strong>{''.join(parts)}</div>"


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of plain values; nothing where there are no rows."""
    if not rows:
        return ""
    names = "".join(f"<th>{escape(head)}</th>" for head in heads)
    top = f"<thead><tr>{names}</tr></thead>" if heads else ""
    cells = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table>{top}<tbody>{body}</tbody></table>"


def shaded(example: Mapping[str, Any]) -> str:
    """Tokens of an example, shaded by their activation; plain where they have no values."""
    tokens = [str(token) for token in example.get("tokens") or []]
    values = [max(0.0, float(value)) for value in example.get("values") or []]
    if len(tokens) != len(values):
        return escape(" ".join(tokens))
    most = max(values, default=0.0) or 1.0
    return "".join(
        f'<span style="background:rgba(214,120,20,{value / most * 0.6:.2f})">{escape(token)}</span>'
        for token, value in zip(tokens, values)
    )


def titled(concept_id: str, label: str | None) -> str:
    """A concept by its id and, where it has one, its label."""
    return f"{concept_id} {label}" if label else concept_id


def figure(value: Any) -> str:
    """A value for people: three digits of a share or a strength, nothing where it is unknown."""
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
