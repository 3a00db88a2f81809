"""What Prometheus reads of runs and artifacts."""

import contextlib
import json
import socket
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from flows.prometheus import render_metrics
from storage.artifacts import Registry

RUNS = [{"flow_id": "f", "state_name": "Completed"}] * 250
RUNS += [{"flow_id": "f", "state_name": "Late"}, {"flow_id": "g", "state_name": None}]


class Api(BaseHTTPRequestHandler):
    """As much of the Prefect API as is asked."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/flows/filter":
            found = [{"id": "f", "name": 'night"ly'}]
        else:
            found = RUNS[asked["offset"] : asked["offset"] + asked["limit"]]
        body = json.dumps(found).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_runs_are_counted_over_all_pages(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = render_metrics(f"http://127.0.0.1:{server.server_port}/api", str(tmp_path))
        server.shutdown()
    lines = text.splitlines()
    assert 'strata_flow_runs{flow="night\\"ly",state="completed"} 250' in lines
    assert 'strata_flow_runs{flow="night\\"ly",state="late"} 1' in lines
    assert 'strata_flow_runs{flow="?",state="unknown"} 1' in lines
    assert "strata_up 1" in lines


def test_an_absent_api_is_said_and_does_not_hide_the_artifacts(tmp_path):
    registry = Registry(f"file://{tmp_path}/artifacts")
    level = {"level": 1, "name": "layer-01", "n_concepts": 4, "d": 2}
    registry.publish(
        "words",
        {"dictionaries/layer-01/cfg.json": b"{}"},
        fingerprint="a" * 16,
        levels=[level | {"metrics": {"explained_variance": 0.75, "dead_share": 0.0}}],
    )
    lines = render_metrics("http://127.0.0.1:9/api", str(tmp_path)).splitlines()
    assert "strata_up 0" in lines
    assert 'strata_artifact_versions{name="words"} 1' in lines
    assert 'strata_artifact_explained_variance{name="words",level="layer-01"} 0.75' in lines


def test_an_artifact_that_is_damaged_hides_no_other(tmp_path):
    registry = Registry(tmp_path / "artifacts")
    level = {"level": 1, "name": "low", "n_concepts": 4, "d": 2, "metrics": {"dead_share": "none"}}
    for name in ("bad", "good", "worse"):
        files = {"dictionaries/low/cfg.json": b"{}"}
        registry.publish(name, files, fingerprint="a", levels=[level])
    (tmp_path / "artifacts/bad/records/00000001.json").write_text("{")
    (manifest,) = (tmp_path / "artifacts/worse/versions").glob("*/manifest.json")
    manifest.unlink()
    lines = render_metrics(None, str(tmp_path)).splitlines()
    told = [line for line in lines if line.startswith("strata_artifact_readable")]
    assert told == [
        'strata_artifact_readable{name="bad"} 0',
        'strata_artifact_readable{name="good"} 1',
        'strata_artifact_readable{name="worse"} 0',
    ]
    assert [line for line in lines if line.startswith("strata_artifact_versions")] == [
        'strata_artifact_versions{name="good"} 1'
    ]
    assert not any(line.startswith("strata_artifact_dead_share") for line in lines)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """URL of the metrics of an empty store."""
    from flows import prometheus as metrics

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    ready = threading.Event()
    opened = []

    class Server(metrics.BoundedServer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            opened.append(self)
            ready.set()

    monkeypatch.setattr(metrics, "BoundedServer", Server)
    thread = threading.Thread(
        target=metrics.serve_metrics, args=("127.0.0.1", 0, str(tmp_path)), daemon=True
    )
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{opened[0].server_port}"
    opened[0].shutdown()
    thread.join(10)


def test_the_server_answers(served):
    with urllib.request.urlopen(f"{served}/health", timeout=10) as answer:
        assert answer.read() == b"ok\n"
    with urllib.request.urlopen(f"{served}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_clients_that_ask_slowly_are_few_and_not_for_long(served, monkeypatch):
    from flows import prometheus as metrics

    monkeypatch.setattr(metrics, "_CLIENT_SECONDS", 1)
    port = int(served.rsplit(":", 1)[1])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for each in slow:
        each.settimeout(20)
        with contextlib.suppress(OSError):
            each.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
    for each in slow:
        # Closed at once where there are too many, and after a second otherwise.
        with contextlib.suppress(ConnectionResetError):
            assert each.recv(1) == b""
        each.close()
    assert threading.active_count() < 40
    with urllib.request.urlopen(f"{served}/metrics", timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("evil.example", 400),
        ("127.0.0.1.evil.example:9464", 400),
        ("[", 400),
        ("", 400),
        ("localhost:1", 200),
    ],
)
def test_a_foreign_name_is_refused_on_the_loopback_address(served, name, status):
    answer = httpx.get(f"{served}/metrics", headers={"Host": name})
    assert answer.status_code == status
