"""Serving a recipe as a Prefect deployment with a nightly schedule."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.markup import escape

from flows.home import default_home
from flows.recipe import BadInput, Recipe
from flows.services import (
    HOST,
    Running,
    allowed_seconds,
    known_login,
    listen,
    login_of,
    login_path,
    start_prefect,
    use_api,
    wait_until_healthy,
    write_notes,
)

__all__ = ["nightly_schedule", "serve_nightly"]

_PORT = 4200


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
    with _server(announce):
        from flows.build import build

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
def _server(announce: Callable[[str], None]) -> Iterator[None]:
    """The configured Prefect server, that of `strata up`, or one started here for the block.

    One that just happens to answer is not used: whoever started it would run flows as this user.
    """
    home = default_home()
    url = f"http://{HOST}:{_PORT}/api"
    configured = os.environ.get("PREFECT_API_URL")
    login = None if configured else known_login(url, home)
    if configured or login is not None:
        use_api(configured or url, login)
        announce(f"Prefect UI: {(configured or url).removesuffix('/api')}")
        yield
        return
    deadline = time.monotonic() + allowed_seconds()
    login = login_of(home)
    try:
        listener = listen(_PORT)
    except BadInput as error:
        raise BadInput(f"{error} Free it, or set PREFECT_API_URL to a server of yours.") from error
    server = start_prefect(
        listener,
        login,
        os.environ | {"PREFECT_UI_API_URL": url},
        ["--with-starter"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    use_api(url, login)
    notes = home / "serve.json"
    try:
        write_notes(notes, [Running.begun("server", server, url.removesuffix("/api"))])
        complaint = (
            "the Prefect server did not start: try `prefect server start`; on a busy machine, "
            "allow more time by STRATA_START_SECONDS."
        )
        wait_until_healthy(url, server, deadline, complaint)
        announce(f"Prefect UI: {url.removesuffix('/api')}")
        announce(f"its password: cat {escape(str(login_path(home)))}")
        yield
    finally:
        server.terminate()
        server.wait(timeout=30)
        notes.unlink(missing_ok=True)
