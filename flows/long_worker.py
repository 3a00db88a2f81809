"""`prefect` for a service that runs for months: ``python -m flows.long_worker worker start …``.

Every run makes clients of Prefect's API, and every client a TLS context of two megabytes within a
cycle of references. Python frees these in a full collection only, which it puts off until a quarter
of all objects are new; beside Prefect's own modules that takes some twenty runs.
"""

from __future__ import annotations

import gc
import threading

__all__ = ["collect_every"]

_EVERY_SECONDS = 20.0


def collect_every(seconds: float) -> threading.Event:
    """Collect garbage in full, in a thread that ends with the process or once the event is set."""
    ended = threading.Event()

    def collect() -> None:
        while not ended.wait(seconds):
            gc.collect()

    threading.Thread(target=collect, daemon=True).start()
    return ended


def main() -> None:
    """Run Prefect's command line with a full collection every now and then."""
    from prefect.cli import app

    collect_every(_EVERY_SECONDS)
    app()


if __name__ == "__main__":
    main()
