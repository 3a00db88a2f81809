"""Prefect's server as Strata starts it: an attack from each side is refused."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import uvicorn
import websockets.sync.client
from starlette.testclient import TestClient

import flows.prefect_server
from flows.prefect_server import RetriedWhenLocked, closed, connection_type
from flows.services import listen, start_prefect, wait_until_healthy

LOGIN = "strata:right"
AUTHORIZATION = "Basic " + base64.b64encode(LOGIN.encode()).decode()
STRANGERS = {
    "without a password": {},
    "with a wrong password": {"Authorization": "Basic " + base64.b64encode(b"a:b").decode()},
    "from a page of another origin": {
        "Authorization": AUTHORIZATION,
        "Origin": "http://evil.example",
    },
    "from a page on another port": {
        "Authorization": AUTHORIZATION,
        "Origin": "http://127.0.0.1:1",
    },
    "from a page without an origin": {"Authorization": AUTHORIZATION, "Origin": "null"},
    "by a name that was bound to this address": {
        "Authorization": AUTHORIZATION,
        "Host": "evil.example:4200",
    },
}
SOCKETS = (
    "events/in",
    "events/out",
    "logs/out",
    "task_runs/subscriptions/scheduled",
    "work_pools/strata/workers/connect",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """URL of a server that knows one login, and the file of its log."""
    log = tmp_path_factory.mktemp("server") / "log"
    listener = listen()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment = kept | {"PREFECT_HOME": str(log.parent / "home"), "PREFECT_UI_API_URL": url}
    with log.open("wb") as stream:
        process = start_prefect(listener, LOGIN, environment, stdout=stream, stderr=stream)
    try:
        wait_until_healthy(f"{url}/api", process, time.monotonic() + 300, "no server")
        yield url, log
    finally:
        process.terminate()
        process.wait(60)
    assert "right" not in log.read_text()


@pytest.mark.server
@pytest.mark.parametrize("headers", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_makes_no_run(server, headers):
    """What was done through `strata up`: a deployment whose pull step is a shell command."""
    url, _ = server
    step = {"prefect.deployments.steps.run_shell_script": {"script": "touch /pwned"}}
    attack = (
        ("POST", "/api/flows/", {"name": "evil"}),
        ("POST", "/api/work_pools/", {"name": "evil", "type": "process"}),
        ("POST", "/api/deployments/", {"name": "evil", "flow_id": "0" * 32, "pull_steps": [step]}),
        ("POST", "/api/deployments/" + "0" * 32 + "/create_flow_run", {}),
        ("POST", "/api/flow_runs/filter", {}),
        ("GET", "/api/admin/settings", None),
        ("GET", "/api/version", None),
    )
    for method, path, body in attack:
        answer = httpx.request(method, url + path, json=body, headers=headers, timeout=60)
        assert answer.status_code in (400, 401, 403), (method, path, answer.text)
        assert "access-control-allow-origin" not in answer.headers
    own = {"Authorization": AUTHORIZATION}
    found = httpx.post(f"{url}/api/flows/filter", json={}, headers=own, timeout=60)
    assert "evil" not in [flow["name"] for flow in found.json()]
    assert found.status_code == 200


@pytest.mark.server
def test_every_route_wants_the_password(server):
    url, _ = server
    own = {"Authorization": AUTHORIZATION}
    schema = httpx.get(f"{url}/api/openapi.json", headers=own, timeout=120).json()
    routes = [(method, path) for path, methods in schema["paths"].items() for method in methods]
    assert len(routes) > 100
    with httpx.Client(base_url=f"{url}/api", timeout=60) as client:
        opened = [
            path
            for method, path in routes
            if client.request(method, path.replace("{", "").replace("}", "")).status_code != 401
        ]
    assert sorted(opened) == ["/health", "/ready"]
    outside = [httpx.get(url + path).status_code for path in ("/docs", "/redoc", "/openapi.json")]
    assert outside == [404, 404, 404]


async def echo(scope, receive, send):
    """Answers a request with a word, and a websocket's messages with themselves."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})
        return
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


def test_a_request_is_not_waited_for_and_a_socket_is_let_be(monkeypatch):
    monkeypatch.setattr(flows.prefect_server, "_CLIENT_SECONDS", 1.0)
    monkeypatch.setattr(flows.prefect_server, "_MOST_CLIENTS", 10)
    listener = listen()
    port = listener.getsockname()[1]
    config = uvicorn.Config(echo, lifespan="off", log_level="critical", http=connection_type())
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    with websockets.sync.client.connect(f"ws://127.0.0.1:{port}/", open_timeout=30) as opened:
        half = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(20)]
        for each in half:
            each.sendall(b"GET / HTTP/1.1\r\nHost:")
        # Told to come again where there are too many, and let go after a second otherwise.
        told = []
        for each in half:
            try:
                told.append(each.recv(100))
            except ConnectionResetError:
                told.append(b"")
            each.close()
        assert sum(word.startswith(b"HTTP/1.1 503") for word in told) >= 10
        assert b"" in told
        opened.send("still")
        assert opened.recv(30) == "still"
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=30).text == "here"
    server.should_exit = True
    thread.join(30)
    listener.close()


