"""What this machine has seen of a registry, so that one that was set back is recognised.

Signatures show that what is read was written by a trusted hand; they cannot show that it is the
newest that was written. Whoever can write a store can delete the newest entries of a ledger, and
what remains is a registry as it once was. A reader that remembers how far it has read notices.

``STRATA_WITNESS``
    a folder for this memory, or ``off``. Where it is not set, ``$XDG_CACHE_HOME/strata/witness`` is
    used if keys are trusted (``STRATA_TRUSTED_KEYS``), and nothing is remembered otherwise.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.records import canonical_json, digest, read_json
from storage.registry.signatures import BadSignature

__all__ = ["RolledBack", "Witness", "witness_folder"]

_VARIABLE = "STRATA_WITNESS"
_log = logging.getLogger(__name__)


class RolledBack(BadSignature):
    """A registry holds less than, or something other than, what this machine has seen there."""


def witness_folder(*, trusting: bool) -> Path | None:
    """Where to remember what was seen, or None if nothing shall be.

    Parameters
    ----------
    trusting : bool
        Whether there are keys to trust; without them a witness is kept only on request.
    """
    setting = os.environ.get(_VARIABLE)
    if setting:
        return None if setting == "off" else Path(setting).expanduser()
    if not trusting:
        return None
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "strata" / "witness"
    except RuntimeError:
        _log.warning("no home folder: set %s to a folder or to off.", _VARIABLE)
        return None


class Witness:
    """The newest entry of each ledger of one artifact, as this machine has last seen it.

    Parameters
    ----------
    folder : Path
        Where the files of all witnesses lie.
    registry : str
        URL of the registry, and of the service that its scheme leaves open.
    artifact : str
        Name of the artifact.
    """

    def __init__(self, folder: Path, registry: str, artifact: str) -> None:
        self._registry = registry
        self._artifact = artifact
        self.file = folder / f"{digest(canonical_json([registry, artifact]))[:32]}.json"

    def check(self, ledger: str, newest: int, digest_of: Callable[[int], str]) -> None:
        """Compare the newest entry of a ledger with what was seen before, and remember it.

        Parameters
        ----------
        ledger : str
            The ledger's folder.
        newest : int
            Number of the entry that is the newest now; 0 for an empty ledger.
        digest_of : callable
            The digest of an entry by its number; asked for those that were seen, and the newest.

        Raises
        ------
        RolledBack
            If the ledger is shorter than it was, or what was seen is another entry now.
        """
        seen = self._read().get(ledger)
        if seen is not None:
            number, known = seen
            if newest < number or digest_of(number) != known:
                what = f"ends at {newest}" if newest < number else f"has another entry {number}"
                raise RolledBack(
                    f"{self._artifact} in {self._registry} was set back or replaced: this machine "
                    f"has seen entry {number} of its {ledger}, which now {what}. If you know that "
                    f"the registry was made anew, delete {self.file} and try again."
                )
            if newest == number:
                return
        if newest:
            self._remember(ledger, newest, digest_of(newest))

    def _read(self) -> dict[str, tuple[int, str]]:
        try:
            found = read_json(self.file.read_bytes())
            return {ledger: (int(n), str(known)) for ledger, (n, known) in found["seen"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            _log.warning("%s is not readable (%s): nothing is remembered.", self.file, error)
            return {}

    def _remember(self, ledger: str, number: int, known: str) -> None:
        # Of two readers at once one may forget what the other has added; the next look adds it.
        new = self.file.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            seen = self._read()
            seen[ledger] = max(seen.get(ledger, (0, "")), (number, known))
            said: dict[str, Any] = {"registry": self._registry, "artifact": self._artifact}
            new.write_bytes(canonical_json(said | {"seen": seen}))
            new.replace(self.file)
        except OSError as error:
            _log.warning("%s cannot be written (%s): nothing is remembered.", self.file, error)
