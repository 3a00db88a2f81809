"""A Prefect server for the time of one command, where no other is configured.

Prefect starts one of its own, but only when the first flow does, and to do so it imports the whole
server into the command. This one starts at once, beside the check of the inputs, and ends with the
command, however that ends. It answers nobody else: its login is known to the two alone.
"""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import time
from collections.abc import Callable

from compute.machine.leftovers import MARK, owned_folder
from flows.credentials import new_login
from flows.run_log import begin_log
from flows.services import (
    HOST,
    allowed_seconds,
    listen,
    start_prefect,
    use_api,
    wait_until_healthy,
)

__all__ = ["begin_server"]

_STOP_SECONDS = 5
# What Prefect tells the servers that it starts for one command: no page, only the services that
# keep what a flow reports, and no server below this one.
_EPHEMERAL = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}


def begin_server() -> Callable[[], None]:
    """Begin to start a server, if Prefect has no other, and give back what waits until it answers.

    The wait is to be called before a flow starts. The server listens on the loopback address only,
    and stops when this process ends.

    Raises
    ------
    BadInput
        If ``STRATA_START_SECONDS`` holds no positive number.
    RuntimeError
        By the wait, if the server has ended or does not answer in so many seconds.
    """
    from prefect.settings import get_current_settings

    begin_log()
    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return lambda: None
    deadline = time.monotonic() + allowed_seconds()
    login = new_login()
    listener = listen()
    url = f"http://{HOST}:{listener.getsockname()[1]}/api"
    # A session of its own: what Ctrl-C ends can still be told to the server.
    server = start_prefect(
        listener,
        login,
        os.environ | _EPHEMERAL | {MARK: str(owned_folder())},
        ["--with-starter", "--log-level", "error"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    # Registered before Prefect's own, and so called after them: they still have something to tell.
    atexit.register(_stop, server)
    use_api(url, login)
    complaint = (
        "the temporary Prefect server did not start: try `prefect server start`, and set "
        "PREFECT_API_URL to where it listens; on a busy machine, allow more time by "
        "STRATA_START_SECONDS."
    )
    return functools.partial(wait_until_healthy, url, server, deadline, complaint)


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.stdin is not None:
        server.stdin.close()
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
