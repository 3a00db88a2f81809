"""Aliases and removals as registries of form 1 kept them: a ledger an alias, a mark a removal.

Their signatures say neither to which artifact they belong nor where they stand, so that one could
be copied to another place. They are read until the first entry of ``changes/`` carries them over;
where keys are trusted, only :meth:`storage.artifacts.Registry.renew` does that.
"""

from __future__ import annotations

from storage.locations import Location
from storage.registry.aliases import check_alias
from storage.registry.ledgers import CorruptArtifact, Ledger
from storage.registry.signatures import BadSignature, Keyring

__all__ = ["old_aliases", "old_removals", "refuse_old_form"]

_REMOVED = "removed"


def old_aliases(location: Location, artifact: str, keyring: Keyring) -> dict[str, Ledger]:
    """The ledger of each alias; an entry of it is one move."""
    return {
        alias: Ledger(location, artifact, f"aliases/{alias}", keyring)
        for alias in _aliases(location)
    }


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
            found.append(check_alias(name))
        except ValueError:
            continue
    return found
