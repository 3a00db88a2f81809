"""The last words of a command that failed: a sentence, and where the rest is."""

import os
import stat
import subprocess
import sys

import pytest
import yaml

from flows.command_notes import CommandNote, forget_killed
from flows.failures import failure_of, say_failure
from tasks.once import RETRIES


def refused_here(value):
    """An error as one of our own modules raises it."""
    from compute.machine.local_ray import start_seconds

    os.environ["STRATA_START_SECONDS"] = value
    try:
        start_seconds()
    except ValueError as error:
        return error
    finally:
        del os.environ["STRATA_START_SECONDS"]


def raised(error):
    try:
        raise error
    except Exception as found:
        return found


def test_a_refusal_is_told_as_it_was_said():
    failure = failure_of(refused_here("soon"))
    assert failure == ("STRATA_START_SECONDS is 'soon': give seconds, such as 600.", True)


@pytest.mark.parametrize("error", [IndexError("index 3"), ValueError("of a library's\nmore")])
def test_what_strata_did_not_refuse_is_no_refusal(error):
    failure = failure_of(raised(error))
    first = str(error).splitlines()[0]
    assert failure.sentence.startswith(f"{type(error).__name__}: {first}. This is no refusal")
    assert not failure.refused


@pytest.mark.parametrize("at_start", [False, True])
def test_what_a_worker_refused_is_told_without_its_traceback(local_ray, at_start):
    import ray

    def work():
        os.environ["STRATA_START_SECONDS"] = "soon"
        from compute.machine.local_ray import start_seconds

        start_seconds()

    class Worker:
        def __init__(self):
            if at_start:
                work()

        def work(self):
            work()

    worker = ray.remote(num_cpus=0)(Worker).remote()
    with pytest.raises(ray.exceptions.RayError) as failed:
        ray.get(worker.work.remote())
    assert failure_of(failed.value) == failure_of(refused_here("soon"))


def test_the_traceback_goes_to_the_log_and_the_terminal_is_told_where(tmp_path, capsys):
    log = tmp_path / "log"
    assert say_failure(raised(RuntimeError("it broke")), log) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"The traceback is in {log}"
    assert lines[1].startswith("error: RuntimeError: it broke. This is no refusal")
    assert len(lines) == 2
    assert "Traceback (most recent call last)" in log.read_text()
    assert say_failure(refused_here("soon"), None) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("error: STRATA_START_SECONDS is 'soon'")


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ValueError("refused"), False),
        (IndexError("a fault"), False),
        (PermissionError("not yours"), False),
        (OSError("the disk is full"), True),
        (ConnectionError("the store is away"), True),
        (RuntimeError("the device is busy"), True),
    ],
)
def test_only_what_may_pass_is_tried_again(error, again):
    from prefect.states import Failed

    state = Failed(data=raised(error))
    assert RETRIES["retry_condition_fn"](None, None, state) is again


def test_a_living_command_is_not_told_and_a_killed_one_once(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATA_HOME", str(tmp_path))
    own = CommandNote.write(["steer", "smollm2", "--prompt", "A list"])
    program = (
        "import os, signal; from flows.command_notes import CommandNote\n"
        "note = CommandNote.write(['run', 'x y.yaml'])\n"
        "note.log.touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    (told,) = forget_killed()
    assert told.startswith("`strata run 'x y.yaml'`, begun at ")
    assert f"in {os.getcwd()}, was killed and has not ended by itself (its log is " in told
    assert told.endswith("say it again there, and it goes on where it stopped.")
    assert forget_killed() == []
    own.remove(run_ended=True)
    assert [path.suffix for path in tmp_path.glob("commands/*")] == [".log"]


def test_a_home_that_cannot_be_written_stops_no_command(tmp_path, strata):
    (tmp_path / "file").touch()
    done = strata("run", "nothing", env=os.environ | {"STRATA_HOME": str(tmp_path / "file" / "x")})
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe 'nothing' is unknown")


def test_a_hub_that_does_not_answer_is_asked_once(tiny_recipe, tmp_path, strata):
    recipe = tmp_path / "hub.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe | {"model": {"source": "somebody/model"}}))
    kept = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    own = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    own["STRATA_HOME"] = str(tmp_path / "home")
    done = strata("run", str(recipe), "--store", str(tmp_path / "store"), env=kept | own)
    assert done.returncode == 2
    assert "Retry" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "error: source 'somebody/model' is no folder here and not on the hub or in its cache; "
        "check the name, or go online"
    )


def test_what_is_waited_for_is_said_where_it_takes_long(capsys, monkeypatch):
    import logging
    import time

    from flows import waiting

    monkeypatch.setattr(waiting, "_SILENT_SECONDS", 0.3)
    with waiting.waiting_told() as say:
        logging.getLogger("strata").info("is soon done")
        say("takes %d minutes", 5)
        time.sleep(0.6)
        say("never comes to an end")
    time.sleep(0.6)
    assert capsys.readouterr().err == "  takes 5 minutes\n"


def test_notes_and_logs_are_their_owners(tmp_path, strata):
    home = tmp_path / "home"
    environment = os.environ | {"STRATA_HOME": str(home)}
    strata("doctor", str(tmp_path / "nothing"), env=environment)
    assert stat.S_IMODE((home / "commands").stat().st_mode) == 0o700
    program = (
        "import stat; from flows.command_notes import CommandNote\n"
        "note = CommandNote.write(['run', 'x'])\n"
        "print(oct(stat.S_IMODE(note.path.stat().st_mode)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "0o600\n"
