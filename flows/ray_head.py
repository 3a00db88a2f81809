"""`ray start` for a service that runs for months: ``python -m flows.ray_head start --head …``.

For its user alone: on the loopback address, with its session in a private folder that goes with it.
Without Ray's client server: nothing here speaks to it, it cannot be left out by an option, and on a
busy machine it gives up after half a minute and takes the whole of Ray with it. And with an end to
the logs of workers: Ray keeps four files of every process that ever worked, for as long as it runs.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from compute.machine.leftovers import owned_folder
from compute.machine.local_ray import environment_of_ray, patience

__all__ = ["clear_logs"]

# Processes that have ended and whose logs are still there to be read.
_KEPT = 20
_EVERY_SECONDS = 60
_OF_PROCESS = re.compile(r"(?:worker|driver|EXPORT_TASK|CORE_WORKER)\S*[-_](\d+)\.(?:log|out|err)")


def clear_logs(folder: Path, kept: int = _KEPT) -> None:
    """Remove the logs of workers below a folder, but those of live ones and of the last to end."""
    by_process: dict[int, list[Path]] = {}
    for path in folder.rglob("*"):
        found = _OF_PROCESS.search(path.name)
        if found and path.is_file():
            by_process.setdefault(int(found[1]), []).append(path)
    ended = [number for number in by_process if not psutil.pid_exists(number)]
    ended.sort(key=lambda number: max(map(_changed, by_process[number])), reverse=True)
    for number in ended[kept:]:
        for path in by_process[number]:
            path.unlink(missing_ok=True)


def main() -> None:
    """Run Ray's command line as on a machine that has no Ray client."""
    os.environ.update(environment_of_ray())
    from ray.scripts import scripts

    folder = owned_folder()
    sessions = folder / "ray"
    threading.Thread(target=_keep_clear, args=[sessions], daemon=True).start()
    commands: Any = scripts
    commands.get_ray_client_dependency_error = lambda: ImportError("left out")
    sys.argv += ["--temp-dir", str(sessions)]
    with patience(folder):
        commands.main()


def _keep_clear(sessions: Path) -> None:
    while True:
        time.sleep(_EVERY_SECONDS)
        clear_logs(sessions / "session_latest" / "logs")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


if __name__ == "__main__":
    main()
