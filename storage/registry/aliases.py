"""Names of aliases: words, so that none can be taken for the number of a version."""

from __future__ import annotations

from storage.locations import check_name

__all__ = ["check_alias", "version_number"]

_MOST_DIGITS = 8


def check_alias(alias: str) -> str:
    """Return an alias if it is a safe name that does not read like a version number.

    Raises
    ------
    ValueError
        If it is not.
    """
    check_name(alias, field="alias")
    if version_number(alias) is not None:
        raise ValueError(f"alias {alias!r} reads like a version number: choose a word.")
    return alias


def version_number(text: str) -> int | None:
    """The number that a text such as ``7`` or ``v7`` names; None if it names none."""
    digits = text.removeprefix("v")
    short = digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS
    return int(digits) if short else None
