"""A Prefect server for the time of one command, where no other is configured.

Prefect starts one of its own, but only when the first flow does, and to do so it imports the whole
server into the command. This one starts at once, beside the check of the inputs, and ends with the
command, however that ends.
"""

from __future__ import annotations

import atexit
import functools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from flows.serving import HOST, wait_until_healthy

__all__ = ["begin_server"]

_STOP_SECONDS = 5
# What Prefect tells the servers that it starts for one command: no page, only the services that
# keep what a flow reports, and no server below this one.
_EPHEMERAL = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


def begin_server() -> Callable[[], None]:
    """Begin to start a server, if Prefect has no other, and give back what waits until it answers.

    The wait is to be called before a flow starts. The server listens on the loopback address only,
    and stops when this process ends.

    Raises
    ------
    RuntimeError
        By the wait, if the server has ended or does not answer in the time that Prefect's setting
        ``server.ephemeral.startup_timeout_seconds`` gives.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    ephemeral = settings.server.ephemeral
    if settings.api.url or not ephemeral.enabled:
        return lambda: None
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    # A session of its own: what Ctrl-C ends can still be told to the server.
    server = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "flows.temporary_server", str(port)],
        env=os.environ | _EPHEMERAL,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    # Registered before Prefect's own, and so called after them: they still have something to tell.
    atexit.register(_stop, server)
    url = os.environ["PREFECT_API_URL"] = f"http://{HOST}:{port}/api"
    refresh_global_settings_context()
    deadline = time.monotonic() + ephemeral.startup_timeout_seconds

    complaint = (
        "the temporary Prefect server did not start: try `prefect server start`, and set "
        "PREFECT_API_URL to where it listens."
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


def _serve(port: int) -> None:
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            "prefect.server.api.server:create_app",
            factory=True,
            host=HOST,
            port=port,
            log_level="error",
            lifespan="on",
        )
    )

    def end_with_the_command() -> None:
        # The other end closes when the command ends, even if it is killed.
        sys.stdin.buffer.read()
        if not server.started:
            os._exit(0)
        server.should_exit = True

    threading.Thread(target=end_with_the_command, daemon=True).start()
    server.run()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
