"""A whole Strata on this machine: a Prefect server with its UI, a worker, and Ray.

`up` starts them as processes of their own that outlive the command; `down` ends them. All listen on
the loopback address only. What runs is noted in a folder, with one log per service.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.recipe import BadInput
from flows.serving import healthy

__all__ = ["Running", "Stack"]

HOST = "127.0.0.1"
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Running:
    """One service as it was started.

    Attributes
    ----------
    pid : int
        Leader of its process group.
    started : float
        Seconds from the machine's start to its own; a later process of the same number is another.
    address : str
        Where a person or a program finds it; empty where there is nothing to find.
    """

    name: str
    pid: int
    started: float
    address: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            same = abs(_since_boot(process) - self.started) < 1.0
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def stop(self) -> None:
        """End the service and all that it started, gently first."""
        import psutil

        if not self.alive:
            return
        family = [psutil.Process(self.pid)]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += family[0].children(recursive=True)
        # The leader ends its children in its own order; who is left afterwards is ended here.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=_STOP_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)


@dataclass(frozen=True)
class Stack:
    """The services of one machine, and the folder in which they are noted.

    Attributes
    ----------
    folder : Path
        Notes, logs and Ray's token.
    port : int
        Of the Prefect API and its UI.
    ray_port, dashboard_port : int
        Of Ray, and of its dashboard.
    """

    folder: Path
    port: int = 4200
    ray_port: int = 6379
    dashboard_port: int = 8265

    @classmethod
    def default_folder(cls) -> Path:
        """Where notes are kept unless another folder is given: the user's state folder."""
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return Path(state).expanduser() / "strata"

    @property
    def api(self) -> str:
        """URL of the Prefect API."""
        return f"http://{HOST}:{self.port}/api"

    def running(self) -> list[Running]:
        """The services that were started and are noted, alive or not."""
        try:
            notes = json.loads((self.folder / "stack.json").read_text())
        except FileNotFoundError:
            return []
        return [Running(**note) for note in notes]

    def up(
        self,
        *,
        store: str,
        postgres: str | None = None,
        cron: str = "0 3 * * *",
        timezone: str = "UTC",
        recipe: str = "smollm2",
        announce: Callable[[str], None],
    ) -> list[Running]:
        """Start what does not run, and register the deployments.

        Parameters
        ----------
        store : str
            Where results lie.
        postgres : str, optional
            URL of a PostgreSQL database for the server; SQLite in the user's folder without it.
        cron, timezone : str
            When the nightly flow runs.
        recipe : str
            What it runs: the name of a recipe, or a file.
        announce : callable
            Told what is being started.

        Raises
        ------
        BadInput
            If a port is taken, or the database's URL is not one.
        RuntimeError
            If a service does not come up; what was started is ended again.
        """
        alive = {service.name: service for service in self.running() if service.alive}
        environment = self._environment(store, postgres)
        ports = {"server": self.port, "ray": self.ray_port}
        for name, port in ports.items():
            if name not in alive and _answers(port):
                raise BadInput(
                    f"port {port} for {name} is taken by another program: free it, or give another "
                    f"with --{'port' if name == 'server' else 'ray-port'}."
                )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        begun: list[Running] = []
        try:
            # Twice: Ray gives its own processes half a minute, and ends where the machine is busy.
            for last in (False, True):
                for name, command, address, ready in self._services():
                    if name not in alive:
                        announce(f"starting {name}")
                        begun.append(self._start(name, command, address, environment))
                        alive[name] = begun[-1]
                        self._note(alive)
                        _wait_until(ready, begun[-1], self.folder / f"{name}.log", patient=not last)
                    if name == "ray" and not last:
                        self._deploy(environment, recipe, cron, timezone)
                ended = [name for name, service in alive.items() if not service.alive]
                if not ended:
                    break
                if last or ended != ["ray"]:
                    log = self.folder / f"{ended[0]}.log"
                    raise RuntimeError(f"{ended[0]} ended soon after its start: read {log}.")
                del alive["ray"]
        except BaseException:
            for service in reversed(begun):
                service.stop()
                alive.pop(service.name, None)
            self._note(alive)
            raise
        # In the order in which they are ended, backwards.
        alive = {name: alive[name] for name, *_ in self._services()}
        self._note(alive)
        return list(alive.values())

    def down(self) -> list[Running]:
        """End every service, the worker first so that no run is torn, and return those ended."""
        ended = []
        for service in reversed(self.running()):
            if service.alive:
                ended.append(service)
            service.stop()
        self._note({})
        return ended

    def _services(
        self,
    ) -> Iterator[tuple[str, list[str], str, Callable[[], bool]]]:
        from flows.deployments import WORK_POOL

        python = sys.executable
        yield (
            "server",
            [python, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(self.port)],
            f"http://{HOST}:{self.port}",
            lambda: healthy(self.api),
        )
        head = [python, "-m", "flows.ray_head", "start", "--head", "--block"]
        head += ["--disable-usage-stats"]
        head += ["--node-ip-address", HOST, "--port", str(self.ray_port)]
        head += ["--dashboard-host", HOST, "--dashboard-port", str(self.dashboard_port)]
        yield (
            "ray",
            head,
            f"http://{HOST}:{self.dashboard_port}",
            lambda: _answers(self.ray_port) and _answers(self.dashboard_port),
        )
        worker = [python, "-m", "flows.long_worker", "worker", "start", "--pool", WORK_POOL]
        yield ("worker", [*worker, "--type", "process"], "", lambda: True)

    def _environment(self, store: str, postgres: str | None) -> dict[str, str]:
        token = self.folder / "ray.token"
        environment = os.environ | {
            "DO_NOT_TRACK": "1",
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_UI_API_URL": self.api,
            "RAY_ADDRESS": f"{HOST}:{self.ray_port}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "STRATA_STORE": store if "://" in store else str(Path(store).expanduser().resolve()),
        }
        if postgres is not None:
            scheme, _, rest = postgres.partition("://")
            if scheme not in ("postgres", "postgresql", "postgresql+asyncpg") or not rest:
                raise BadInput(
                    f"--postgres names {scheme or postgres!r}: give a URL such as "
                    "postgresql://user:password@host/database."
                )
            # By the environment, so that a password is seen neither in a file nor among arguments.
            environment["PREFECT_API_DATABASE_CONNECTION_URL"] = f"postgresql+asyncpg://{rest}"
        if not token.is_file():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
                stream.write(secrets.token_hex(32))
        return environment

    def _start(
        self, name: str, command: list[str], address: str, environment: Mapping[str, str]
    ) -> Running:
        import psutil

        own = dict(environment)
        if name == "ray":
            del own["RAY_ADDRESS"]
        else:
            # Each thread's own heap, glibc's default, keeps what that thread once needed: with two
            # for all, the server grew by a 25th rather than a 15th in thirty nights.
            own.setdefault("MALLOC_ARENA_MAX", "2")
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                command,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = _since_boot(psutil.Process(process.pid))
        return Running(name, process.pid, started, address)

    def _deploy(
        self, environment: Mapping[str, str], recipe: str, cron: str, timezone: str
    ) -> None:
        # In a process of its own: Prefect reads its settings when it is imported.
        command = [sys.executable, "-m", "flows", "deploy", recipe]
        schedule = ["--cron", cron, "--timezone", timezone]
        done = subprocess.run(  # noqa: S603
            [*command, *schedule, "--store", environment["STRATA_STORE"]],
            env=dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 2:
            raise BadInput(done.stderr.strip().removeprefix("error: "))
        if done.returncode:
            raise RuntimeError(f"the deployments were not registered: {done.stderr.strip()[-400:]}")

    def _note(self, services: Mapping[str, Running]) -> None:
        path = self.folder / "stack.json"
        if not services:
            path.unlink(missing_ok=True)
            return
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps([asdict(service) for service in services.values()]))
        temporary.replace(path)


def _since_boot(process: Any) -> float:
    """Seconds from the machine's start to a process' own, whatever was done to the clock since."""
    import psutil

    return float(process.create_time() - psutil.boot_time())


def _wait_until(ready: Callable[[], bool], service: Running, log: Path, *, patient: bool) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if not service.alive:
            if patient and service.name == "ray":
                return
            raise RuntimeError(f"{service.name} ended while starting: read {log}.")
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{service.name} did not come up in {_START_SECONDS:.0f} s: read {log}."
            )
        time.sleep(0.3)


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
