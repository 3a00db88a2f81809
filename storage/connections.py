"""Connections of an HTTP service that no client can hold open at its leisure.

uvicorn closes a connection that is idle after an answer. A client that sends half a request, or
takes no more of an answer, it waits for without end; and every connection costs memory.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["CLIENTS", "REQUEST_SECONDS", "STALL_SECONDS", "BoundedConnection", "Bounds"]

CLIENTS = 256
"""Connections at one time; the next one is told to come again."""
REQUEST_SECONDS = 10.0
"""A whole request must have come so long after the connection was made or the last answer sent."""
STALL_SECONDS = 30.0
"""A client must take the next 64 KiB or less of an answer in this time."""

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n"
)


class Bounds(NamedTuple):
    """How many connections there may be, and how long one may keep the service waiting."""

    clients: int
    request_seconds: float
    stall_seconds: float


class BoundedConnection(H11Protocol):
    """One connection, looked at every second and ended when its client keeps it waiting.

    A websocket is let be, once it is one.
    """

    _waiting_since: float
    _paused_since: float | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch; beyond :data:`CLIENTS`, answer 503 and end."""
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        if len(self.connections) > self.bounds().clients:
            transport.write(_BUSY)
            transport.close()
        self._watch()

    def bounds(self) -> Bounds:
        """What holds for all connections of this kind."""
        return Bounds(CLIENTS, REQUEST_SECONDS, STALL_SECONDS)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Cease to watch: another protocol has the connection from here on."""
        if self._timer is not None:
            self._timer.cancel()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cease to watch."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request from now on."""
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client takes less than is sent: see how long."""
        self._paused_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        self._paused_since = None
        super().resume_writing()

    def _watch(self) -> None:
        if self._is_overdue():
            # close() would wait for the client to take what is left.
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(1, self._watch)

    def _is_overdue(self) -> bool:
        now, bounds = self.loop.time(), self.bounds()
        if self._paused_since is not None:
            return now - self._paused_since > bounds.stall_seconds
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        left = self.transport.get_write_buffer_size()
        return now - self._waiting_since > (
            bounds.stall_seconds if left else bounds.request_seconds
        )
