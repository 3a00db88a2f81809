"""Requests per second that the artifacts' HTTP service answers on the loopback address.

``python -m tests.benchmarks.service_speed`` publishes a version, serves it from a process of its
own, asks from eight threads for the kinds of answers there are, and writes
``results/service_speed.csv``.
"""

from __future__ import annotations

import csv
import platform
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from storage.artifacts import Registry
from storage.graph.concept_graph import ConceptGraph, concept_ids

CLIENTS = 8
RESULTS = Path(__file__).parent / "results" / "service_speed.csv"


def publish(folder: Path, n_concepts: int = 2000, n_edges: int = 10_000) -> None:
    """A version of two levels with random edges and a page of a megabyte."""
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, n_concepts, (n_edges, 2)), axis=0)
    graph = ConceptGraph.from_columns(
        {"level": np.repeat([1, 2], n_concepts), "index": np.tile(np.arange(n_concepts), 2)},
        {
            "source": concept_ids(1, pairs[:, 0]),
            "target": concept_ids(2, pairs[:, 1]),
            "strength": rng.random(len(pairs)),
            "confidence": rng.random(len(pairs)),
        },
    )
    files = {f"graph/{path}": data for path, data in graph.files().items()}
    files["report.html"] = b"<!doctype html>" + b"x" * 1_000_000
    Registry(folder).publish("toy", files, fingerprint="1")


def ask(port: int, path: str, seconds: float, headers: dict[str, str]) -> int:
    """How many answers one client gets on one connection."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    answered, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 304), answer.status
        answered += 1
    return answered


def measure(seconds: float = 4.0) -> list[dict[str, str | float]]:
    """Requests per second by kind of answer."""
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start = f"from storage.service import serve; serve({folder!r}, port={port})"
        server = subprocess.Popen([sys.executable, "-c", start])
        try:
            while True:
                try:
                    ask(port, "/artifacts", 0.2, {})
                    break
                except OSError:
                    assert server.poll() is None
                    time.sleep(0.1)
            return [_rate(port, kind, path, seconds) for kind, path in KINDS]
        finally:
            server.terminate()
            server.wait()


KINDS = (
    ("names", "/artifacts"),
    ("manifest", "/artifacts/toy/versions/latest"),
    ("node", "/artifacts/toy/versions/1/nodes/2:5"),
    ("page of 1 MB", "/artifacts/toy/1/"),
    ("page not changed", "/artifacts/toy/1/"),
)


def _rate(port: int, kind: str, path: str, seconds: float) -> dict[str, str | float]:
    headers = {}
    if kind == "page not changed":
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        headers["If-None-Match"] = answer.headers["ETag"]
    # The first answer reads the graph.
    ask(port, path, 0.1, headers)
    with ThreadPoolExecutor(CLIENTS) as pool:
        begun = time.monotonic()
        jobs = [pool.submit(ask, port, path, seconds, headers) for _ in range(CLIENTS)]
        answered = sum(job.result() for job in jobs)
        spent = time.monotonic() - begun
    return {"answer": kind, "requests_per_second": round(answered / spent, 1)}


def main() -> None:
    """Measure and write the table."""
    rows = measure()
    machine = f"{platform.machine()}, {platform.python_version()}, {CLIENTS} clients"
    with RESULTS.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["answer", "requests_per_second", "machine", "command"])
        writer.writeheader()
        for row in rows:
            command = "python -m tests.benchmarks.service_speed"
            writer.writerow(row | {"machine": machine, "command": command})


if __name__ == "__main__":
    main()
