"""Checkpoints: where a long computation goes on from, the newest whole one first.

Each lies in a folder of its own that is sealed last, so that one which a killed process has not
ended, or which is damaged, is passed over for the one before it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from storage.locations import Location, NotFound
from storage.sealing.damage import CorruptFile
from storage.sealing.seals import SealedFolder, seal_files

__all__ = ["SealedCheckpoints"]

# A damaged one is not used, and the work goes on from the one before it.
_KEPT = 2

_logger = logging.getLogger(__name__)


class SealedCheckpoints:
    """The checkpoints of one computation, below a location.

    Parameters
    ----------
    location : Location
        A folder that holds nothing else.
    logger : logging.Logger, optional
        Told of a checkpoint that is damaged.
    """

    def __init__(self, location: Location, logger: logging.Logger = _logger) -> None:
        self.location = location
        self._logger = logger

    def save(self, step: int, files: Mapping[str, bytes]) -> None:
        """Keep the files of a step, and of earlier steps the last only."""
        folder = self.location / str(step)
        for name, data in files.items():
            folder.put(name, data)
        seal_files(folder, list(files))
        for earlier in self._steps()[_KEPT:]:
            self.location.delete_folder(str(earlier))

    def load(self) -> Iterator[tuple[int, dict[str, bytes]]]:
        """Step and files of each checkpoint that is whole, the newest first."""
        for step in self._steps():
            try:
                sealed = SealedFolder.open(self.location / str(step))
                files = {name: sealed.get(name) for name in sealed.files}
            except NotFound:
                # A killed run had not ended it.
                continue
            except CorruptFile as error:
                self._logger.warning("the checkpoint of step %d is not used: %s", step, error)
                continue
            yield step, files

    def _steps(self) -> list[int]:
        """Steps of which there is something, latest first."""
        return sorted(map(int, filter(str.isdigit, self.location.children())), reverse=True)
