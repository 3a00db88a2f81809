"""A whole Strata on this machine: a Prefect server with its UI, a worker, and Ray.

`up` starts them as processes of their own that outlive the command; `down` ends them. All listen on
the loopback address only, and want a password or a token. What runs, how it was started and the
secrets are kept in a folder that its owner alone may enter, with one log per service.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flows.credentials import kept_secret, new_token, private_folder
from flows.recipe import BadInput
from flows.services import (
    HOST,
    Running,
    allowed_seconds,
    healthy,
    listen,
    login_of,
    login_path,
    read_notes,
    start_prefect,
    write_notes,
)

__all__ = ["Settings", "Stack"]

_SERVICES = ("server", "ray", "worker")
_STARTS = 3
_DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"


@dataclass(frozen=True)
class Settings:
    """How a stack was started, kept for the next time.

    Attributes
    ----------
    store : str
        Where results lie: an absolute path or a URL.
    database : str
        Where the Prefect server keeps its records: ``sqlite`` or ``postgresql``.
    recipe : str
        What the nightly flow runs: the name of a recipe, or the absolute path of a file.
    cron, timezone : str
        When it runs.
    port : int
        Of the Prefect API and its UI.
    ray_port, dashboard_port : int
        Of Ray, and of its dashboard.
    """

    store: str
    database: str = "sqlite"
    recipe: str = "smollm2"
    cron: str = "0 3 * * *"
    timezone: str = "UTC"
    port: int = 4200
    ray_port: int = 6379
    dashboard_port: int = 8265

    @property
    def api(self) -> str:
        """URL of the Prefect API."""
        return f"http://{HOST}:{self.port}/api"


# What is there already is not found where these are others.
_HISTORY = {"store": "its results", "database": "its records"}
# What runs already does not hear of a change.
_FIXED = {"port", "ray_port", "dashboard_port", *_HISTORY}


@dataclass(frozen=True)
class Stack:
    """The services of one machine, and the folder in which they are noted.

    Attributes
    ----------
    folder : Path
        Settings, notes, logs, the login of Prefect and the token of Ray.
    """

    folder: Path

    @property
    def settings(self) -> Settings | None:
        """How it was started the last time; None before the first."""
        try:
            return Settings(**json.loads((self.folder / "settings.json").read_text()))
        except FileNotFoundError:
            return None

    def running(self) -> list[Running]:
        """The services that were started and are noted, alive or not."""
        return read_notes(self.folder / "stack.json")

    @property
    def login_path(self) -> Path:
        """The file that holds the login of the Prefect server."""
        return login_path(self.folder)

    def up(
        self,
        asked: Mapping[str, Any],
        *,
        postgres: str | None = None,
        change: bool = False,
        announce: Callable[[str], None],
    ) -> Settings:
        """Start what does not run, and register the deployments.

        Parameters
        ----------
        asked : mapping
            Fields of :class:`Settings`; the others are as the last time, or their defaults.
        postgres : str, optional
            URL of a PostgreSQL database for the server; it is not kept, since it holds a password.
        change : bool
            Whether results or records may be kept elsewhere than until now.
        announce : callable
            Told what is being started.

        Raises
        ------
        BadInput
            If a port is taken, the database's URL is not one, or what is asked would part the stack
            from what it has.
        RuntimeError
            If a service does not come up; what was started is ended again.
        """
        private_folder(self.folder)
        alive = {service.name: service for service in self.running() if service.alive}
        settings = self._settled(asked, postgres, change=change, alive=alive)
        environment = self._environment(settings, postgres)
        for name in ("ray_port", "dashboard_port"):
            port = getattr(settings, name)
            if "ray" not in alive and _answers(port):
                raise BadInput(_taken(port, name))
        before = self.settings
        self._keep(settings)
        begun: list[Running] = []
        try:
            # Twice: what came up may have ended on a busy machine while the rest was started.
            for last in (False, True):
                for name in _SERVICES:
                    if name not in alive:
                        announce(f"starting {name}")
                        for service in self._attempts(name, settings, environment):
                            begun.append(service)
                            alive[name] = service
                            self._note(alive)
                    if name == "ray" and not last:
                        self._deploy(environment, settings)
                ended = [name for name, service in alive.items() if not service.alive]
                if not ended:
                    break
                if last:
                    raise RuntimeError(
                        f"{ended[0]} ended soon after its start: read {self._log(ended[0])}."
                    )
                for name in ended:
                    del alive[name]
        except BaseException:
            for service in reversed(begun):
                service.stop()
                alive.pop(service.name, None)
            self._note(alive)
            self._keep(before)
            raise
        return settings

    def down(self) -> list[Running]:
        """End every service, the worker first so that no run is torn, and return those ended."""
        ended = []
        for service in reversed(self.running()):
            if service.alive:
                ended.append(service)
            service.stop()
        self._note({})
        return ended

    def _settled(
        self,
        asked: Mapping[str, Any],
        postgres: str | None,
        *,
        change: bool,
        alive: Collection[str],
    ) -> Settings:
        """What is asked, and of the rest what was there before."""
        given = {name: value for name, value in asked.items() if value is not None}
        if "store" in given:
            given["store"] = _absolute(given["store"])
        if str(given.get("recipe", "")).endswith((".yaml", ".yml")):
            given["recipe"] = str(Path(given["recipe"]).expanduser().resolve())
        if postgres is not None:
            given["database"] = "postgresql"
        kept = self.settings
        if kept is None:
            return Settings(**{"store": _absolute(".strata")} | given)
        settings = Settings(**asdict(kept) | given)
        other = [f.name for f in fields(kept) if getattr(kept, f.name) != getattr(settings, f.name)]
        if alive and (fixed := [name for name in other if name in _FIXED]):
            was, wanted = getattr(kept, fixed[0]), getattr(settings, fixed[0])
            raise BadInput(
                f"{fixed[0]} of the running stack is {was}, not {wanted}: leave it out to keep it, "
                "or say `strata down` first."
            )
        if parted := [name for name in other if name in _HISTORY and not change]:
            was, wanted = getattr(kept, parted[0]), getattr(settings, parted[0])
            raise BadInput(
                f"this stack keeps {_HISTORY[parted[0]]} in {was}, and would not find them in "
                f"{wanted}: leave it out to keep them, or add --change to begin anew there."
            )
        if settings.database == "postgresql" and postgres is None and "server" not in alive:
            raise BadInput(
                "this stack keeps its records in PostgreSQL: give its URL by --postgres or "
                f"STRATA_POSTGRES, or remove {self.folder / 'settings.json'} to begin anew."
            )
        return settings

    def _attempts(
        self, name: str, settings: Settings, environment: Mapping[str, str]
    ) -> Iterator[Running]:
        """Start a service until it is ready; gives each process that was begun.

        Raises
        ------
        RuntimeError
            If it has ended three times while it started, or is not ready in time.
        """
        deadline = time.monotonic() + allowed_seconds()
        for tries in range(1, _STARTS + 1):
            service = self._start(name, settings, environment)
            yield service
            while not self._ready(name, settings):
                if not service.alive:
                    break
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{name} did not come up in {allowed_seconds():.0f} s: read "
                        f"{self._log(name)}; on a busy machine, allow more time by "
                        "STRATA_START_SECONDS."
                    )
                time.sleep(0.3)
            else:
                return
            if tries == _STARTS:
                raise RuntimeError(
                    f"{name} ended {_STARTS} times while it started: read {self._log(name)}."
                )

    def _start(self, name: str, settings: Settings, environment: Mapping[str, str]) -> Running:
        own = dict(environment)
        # Each thread's own heap, glibc's default, keeps what that thread once needed: with two
        # for all, the server grew by a 25th rather than a 15th in thirty nights.
        if name != "ray":
            own.setdefault("MALLOC_ARENA_MAX", "2")
        python = [sys.executable, "-m"]
        with self._log(name).open("ab") as log:
            options: dict[str, Any] = {
                "stdin": subprocess.DEVNULL,
                "stdout": log,
                "stderr": subprocess.STDOUT,
                "start_new_session": True,
            }
            if name == "server":
                try:
                    listener = listen(settings.port)
                except BadInput as error:
                    raise BadInput(_taken(settings.port, "port")) from error
                process = start_prefect(listener, login_of(self.folder), own, **options)
                return Running.begun(name, process, f"http://{HOST}:{settings.port}")
            own.pop(_DATABASE, None)
            address = ""
            if name == "ray":
                for needless in ("RAY_ADDRESS", "PREFECT_API_AUTH_STRING"):
                    del own[needless]
                command = ["flows.ray_head", "start", "--head", "--block", "--disable-usage-stats"]
                command += ["--node-ip-address", HOST, "--port", str(settings.ray_port)]
                command += ["--dashboard-host", HOST]
                command += ["--dashboard-port", str(settings.dashboard_port)]
                address = f"http://{HOST}:{settings.dashboard_port}"
            else:
                from flows.deployments import WORK_POOL

                command = ["flows.long_worker", "worker", "start", "--pool", WORK_POOL]
                command += ["--type", "process"]
            process = subprocess.Popen([*python, *command], env=own, **options)  # noqa: S603
        return Running.begun(name, process, address)

    def _ready(self, name: str, settings: Settings) -> bool:
        if name == "server":
            return healthy(settings.api)
        if name == "ray":
            return _answers(settings.ray_port) and _answers(settings.dashboard_port)
        return True

    def _environment(self, settings: Settings, postgres: str | None) -> dict[str, str]:
        token = self.folder / "ray.token"
        kept_secret(token, new_token)
        environment = os.environ | {
            "DO_NOT_TRACK": "1",
            "PREFECT_API_URL": settings.api,
            "PREFECT_API_AUTH_STRING": login_of(self.folder),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_UI_API_URL": settings.api,
            "RAY_ADDRESS": f"{HOST}:{settings.ray_port}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "STRATA_STORE": settings.store,
        }
        # The one would be taken before the file; the other holds a password.
        for name in ("RAY_AUTH_TOKEN", "STRATA_POSTGRES"):
            environment.pop(name, None)
        if postgres is not None:
            scheme, _, rest = postgres.partition("://")
            if scheme not in ("postgres", "postgresql", "postgresql+asyncpg") or not rest:
                raise BadInput(
                    f"--postgres names {scheme or postgres!r}: give a URL such as "
                    "postgresql://user:password@host/database."
                )
            # By the environment, so that a password is seen neither in a file nor among arguments.
            environment[_DATABASE] = f"postgresql+asyncpg://{rest}"
        return environment

    def _deploy(self, environment: Mapping[str, str], settings: Settings) -> None:
        # In a process of its own: Prefect reads its settings when it is imported.
        command = [sys.executable, "-m", "flows", "deploy", settings.recipe]
        command += ["--cron", settings.cron, "--timezone", settings.timezone]
        done = subprocess.run(  # noqa: S603
            [*command, "--store", settings.store],
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 2:
            raise BadInput(done.stderr.strip().removeprefix("error: "))
        if done.returncode:
            raise RuntimeError(f"the deployments were not registered: {done.stderr.strip()[-400:]}")

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _keep(self, settings: Settings | None) -> None:
        path = self.folder / "settings.json"
        if settings is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(json.dumps(asdict(settings)))

    def _note(self, services: Mapping[str, Running]) -> None:
        # In the order in which they were started, and are ended, backwards.
        noted = [services[name] for name in _SERVICES if name in services]
        write_notes(self.folder / "stack.json", noted)


def _absolute(store: str) -> str:
    return store if "://" in store else str(Path(store).expanduser().resolve())


def _taken(port: int, setting: str) -> str:
    option = setting.replace("_", "-")
    return f"port {port} is taken by another program: free it, or give another with --{option}."


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def describe(services: list[Running]) -> list[dict[str, Any]]:
    """What each service is, for a table."""
    return [
        {
            "service": service.name,
            "state": "runs" if service.alive else "has ended",
            "pid": service.pid,
            "address": service.address,
        }
        for service in services
    ]
