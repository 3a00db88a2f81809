"""A private folder that goes with its process, or with the next command; the living's stay."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from compute.machine.leftovers import clear_leftovers, end_processes

# An owner with a process that is to end with it, and one that ignores being told to.
OWNER = """
import os, subprocess, sys
from compute.machine.leftovers import MARK, owned_folder
folder = owned_folder()
(folder / "kept").write_text("by its owner")
marked = os.environ | {MARK: str(folder)}
sleep = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", sleep], env=marked, start_new_session=True)
print(folder, child.pid, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def temporary(monkeypatch):
    """A temporary directory of the test's own, with a name as short as Ray needs it."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def begin(temporary):
    started = []

    def begin():
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        folder, child = process.stdout.readline().split()
        return process, Path(folder), psutil.Process(int(child))

    yield begin
    for process in started:
        process.kill()
        process.wait()


def test_it_is_private_and_goes_with_its_process(begin):
    process, folder, child = begin()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    process.communicate("\n", timeout=60)
    assert not folder.exists()
    assert not child.is_running()


def test_what_a_killed_process_left_goes_and_the_living_keep_theirs(begin):
    killed, left, orphan = begin()
    living, kept, child = begin()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert clear_leftovers() == [left]
    assert not left.exists()
    assert not orphan.is_running()
    assert (kept / "kept").read_text() == "by its owner"
    assert child.is_running()
    assert living.poll() is None
    assert clear_leftovers() == []


@pytest.mark.parametrize("kind", ["open", "link", "file", "new", "other"])
def test_what_is_not_certainly_abandoned_stays(kind, temporary, tmp_path):
    """Whoever else may write to the temporary directory must not have a command remove for him."""
    path = temporary / "strata-12345678"
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    if kind == "link":
        path.symlink_to(target)
    elif kind == "file":
        path.touch(0o600)
    else:
        path.mkdir(mode=0o755 if kind == "open" else 0o700)
        if kind != "new":
            (path / "owner").touch()
        if kind == "other":
            if os.geteuid() != 0:
                pytest.skip("only root may give a folder away")
            os.chown(path, 65534, 65534)
    assert clear_leftovers() == []
    assert os.path.lexists(path)
    assert target.is_dir()


def test_one_that_was_never_locked_goes_after_a_while(temporary):
    path = temporary / "strata-12345678"
    path.mkdir(mode=0o700)
    os.utime(path, (0, 0))
    assert clear_leftovers() == [path]


def test_a_reader_of_what_was_left_is_not_ended(temporary):
    """Such as a person with a log, or a run that was connected to a Ray that is dead."""
    log = temporary / "log"
    log.touch()
    with subprocess.Popen(["tail", "-f", log], stdout=subprocess.DEVNULL) as reader:
        end_processes(temporary)
        assert reader.poll() is None
        reader.kill()


def test_a_forked_child_does_not_remove_its_parents_folder(temporary):
    program = (
        "import os, sys\n"
        "from compute.machine.leftovers import owned_folder\n"
        "folder = owned_folder()\n"
        "child = os.fork()\n"
        "if child: os.waitpid(child, 0); print(folder.exists())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
    assert list(temporary.iterdir()) == []


def test_a_name_too_long_for_sockets_is_not_used(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    program = "from compute.machine.leftovers import owned_folder; print(owned_folder().parent)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "/tmp\n", done.stderr
