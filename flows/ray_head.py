"""`ray start` without Ray's client server: ``python -m flows.ray_head start --head …``.

Nothing here speaks to that server, it cannot be left out by an option, and on a busy machine it
gives up after half a minute and takes the whole of Ray with it.
"""

from __future__ import annotations

from typing import Any

from ray.scripts import scripts


def main() -> None:
    """Run Ray's command line as on a machine that has no Ray client."""
    commands: Any = scripts
    commands.get_ray_client_dependency_error = lambda: ImportError("left out")
    commands.main()


if __name__ == "__main__":
    main()
