"""The server of one command answers, ends with it, and is not started beside another."""

import os
import signal
import subprocess
import sys

import httpx
import psutil
import pytest

from flows.services import healthy
from tests.live import wait_until

BEGIN = """
import os, sys
from flows.temporary_server import begin_server
wait = begin_server()
print(os.environ.get("PREFECT_API_URL"), flush=True)
wait()
print("answers", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def begin(tmp_path):
    def begin(script=BEGIN, **environment):
        kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env=kept | {"PREFECT_HOME": str(tmp_path)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    started = []
    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("end", ["return", "kill"])
def test_it_ends_with_the_command_however_that_ends(begin, end):
    command = begin()
    url = command.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    assert command.stdout.readline().strip() == "answers"
    assert healthy(url)
    if end == "kill":
        command.send_signal(signal.SIGKILL)
    else:
        command.stdin.write("\n")
        command.stdin.flush()
    wait_until(lambda: not healthy(url), 30)
    command.wait(30)


def test_its_login_is_the_commands_alone(begin):
    command = begin(
        BEGIN.replace("wait()\n", "print(os.environ['PREFECT_API_AUTH_STRING']); wait()\n")
    )
    url, login, _ = (command.stdout.readline().strip() for _ in range(3))
    asked = {"url": f"{url}/flows/filter", "json": {}, "timeout": 60}
    assert httpx.post(**asked).status_code == 401
    assert httpx.post(**asked, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.post(**asked, auth=tuple(login.split(":"))).status_code == 200
    (server,) = psutil.Process(command.pid).children()
    assert not any(login.split(":")[1] in argument for argument in server.cmdline())


def test_none_is_started_beside_a_configured_one(begin):
    command = begin(PREFECT_API_URL="http://127.0.0.1:9/api")
    told = command.communicate(timeout=60)
    assert told[0].split() == ["http://127.0.0.1:9/api", "answers"]


def test_one_that_does_not_start_is_told(begin):
    script = BEGIN.replace("wait = ", "sys.executable = '/bin/false'; wait = ")
    told = begin(script).communicate(timeout=60)[1]
    assert "the temporary Prefect server did not start" in told