@pytest.mark.server
@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"subprotocols": ["prefect"]},
        {"subprotocols": ["prefect"], "origin": "http://evil.example"},
        {"subprotocols": ["prefect"], "additional_headers": {"Host": "evil.example"}},
    ],
    ids=["without a word", "with a wrong password", "from another origin", "by another name"],
)
def test_a_stranger_opens_no_socket(server, path, how):
    address = server[0].replace("http", "ws")
    token = LOGIN if "origin" in how or "additional_headers" in how else "wrong"

    def enter():
        with websockets.sync.client.connect(f"{address}/api/{path}", **how) as opened:
            opened.send(json.dumps({"type": "auth", "token": token}))
            return opened.recv(30)

    with pytest.raises(websockets.exceptions.WebSocketException):
        enter()


@pytest.mark.server
def test_its_own_pages_may_ask_by_another_of_its_names(server):
    """A person may open the page by either name of the loopback address."""
    url, _ = server
    page = url.replace("127.0.0.1", "localhost")
    preflight = {
        "Origin": page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = httpx.options(f"{url}/api/flows/filter", headers=preflight)
    assert answer.headers["access-control-allow-origin"] == page
    asked = {"Origin": page, "Authorization": AUTHORIZATION}
    assert httpx.post(f"{url}/api/flows/filter", json={}, headers=asked).is_success


@pytest.mark.server
def test_runs_that_are_submitted_at_once_are_all_taken(server):
    """SQLite refuses a writer that has read before another wrote; pages do not ask again."""
    from concurrent.futures import ThreadPoolExecutor

    url, _ = server
    with httpx.Client(
        base_url=f"{url}/api", headers={"Authorization": AUTHORIZATION}, timeout=120
    ) as client:
        flow = client.post("/flows/", json={"name": "many"}).json()["id"]

        def submit(number):
            body = {"name": f"d{number}", "flow_id": flow}
            return client.post("/deployments/", json=body).status_code

        with ThreadPoolExecutor(16) as threads:
            assert set(threads.map(submit, range(16))) == {201}


def test_it_does_not_start_without_a_password():
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.prefect_server", "--port", "1"]
    done = subprocess.run(command, env=kept, capture_output=True, text=True)
    assert done.returncode == 1
    assert "PREFECT_SERVER_API_AUTH_STRING is not set" in done.stderr


def test_a_port_is_taken_before_anyone_is_told_of_it():
    """Whoever else would answer there would be told the password."""
    with listen() as listener:
        port = listener.getsockname()[1]
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
        with pytest.raises(ValueError, match=f"port {port} is taken"):
            listen(port)


def answering(statuses, asked):
    """An application that answers with one status after another."""

    async def app(scope, receive, send):
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        asked.append(body + message["body"])
        status = statuses.pop(0)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": str(status).encode()})
        if status == 503:
            raise RuntimeError("as Prefect does, for its log")

    return app


def test_a_locked_database_is_asked_again_with_the_same_words():
    asked = []
    client = TestClient(RetriedWhenLocked(answering([503, 503, 200], asked)))
    assert client.post("/", content=b"a run").text == "200"
    assert asked == [b"a run"] * 3


def test_one_that_stays_locked_is_told(monkeypatch):
    from flows import prefect_server

    monkeypatch.setattr(prefect_server, "_FIRST_WAIT_SECONDS", 0.0)
    asked = []
    app = RetriedWhenLocked(answering([503] * 20, asked))
    client = TestClient(app, raise_server_exceptions=False)
    assert client.post("/", content=b"a run").status_code == 503
    assert 2 < len(asked) < 20


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("strata.example", None, 200),
        ("STRATA.example:4200", "http://strata.example:4200", 200),
        ("strata.example", "https://strata.example", 200),
        ("strata.example:4200", "http://strata.example", 403),
        ("strata.example", "http://strata.example.evil", 403),
        ("strata.example", "http://strata.example@evil", 403),
        ("strata.example", "http://[", 403),
        ("strata.example", "", 403),
        ("strata.example.evil", None, 400),
        ("evil", "http://evil", 400),
        ("", None, 400),
    ],
)
def test_only_its_names_and_its_pages_are_answered(host, origin, status):
    client = TestClient(closed(answering([200], []), ["strata.example"]))
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    assert client.get("/", headers=headers).status_code == status
