"""`strata up` keeps what it was told, parts no stack from its history, and tries starts again."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import psutil
import pytest

from flows import stack as module
from flows.services import Running, _since_boot
from flows.stack import Settings, Stack

KEPT = Settings(store="/data/strata", recipe="grammar", cron="0 2 * * *", port=4300)


@pytest.fixture
def stack(tmp_path):
    """A stack that was started before, and is down."""
    (tmp_path / "settings.json").write_text(json.dumps(asdict(KEPT)))
    return Stack(tmp_path)


def settled(stack, postgres=None, *, change=False, alive=(), **asked):
    return stack._settled(asked, postgres, change=change, alive=alive)


def test_the_first_time_is_by_default_or_as_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = Stack(tmp_path / "home")
    assert settled(first) == Settings(store=str(tmp_path / ".strata"))
    told = settled(first, recipe="mine.yaml", store="s3://bucket/a", port=None)
    assert told == Settings(store="s3://bucket/a", recipe=str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("alive", [(), ("server", "ray", "worker")])
def test_from_another_folder_all_is_as_it_was(alive, stack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settled(stack, alive=alive) == KEPT
    assert settled(stack, store="/data/strata", alive=alive) == KEPT


@pytest.mark.parametrize("store", [".strata", "s3://bucket/other"])
def test_another_store_is_refused_and_it_is_said_how(store, stack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"keeps its results in /data/strata.*--change"):
        settled(stack, store=store)
    assert settled(stack, store="s3://bucket/other", change=True).store == "s3://bucket/other"


def test_another_database_is_refused_and_it_is_said_how(stack):
    with pytest.raises(ValueError, match=r"keeps its records in sqlite.*--change"):
        settled(stack, "postgresql://u:p@host/db")
    told = settled(stack, "postgresql://u:p@host/db", change=True)
    assert told.database == "postgresql"
    assert "u:p" not in json.dumps(asdict(told))
    (stack.folder / "settings.json").write_text(json.dumps(asdict(told)))
    with pytest.raises(ValueError, match=r"in PostgreSQL: give its URL by --postgres"):
        settled(stack)
    with pytest.raises(ValueError, match=r"in PostgreSQL: give its URL by --postgres"):
        settled(stack, alive=["ray"])
    assert settled(stack, alive=["server"]) == told


@pytest.mark.parametrize("changed", [{"port": 1}, {"ray_port": 1}, {"store": "/other"}])
def test_what_runs_is_not_changed(changed, stack):
    with pytest.raises(ValueError, match=r"of the running stack is .*`strata down` first"):
        settled(stack, alive=["ray"], change=True, **changed)
    assert settled(stack, alive=["ray"], recipe="sd14") == replace(KEPT, recipe="sd14")


class Scripted(Stack):
    """A stack whose services are processes that end at once, or stay."""

    def _start(self, name, settings, environment):
        starts.append(name)
        lives = starts.count(name) > ends
        program = "import time; time.sleep(600)" if lives else ""
        process = subprocess.Popen([sys.executable, "-c", program])
        started = _since_boot(psutil.Process(process.pid))
        if not lives:
            process.wait()
        return Running(name, process.pid, started, "")

    def _ready(self, name, settings):
        return starts.count(name) > ends

    def _deploy(self, environment, settings):
        pass


starts, ends = [], 0


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    starts.clear()
    monkeypatch.setattr(module, "_answers", lambda port: False)
    made = Scripted(tmp_path)
    yield made
    made.down()


def test_a_service_that_ended_while_it_started_is_started_again(scripted, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ends", 2)
    kept = scripted.up({"store": "/data"}, announce=lambda told: None)
    assert starts == ["server"] * 3 + ["ray"] * 3 + ["worker"] * 3
    assert [service.alive for service in scripted.running()] == [True] * 3
    assert scripted.settings == kept


def test_one_that_ends_every_time_is_told(scripted, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ends", 9)
    with pytest.raises(RuntimeError, match=r"server ended 3 times while it started: read"):
        scripted.up({"store": "/data"}, announce=lambda told: None)
    assert scripted.running() == []
    assert scripted.settings is None


def test_one_that_does_not_answer_is_told_what_to_do(scripted, monkeypatch):
    monkeypatch.setattr(scripted.__class__, "_ready", lambda *_: False)
    monkeypatch.setenv("STRATA_START_SECONDS", "0.5")
    with pytest.raises(RuntimeError, match="allow more time by STRATA_START_SECONDS"):
        scripted.up({"store": "/data"}, announce=lambda told: None)
    assert scripted.running() == []


class Started(Exception):
    """In place of a process."""


def test_secrets_go_by_the_environment_to_those_who_need_them(stack, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    monkeypatch.setenv("STRATA_POSTGRES", "postgresql://u:p@host/db")
    begun = {}

    def popen(command, *, env, **options):
        begun[command[2]] = env
        assert not any("right" in argument for argument in command)
        raise Started

    (stack.folder / "prefect.login").write_text("strata:right")
    (stack.folder / "prefect.login").chmod(0o600)
    monkeypatch.setattr("subprocess.Popen", popen)
    settings = replace(KEPT, port=0)
    environment = stack._environment(settings, "postgres://u:p@host/db")
    for name in ("server", "ray", "worker"):
        with pytest.raises(Started):
            stack._start(name, settings, environment)
    server, ray, worker = begun.values()
    secret, database = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_DATABASE_CONNECTION_URL"
    assert server[secret] == worker["PREFECT_API_AUTH_STRING"] == "strata:right"
    assert server[database] == "postgresql+asyncpg://u:p@host/db"
    assert "PREFECT_API_AUTH_STRING" not in ray
    for other in (ray, worker):
        assert secret not in other
        assert database not in other
    for environment in begun.values():
        assert "STRATA_POSTGRES" not in environment
        assert "RAY_AUTH_TOKEN" not in environment
        assert os.stat(environment["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777 == 0o600
