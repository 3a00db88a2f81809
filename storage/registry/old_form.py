"""Aliases and removals as registries of form 1 kept them: a ledger an alias, a mark a removal.

Their signatures say neither to which artifact they belong nor where they stand, so that one could
be copied to another place. They are read until the first entry of ``changes/`` carries them over;
where keys are trusted, only :meth:`storage.artifacts.Registry.renew` does that.
"""

from __future__ import annotations

from typing import Any

from storage.locations import Location, check_name
from storage.registry.ledgers import CorruptArtifact, Ledger
from storage.registry.signatures import BadSignature, Keyring

__all__ = ["old_moves", "old_removals", "refuse_old_form"]

_REMOVED = "removed"


def old_moves(
    location: Location, artifact: str, keyring: Keyring
) -> dict[str, list[dict[str, Any]]]:
    """The moves of each alias, oldest first, as they were stored."""
    found = {}
    for alias in _aliases(location):
        ledger = Ledger(location, artifact, f"aliases/{alias}", keyring)
        found[alias] = [entry.content for entry in ledger.entries(ledger.head())]
    return found


def old_removals(location: Location, artifact: str, keyring: Keyring) -> list[int]:
    """Numbers of the versions that have a mark; a file that is none makes no version vanish."""
    marks = Ledger(location, artifact, _REMOVED, keyring)
    found = []
    for number in marks.numbers():
        try:
            if marks.entry(number).content.get("version") == number:
                found.append(number)
        except (CorruptArtifact, BadSignature):
            continue
    return sorted(found)


def refuse_old_form(location: Location, artifact: str, keyring: Keyring) -> None:
    """Raise :class:`BadSignature` if there is anything that these keys have signed in form 1."""
    if _aliases(location) or old_removals(location, artifact, keyring):
        raise BadSignature(
            f"{location.url} has aliases or removals of form 1, whose signatures do not say where "
            f"they belong: look at them, then run `strata artifacts renew {artifact}` with the "
            "signing key."
        )


def _aliases(location: Location) -> list[str]:
    found = []
    for name in location.children("aliases"):
        try:
            found.append(check_name(name))
        except ValueError:
            continue
    return found
