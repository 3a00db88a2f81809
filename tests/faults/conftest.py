import os
import subprocess
import sys
import time

import pytest

from tests.faults import cheap


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Every byte of the set that nobody disturbed."""
    return cheap.undisturbed(str(tmp_path_factory.mktemp("undisturbed") / "set"))


@pytest.fixture
def notes(tmp_path):
    """The folder in which a run notes what happened."""
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture
def start_driver(notes):
    """Start a driver of the cheap extraction in a process of its own."""
    started = []

    def start(url, *arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.cheap", str(url), str(notes), *arguments],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)
