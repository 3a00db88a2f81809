"""Services are known again, and only a server that still runs is told its password."""

import os
import subprocess
import sys

import psutil
import pytest

from flows.services import (
    Running,
    _since_boot,
    allowed_seconds,
    known_login,
    login_of,
    login_path,
    write_notes,
)

API = "http://127.0.0.1:4200/api"


def me(**changes):
    values = {"name": "server", "pid": os.getpid(), "started": _since_boot(psutil.Process())}
    return Running(**values | {"address": API.removesuffix("/api")} | changes)


def test_a_service_is_known_again_after_the_clock_was_set(monkeypatch):
    """The system counts a process' age from its start, which it moves with the clock."""
    service = me()
    boot = psutil._psplatform.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot + 3600)
    assert psutil.boot_time() == boot + 3600
    assert service.alive


def test_another_process_of_the_same_number_is_another():
    assert not me(started=_since_boot(psutil.Process()) - 60).alive


@pytest.mark.parametrize("notes", ["stack.json", "serve.json"])
@pytest.mark.parametrize("asked", [API, "http://localhost:4200/api"])
def test_commands_find_the_password_of_a_server_of_this_home(notes, asked, tmp_path):
    login = login_of(tmp_path)
    assert known_login(asked, tmp_path) is None
    write_notes(tmp_path / notes, [me(name="worker", address=""), me()])
    assert known_login(asked, tmp_path) == login == login_path(tmp_path).read_text()


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        (API, {"started": 0.0}),
        ("http://127.0.0.1:42001/api", {}),
        ("http://127.0.0.1:4200.evil.example/api", {}),
        ("http://127.0.0.1:4200@evil.example/api", {}),
        ("http://evil.example:4200/api", {}),
        ("https://127.0.0.1:4200/api", {}),
    ],
)
def test_nobody_else_is_told_it(asked, changes, tmp_path):
    """Not whoever took the port after the server had ended, nor one with a similar address."""
    login_of(tmp_path)
    write_notes(tmp_path / "stack.json", [me(**changes)])
    assert known_login(asked, tmp_path) is None


def test_the_command_line_finds_it_too(tmp_path, monkeypatch):
    from flows import cli

    monkeypatch.setenv("STRATA_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", API)
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    login = login_of(tmp_path)
    write_notes(tmp_path / "stack.json", [me()])
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    assert os.environ["PREFECT_API_AUTH_STRING"] == login
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "a:b")
    cli.main()
    assert os.environ["PREFECT_API_AUTH_STRING"] == "a:b"


def test_a_wrong_limit_is_named(monkeypatch):
    monkeypatch.setenv("STRATA_START_SECONDS", "soon")
    with pytest.raises(ValueError, match="STRATA_START_SECONDS is 'soon'"):
        allowed_seconds()


def test_serving_joins_no_server_that_just_answers(tmp_path):
    """Whoever has the port would have this user run flows for him."""
    program = (
        "import http.server, threading\n"
        "from flows import serving\n"
        "from flows.recipe import BadInput\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "serving._PORT = server.server_port\n"
        "try:\n"
        "    with serving._server(print): print('joined')\n"
        "except BadInput as error: print(error)\n"
    )
    kept = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | {"STRATA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "is taken by another program. Free it, or set PREFECT_API_URL" in done.stdout
