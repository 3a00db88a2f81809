"""A run that is told to end, or is killed, where a user would do it: it ends in seconds, with a
state, an exit code and a last word, and leaves nothing but what a next run goes on with."""

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.live import wait_until

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(400)]


class Begun:
    """A `strata run` of the tiny recipe, as a user begins it."""

    def __init__(self, folder, recipe, temporary):
        self.folder, self.recipe, self.temporary = folder, recipe, temporary
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
        own = {"TMPDIR": str(temporary), "PREFECT_HOME": str(folder / "prefect")}
        self.environment = kept | own | {"STRATA_HOME": str(folder / "home")}
        self.told = folder / "told"
        self.process = None

    def begin(self, *settings, **options):
        options = {"stdout": self.told.open("a"), "stderr": subprocess.STDOUT} | options
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows", "run", str(self.recipe), *settings],
            env=self.environment,
            start_new_session=True,
            **options,
        )
        return self

    def wait_for(self, moment):
        """Wait until the run is there; its processes are those that it has then."""
        wait_until(lambda: moment(self), 200, lambda: self.text)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def strata(self, *words):
        """What a next command says."""
        command = [sys.executable, "-m", "flows", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True)

    @property
    def text(self):
        return self.told.read_text() if self.told.exists() else ""

    @property
    def lines(self):
        return self.text.strip().splitlines()

    @property
    def states(self):
        """States of all flow runs, the newest last; none where Prefect has not begun."""
        path = self.folder / "prefect" / "prefect.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(path)) as database:
            found = database.execute("select state_type from flow_run order by created")
            return [state for (state,) in found]

    def living(self):
        return [process for process in self.family if _lives(process)]


def _lives(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def run(tiny_recipe, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    # No end of it is near while it learns.
    learn = tiny_recipe["learn"] | {"steps": 1_000_000}
    values = tiny_recipe | {"store": str(tmp_path / "store"), "learn": learn}
    recipe.write_text(yaml.safe_dump(values))
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        begun = Begun(tmp_path, recipe, Path(temporary))
        yield begun
        if begun.process is not None and begun.process.poll() is None:
            os.killpg(begun.process.pid, signal.SIGKILL)
            begun.process.wait()
        # What was killed here is cleared, too.
        begun.strata("recipes")


def at_once(run):
    return list(run.folder.glob("home/commands/*.json"))


def ray_starts(run):
    children = psutil.Process(run.process.pid).children(recursive=True)
    with contextlib.suppress(psutil.Error):
        return any(process.name() == "raylet" for process in children)


def it_learns(run):
    return "training on cpu" in run.text


@pytest.mark.parametrize(
    ("moment", "number", "to_all"),
    [
        (at_once, signal.SIGTERM, False),
        (ray_starts, signal.SIGTERM, False),
        (ray_starts, signal.SIGINT, True),
        (ray_starts, signal.SIGTERM, True),
        (it_learns, signal.SIGTERM, False),
        (it_learns, signal.SIGHUP, True),
    ],
)
def test_a_run_that_is_told_to_end_does(run, moment, number, to_all):
    run.begin().wait_for(moment)
    told = time.monotonic()
    os.kill(run.process.pid, number)
    if to_all:
        # As `timeout` does it, a terminal, or a manager of services: twice to the one that began.
        os.killpg(run.process.pid, number)
    assert run.process.wait(60) == 128 + number
    assert time.monotonic() - told < 10
    assert run.living() == []
    assert set(run.states) <= {"CANCELLED", "CRASHED"}
    assert bool(run.states) == (moment is not at_once)
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert run.lines[-1] == (
        f"strata run: ended by {name}: say it again, and it goes on where it stopped."
    )
    assert "Traceback" not in run.text
    assert list(run.temporary.iterdir()) == []
    # Who has told how it ended has nothing more to tell.
    assert "was killed" not in run.strata("recipes").stderr


def test_ctrl_c_in_a_terminal_gives_it_back_as_it_was(run):
    """Bars hide the cursor; what is waited for stands above them."""
    parent, child = pty.openpty()
    run.begin(stdin=child, stdout=child, stderr=child, preexec_fn=_take_terminal)
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):
        while piece := os.read(parent, 4096):
            shown += piece
            if b"waits for 1 worker" in shown and b"extract " in shown and b"\x1b[?25l" in shown:
                os.write(parent, b"\x03")
                break
        while piece := os.read(parent, 4096):
            shown += piece
    os.close(parent)
    assert run.process.wait(60) == 130
    text = shown.decode()
    assert "starts Ray on this machine" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    last = "strata run: ended by Ctrl-C: say it again, and it goes on where it stopped."
    assert text.strip().endswith(last)


def _take_terminal():
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_killed_run_is_told_by_the_next_command_and_gone_on_with(run):
    """SIGKILL of all that it is: nobody of it can say or clear anything."""
    run.begin("--set", "learn.checkpoint_steps=20").wait_for(it_learns)
    wait_until(lambda: list(run.folder.glob("store/learn/*/checkpoints/*")), 60)
    os.killpg(run.process.pid, signal.SIGKILL)
    run.process.wait()
    assert run.states == ["RUNNING"]
    said = run.strata("recipes").stderr
    assert f"`strata run {run.recipe} --set learn.checkpoint_steps=20`, begun at" in said
    assert f"in {Path.cwd()}, was killed" in said
    assert "say it again there, and it goes on where it stopped." in said
    log = said.split("its log is ")[1].split(")")[0]
    assert "learn" in Path(log).read_text()
    wait_until(lambda: run.living() == [], 30)
    assert list(run.temporary.iterdir()) == []
    assert run.strata("recipes").stderr == ""

    (sealed,) = run.folder.glob("store/extract/*/sealed.json")
    before = sealed.stat().st_mtime_ns
    again = run.strata("run", str(run.recipe), "--set", "learn.steps=60")
    assert again.returncode == 0, again.stderr
    assert sealed.stat().st_mtime_ns == before
    assert run.states == ["CRASHED", "COMPLETED"]
    # A run that ends well leaves as little.
    assert list(run.temporary.iterdir()) == []


def test_what_is_left_without_its_command_ends_by_itself(run):
    """`kill -9` of the process that the user began: its child computes no more for nobody."""
    run.begin().wait_for(it_learns)
    run.process.kill()
    run.process.wait()
    wait_until(lambda: run.living() == [], 30)
    assert run.states == ["CRASHED"]
    assert "was killed and has not ended by itself" in run.strata("recipes").stderr
    assert list(run.temporary.iterdir()) == []


def test_a_child_that_is_killed_is_told_at_once(run):
    """As by the kernel, where memory runs out."""
    run.begin().wait_for(it_learns)
    (child,) = psutil.Process(run.process.pid).children()
    child.kill()
    assert run.process.wait(30) == 128 + signal.SIGKILL
    assert "killed by SIGKILL, and not from here (the machine may have run out" in run.lines[-1]
    assert run.lines[-1].endswith("say it again, and it goes on where it stopped.")
    assert run.living() == []
    assert list(run.temporary.iterdir()) == []
    (note,) = run.folder.glob("home/commands/*.run")
    assert len(json.loads(f'"{note.read_text()}"')) == 36
