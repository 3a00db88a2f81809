"""Prefect's server, closed to strangers: ``python -m flows.prefect_server --host … --port …``.

Prefect's own command takes any `Host`, answers pages of any origin, and runs without a password.
Whoever may talk to the API runs shell commands on the workers, and so might every page that a
person opens. This one does not start without a password, answers only to its own names and its own
pages, and waits for no client for long.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["OnlyOwnPages", "RetriedWhenLocked", "closed", "connection_type"]

_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"  # noqa: S105
_ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
# Pages without a password that load scripts from elsewhere, and a schema whose writing holds
# everything else up for seconds; below /api they are there for who has the password.
_HIDDEN = frozenset(("/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"))
_TRIES = 8
_MOST_CLIENTS = 10_000
# For a whole request, and for the next piece of an answer; it may be busy itself for long.
_CLIENT_SECONDS = 60.0
_FIRST_WAIT_SECONDS = 0.05


def closed(app: ASGIApp, names: Sequence[str]) -> ASGIApp:
    """An application that answers to these names and to pages that were loaded from them.

    Parameters
    ----------
    app
        What answers: a web application by the ASGI protocol.
    names : sequence of str
        Host names and addresses by which it may be asked for, without ports.
    """
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # Around Prefect's application rather than in it: the server asks that one itself, by a name of
    # its own and not by the network.
    return TrustedHostMiddleware(
        OnlyOwnPages(RetriedWhenLocked(app), names), allowed_hosts=list(names), www_redirect=False
    )


class OnlyOwnPages:
    """Refuses what a page of another origin asks for, by websocket too, whatever it knows.

    A browser says by itself where a page comes from; programs say nothing and are not refused. What
    no page of its own needs, but would be given without a password, is not there.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] in ("http", "websocket"):
            from starlette.datastructures import Headers
            from starlette.responses import PlainTextResponse

            headers = Headers(scope=scope)
            origin = headers.get("origin")
            refusal = None
            if origin is not None and not self._own(origin, headers.get("host", "")):
                refusal = PlainTextResponse("pages of another origin are refused", 403)
            elif scope["path"] in _HIDDEN:
                refusal = PlainTextResponse("not found", 404)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _own(self, origin: str, host: str) -> bool:
        try:
            page, asked = urlsplit(origin), urlsplit(f"//{host}")
            return page.hostname in self._names and page.port == asked.port
        except ValueError:
            return False


class RetriedWhenLocked:
    """Asks again what the server could not do because its database was locked.

    SQLite lets one write at a time, and refuses a reader that would write after another one did
    without waiting for its busy time. Prefect answers 503 then, having undone what it began, and
    leaves it to the client to ask again, which its own clients do and its pages do not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked: list[Message] = []
        if not await self._attempt(scope, receive, send, asked):
            return
        # One after another: those that met once would meet again.
        async with self._turn:
            for tries in range(1, _TRIES):
                if not await self._attempt(scope, receive, send, asked):
                    return
                await asyncio.sleep(_FIRST_WAIT_SECONDS * 2**tries)
        await self._attempt(scope, receive, send, asked, last=True)

    async def _attempt(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        asked: list[Message],
        *,
        last: bool = False,
    ) -> bool:
        """Pass a request on, once more from its beginning, and say whether it was refused."""
        refused = False
        again = iter(list(asked))

        async def repeat() -> Message:
            for message in again:
                return message
            message = await receive()
            if message["type"] == "http.request":
                asked.append(message)
            return message

        async def hold_back(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and not last:
                refused = message["status"] == 503
            if not refused:
                await send(message)

        try:
            # A scope of its own: applications write into theirs.
            await self._app(dict(scope), repeat, hold_back)
        except Exception:
            # Raised for the log, once the answer is given.
            if not refused:
                raise
        return refused


def connection_type() -> type[asyncio.Protocol]:
    """What the server makes of each connection: one that no client holds open at its leisure."""
    from storage.connections import BoundedConnection, Bounds

    # Some files are left for the database, whoever connects.
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    bounds = Bounds(min(files * 3 // 4, _MOST_CLIENTS), _CLIENT_SECONDS, _CLIENT_SECONDS)

    class Connection(BoundedConnection):
        def bounds(self) -> Bounds:
            return bounds

    return Connection


def main() -> None:
    """Serve until told to end."""
    options = _options()
    if not os.environ.get(_PASSWORD):
        sys.exit(f"{_PASSWORD} is not set: set it to user:password; without, anyone may run code.")
    port = options.listener.getsockname()[1] if options.listener else options.port
    # Read by Prefect when it is imported. Its pages ask the API by another of its names.
    os.environ[_ORIGINS] = ",".join(f"http://{name}:{port}" for name in options.name)
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    settings = get_current_settings().server
    server = uvicorn.Server(
        uvicorn.Config(
            closed(create_app(final=True), options.name),
            host=options.host,
            port=port,
            http=connection_type(),
            lifespan="on",
            log_level=options.log_level,
            timeout_keep_alive=settings.api.keepalive_timeout,
            ws_ping_interval=settings.api.websocket_ping_interval,
            ws_ping_timeout=settings.api.websocket_ping_timeout,
        )
    )
    if options.with_starter:
        threading.Thread(target=_end_with_the_starter, args=[server], daemon=True).start()
    server.run(sockets=[options.listener] if options.listener else None)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.prefect_server")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=4200, help="port to listen on")
    parser.add_argument(
        "--listener",
        metavar="FD",
        type=lambda number: socket.socket(fileno=int(number)),
        help="a socket that listens already, instead of an address and a port",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=["127.0.0.1", "localhost"],
        help="a host name by which it may be asked for; those of the loopback address always are",
    )
    parser.add_argument("--log-level", default="info")
    parser.add_argument(
        "--with-starter", action="store_true", help="end when the standard input closes"
    )
    return parser.parse_args()


def _end_with_the_starter(server: Any) -> None:
    # The other end closes when the starter ends, even if it is killed.
    sys.stdin.buffer.read()
    if not server.started:
        os._exit(0)
    server.should_exit = True


if __name__ == "__main__":
    main()
