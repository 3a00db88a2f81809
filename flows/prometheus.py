"""What monitoring reads: flow runs by state, and the published artifacts, for Prometheus."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import urllib.request
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.artifacts import Registry

__all__ = ["METRICS", "render_metrics", "serve_metrics"]

_PAGE = 200
_TIMEOUT_SECONDS = 10
# Clients at one time, and how long each may take to ask and to take the answer.
_CLIENTS = 16
_CLIENT_SECONDS = 30
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

Sample = tuple[str, Mapping[str, str], float]

METRICS = {
    "strata_up": "Whether the Prefect API answers.",
    "strata_flow_runs": "Flow runs by flow and state.",
    "strata_artifact_readable": "Whether an artifact's records and newest manifest are whole.",
    "strata_artifact_versions": "Versions of an artifact.",
    "strata_artifact_created_seconds": "When the latest version was made, in Unix seconds.",
    "strata_artifact_explained_variance": "Explained variance of each level, latest version.",
    "strata_artifact_dead_share": "Share of concepts that are never active, latest version.",
}
"""Every metric and what it says."""


def render_metrics(api: str | None, store: str) -> str:
    """All metrics in Prometheus' text format.

    Parameters
    ----------
    api : str, optional
        URL of the Prefect API; without it, nothing is said of runs.
    store : str
        Where results lie.
    """
    lines: list[str] = []
    said: set[str] = set()
    samples = [*(_runs(api) if api else ()), *_artifacts(store)]
    for name, labels, value in sorted(samples, key=lambda sample: sample[0]):
        if name not in said:
            lines += [f"# HELP {name} {METRICS[name]}", f"# TYPE {name} gauge"]
            said.add(name)
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:g}")
    return "\n".join(lines) + "\n"


def serve_metrics(host: str, port: int, store: str) -> None:
    """Serve ``/metrics`` and ``/health`` until the process ends.

    On the loopback address to requests by its own names only: a page in a browser of this machine
    may have another name bound to it, and would read the answer.
    """
    api = os.environ.get("PREFECT_API_URL")
    # One scrape at a time: each reads the API and the store.
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = re.sub(r":\d*$", "", self.headers.get("Host", "")).strip("[]")
            if host in _LOOPBACK and asked not in _LOOPBACK:
                self._answer(400, "ask by the address of this machine\n")
            elif self.path == "/health":
                self._answer(200, "ok\n")
            elif self.path == "/metrics":
                with turn:
                    text = render_metrics(api, store)
                # A client that does not take its answer keeps no other one waiting.
                self._answer(200, text)
            else:
                self._answer(404, "there are /metrics and /health\n")

        def _answer(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing: a scrape every few seconds is no news."""

    with BoundedServer((host, port), Handler) as server:
        server.serve_forever()


class BoundedServer(ThreadingHTTPServer):
    """A server that has a thread for a few clients at a time, and for each of them not for long."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._free = threading.BoundedSemaphore(_CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or close the connection if there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and close the connection when its time is over."""
        late = threading.Timer(_CLIENT_SECONDS, _hang_up, [request])
        late.daemon = True
        late.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            late.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up; all else is printed."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


def _runs(api: str) -> Iterator[Sample]:
    try:
        flows = {flow["id"]: flow["name"] for flow in _pages(api, "flows")}
        counts: Counter[tuple[str, str]] = Counter()
        for run in _pages(api, "flow_runs"):
            state = str(run.get("state_name") or "unknown").lower()
            counts[flows.get(run["flow_id"], "?"), state] += 1
    except OSError:
        yield "strata_up", {}, 0.0
        return
    yield "strata_up", {}, 1.0
    for (flow, state), count in sorted(counts.items()):
        yield "strata_flow_runs", {"flow": flow, "state": state}, float(count)


def _pages(api: str, kind: str) -> Iterator[dict[str, Any]]:
    offset = 0
    while found := _post(f"{api}/{kind}/filter", {"limit": _PAGE, "offset": offset}):
        yield from found
        offset += len(found)
        if len(found) < _PAGE:
            return


def _post(url: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    if secret := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {b64encode(secret.encode()).decode()}"
    elif key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
        found: list[dict[str, Any]] = json.load(answer)
    return found


def _artifacts(store: str) -> Iterable[Sample]:
    from obstore.exceptions import BaseError

    from storage.artifacts import BadSignature, Registry
    from storage.locations import Location

    registry = Registry((Location(store) / "artifacts").url)
    for name in registry.names():
        # One that is damaged hides no other.
        try:
            found = list(_artifact(registry, name))
        except (ValueError, KeyError, OSError, BadSignature, BaseError):
            yield "strata_artifact_readable", {"name": name}, 0.0
            continue
        yield "strata_artifact_readable", {"name": name}, 1.0
        yield from found


def _artifact(registry: Registry, name: str) -> Iterator[Sample]:
    versions = registry.versions(name)
    if not versions:
        return
    yield "strata_artifact_versions", {"name": name}, float(len(versions))
    # Files are not hashed for every scrape.
    latest = registry.load(name, versions[-1].version, verify=False).manifest
    yield "strata_artifact_created_seconds", {"name": name}, latest.created_at.timestamp()
    for level in latest.levels:
        labels = {"name": name, "level": level.name}
        for metric in ("explained_variance", "dead_share"):
            value = level.metrics.get(metric)
            if isinstance(value, int | float):
                yield f"strata_artifact_{metric}", labels, float(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
