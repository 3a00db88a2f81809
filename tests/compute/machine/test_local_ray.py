"""Ray on one machine listens to its user alone, leaves nothing behind, and waits for itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compute.machine import local_ray

RUN = """
import os, sys
from pathlib import Path
import psutil
from compute.cluster import connect, disconnect
from compute.machine.leftovers import owned_folder

connect()
import ray

token = os.environ["RAY_AUTH_TOKEN"]
assert ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote()) == token
me = psutil.Process()
family = [me, *me.children(recursive=True)]
for process in family:
    assert not any(token in argument for argument in process.cmdline()), process
    for connection in process.net_connections("inet"):
        if connection.status == "LISTEN":
            print("listens", connection.laddr.ip)
folder = owned_folder()
for path in folder.rglob("*"):
    if path.is_file():
        assert token.encode() not in path.read_bytes(), path
print("folder", folder, oct(folder.stat().st_mode))
disconnect()
"""


def own_environment(home):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "STRATA_"))}
    return kept | {"HOME": str(home), "RAY_worker_niceness": "0"}


def test_nobody_else_gets_to_it(tmp_path):
    """No socket but on the loopback address, no file with the token, no folder others may enter."""
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=own_environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    heard = {line[1] for line in told if line[0] == "listens"}
    assert heard == {"127.0.0.1", "::ffff:127.0.0.1"}
    ((_, folder, mode),) = [line for line in told if line[0] == "folder"]
    assert mode == "0o40700"
    assert not Path(folder).exists()
    assert not (tmp_path / ".ray").exists()


LATE = """
import ray
from compute.cluster import connect, disconnect

connect()
assert ray.get(ray.remote(lambda: 7).remote()) == 7
disconnect()
"""


def test_it_starts_where_ray_was_imported_before(tmp_path):
    """As in a run whose first step is there already: Ray had read its variables, and the driver
    came without a token to its own cluster for ten minutes."""
    subprocess.run(
        [sys.executable, "-c", LATE], env=own_environment(tmp_path), check=True, timeout=240
    )


SLOW = """
import os, signal, threading, time
import psutil

def hold(name, seconds):
    while True:
        for child in psutil.Process().children():
            if child.name() == name:
                child.suspend()
                time.sleep(seconds)
                child.resume()
                return
        time.sleep(0.002)

threading.Thread(target=hold, args=("raylet", 40.0), daemon=True).start()
from compute.cluster import connect, disconnect
begun = time.monotonic()
connect()
import ray
print(ray.get(ray.remote(lambda: 7).remote()), time.monotonic() - begun)
disconnect()
"""


@pytest.mark.slow
def test_a_raylet_that_takes_longer_than_half_a_minute_is_waited_for(tmp_path):
    """As on a machine with a load of 40, where Ray gave up and the run was `Crashed`."""
    done = subprocess.run(
        [sys.executable, "-c", SLOW], env=own_environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result, seconds = done.stdout.split()
    assert result == "7"
    assert float(seconds) > 35


FAILING = """
import ray
from compute import cluster
from compute.machine.leftovers import owned_folder

tries = []

def init(**options):
    tries.append(options)
    if len(tries) < {succeeds}:
        raise Exception("The current node timed out during startup.")

ray.init, ray.shutdown = init, lambda: None
cluster.connect()
print(len(tries))
"""


def test_a_failed_start_is_tried_again(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(succeeds=3)],
        env=own_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "3\n", done.stderr
    assert done.stderr.count("It is started again") == 2


def test_one_that_fails_for_good_says_what_to_do(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(succeeds=9)],
        env=own_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert "RuntimeError: Ray did not start on this machine, in 3 tries" in done.stderr
    assert "allow more time by STRATA_START_SECONDS" in done.stderr


@pytest.mark.parametrize("told", ["soon", "0", "-3", "nan", "inf", ""])
def test_a_wrong_limit_is_named(told, monkeypatch):
    monkeypatch.setenv("STRATA_START_SECONDS", told)
    with pytest.raises(ValueError, match=r"STRATA_START_SECONDS is .*: give seconds"):
        local_ray.start_seconds()


def test_all_of_rays_waits_follow_the_limit(monkeypatch):
    # An earlier test of this process may have started a Ray here, whose waits count as chosen.
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STRATA_START_SECONDS", "1000")
    monkeypatch.setenv("RAY_py_gcs_connect_timeout_s", "7")
    told = local_ray.environment_of_ray()
    assert told["RAY_raylet_start_wait_time_s"] == "1001"
    assert told["RAY_agent_register_timeout_ms"] == "1001000"
    assert "RAY_py_gcs_connect_timeout_s" not in told


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_is_there_is_used(name, monkeypatch):
    for other in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(other, raising=False)
    assert len(local_ray.environment_of_ray()["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setenv(name, "there")
    told = local_ray.environment_of_ray()
    assert "RAY_AUTH_TOKEN" not in told
    assert told["RAY_AUTH_MODE"] == "token"
