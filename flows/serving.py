"""Serving a recipe as a Prefect deployment with a nightly schedule."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from flows.recipe import BadInput, Recipe

__all__ = [
    "HOST",
    "healthy",
    "local_server",
    "nightly_schedule",
    "serve_nightly",
    "wait_until_healthy",
]

HOST = "127.0.0.1"
_PORT = 4200
_START_SECONDS = 120


def nightly_schedule(cron: str, timezone: str) -> Any:
    """A Prefect schedule.

    Raises
    ------
    BadInput
        If the schedule or the time zone is not one.
    """
    from prefect.client.schemas.schedules import CronSchedule

    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        raise BadInput(
            f"schedule {cron!r} in {timezone!r} is not valid: give five cron fields and a time "
            "zone such as Europe/Berlin."
        ) from error


def serve_nightly(
    recipe: Recipe, *, cron: str, timezone: str, announce: Callable[[str], None]
) -> None:
    """Register the recipe as the deployment ``build/NAME`` and run what is triggered, until ended.

    Raises
    ------
    BadInput
        If the schedule or the time zone is not one.
    """
    from prefect.types.entrypoint import EntrypointType

    schedule = nightly_schedule(cron, timezone)
    with local_server() as url:
        from flows.build import build

        announce(f"Prefect UI: {url.removesuffix('/api')}")
        announce(f"deployment: build/{recipe.name}, scheduled {cron!r} ({timezone})")
        build.serve(
            name=recipe.name,
            parameters={"recipe": recipe.model_dump(mode="json")},
            schedules=[schedule],
            description=recipe.description,
            tags=["strata", recipe.name],
            # One model at a time: a second run waits for the first.
            limit=1,
            # By module, so that a run finds the flow from whatever folder it is started in.
            entrypoint_type=EntrypointType.MODULE_PATH,
            print_starting_message=False,
        )


@contextlib.contextmanager
def local_server() -> Iterator[str]:
    """The API's URL: of the configured Prefect server, or of one started here for the block.

    The server started here listens on the loopback address only.
    """
    configured = os.environ.get("PREFECT_API_URL")
    if configured:
        yield configured
        return
    url = f"http://{HOST}:{_PORT}/api"
    # Before anything of Prefect is imported, so that this process talks to that server.
    os.environ["PREFECT_API_URL"] = url
    if healthy(url):
        yield url
        return
    with socket.socket() as probe:
        if probe.connect_ex((HOST, _PORT)) == 0:
            raise BadInput(
                f"port {_PORT} is taken by something that is no Prefect server: free it, or set "
                "PREFECT_API_URL."
            )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST]
    server = subprocess.Popen(  # noqa: S603
        [*command, "--port", str(_PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _START_SECONDS
        wait_until_healthy(
            url, server, deadline, "the Prefect server did not start: try `prefect server start`."
        )
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_until_healthy(
    url: str, server: subprocess.Popen[bytes], deadline: float, complaint: str
) -> None:
    """Wait until a server answers at `url`.

    Raises
    ------
    RuntimeError
        With the complaint, if it has ended, or the monotonic clock has passed the deadline.
    """
    while not healthy(url):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(complaint)
        time.sleep(0.05)


def healthy(url: str) -> bool:
    """Whether the Prefect API at `url` answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False
