"""Services of this machine: how one is noted and known again, and how a Prefect server is begun."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.credentials import kept_secret, new_login, private_folder
from flows.recipe import BadInput

__all__ = [
    "HOST",
    "Running",
    "allowed_seconds",
    "healthy",
    "known_login",
    "listen",
    "login_of",
    "login_path",
    "read_notes",
    "start_prefect",
    "use_api",
    "wait_until_healthy",
    "write_notes",
]

HOST = "127.0.0.1"
_STOP_SECONDS = 20.0
_LOGIN = "prefect.login"
_NOTES = ("stack.json", "serve.json")


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

    @classmethod
    def begun(cls, name: str, process: subprocess.Popen[bytes], address: str) -> Running:
        """The service that a process is."""
        import psutil

        return cls(name, process.pid, _since_boot(psutil.Process(process.pid)), address)

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


def read_notes(path: Path) -> list[Running]:
    """The services that a file notes, alive or not."""
    try:
        return [Running(**note) for note in json.loads(path.read_text())]
    except FileNotFoundError:
        return []


def write_notes(path: Path, services: Iterable[Running]) -> None:
    """Note services in a file; without any, there is no file."""
    notes = [asdict(service) for service in services]
    if not notes:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(notes))
    temporary.replace(path)


def login_path(home: Path) -> Path:
    """The file that holds the login of the Prefect servers that a home's commands start."""
    return home / _LOGIN


def login_of(home: Path) -> str:
    """The login of the Prefect servers that a home's commands start; made at the first need.

    Raises
    ------
    BadInput
        If others could read it.
    """
    return kept_secret(login_path(private_folder(home)), new_login)


def known_login(api: str, home: Path) -> str | None:
    """The login of the API at this URL, if a command of this home started it and it still runs.

    Whoever listens there once it has ended is another, and is not told the password.
    """
    for name in _NOTES:
        for service in read_notes(home / name):
            address = service.address.replace("localhost", HOST)
            if address and api.replace("localhost", HOST).startswith(f"{address}/"):
                return login_of(home) if service.alive else None
    return None


def allowed_seconds() -> float:
    """How long a service may take to start.

    Raises
    ------
    BadInput
        If ``STRATA_START_SECONDS`` holds no positive number.
    """
    from compute.machine.local_ray import start_seconds

    try:
        return start_seconds()
    except ValueError as error:
        raise BadInput(str(error)) from error


def listen(port: int = 0) -> socket.socket:
    """A socket that listens on the loopback address, to be handed to the process that answers.

    From here on nobody else can take the port, nor what is sent to it.

    Parameters
    ----------
    port : int
        Any free one if 0.

    Raises
    ------
    BadInput
        If another program has it.
    """
    listener = socket.socket()
    try:
        # Connections of a server that has just ended do not keep the next one waiting.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(100)
    except OSError as error:
        listener.close()
        raise BadInput(f"port {port} is taken by another program.") from error
    return listener


def start_prefect(
    listener: socket.socket,
    login: str,
    environment: Mapping[str, str],
    arguments: Sequence[str] = (),
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a Prefect server that answers on a listening socket, which is its own from then on.

    Parameters
    ----------
    listener : socket
    login : str
        User and password that it wants of everyone.
    environment : mapping
        Its variables; the login is added.
    arguments : sequence of str
        More of :mod:`flows.prefect_server`.
    **options
        Of ``subprocess.Popen``.
    """
    handle = listener.fileno()
    command = [sys.executable, "-m", "flows.prefect_server", "--listener", str(handle), *arguments]
    with listener:
        return subprocess.Popen(  # noqa: S603
            command,
            env={**environment, "PREFECT_SERVER_API_AUTH_STRING": login},
            pass_fds=[handle],
            **options,
        )


def use_api(url: str, login: str | None) -> None:
    """Have this process and those that it starts talk to the API at a URL.

    Parameters
    ----------
    url : str
    login : str, optional
        User and password that it wants; what is configured stays without it.
    """
    os.environ["PREFECT_API_URL"] = url
    if login is not None:
        os.environ["PREFECT_API_AUTH_STRING"] = login
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


def wait_until_healthy(
    url: str, server: subprocess.Popen[bytes], deadline: float, complaint: str
) -> None:
    """Wait until a server answers at `url`.

    Raises
    ------
    RuntimeError
        With the complaint, if it has ended, or the monotonic clock has passed the deadline.
    """
    while not healthy(url):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(complaint)
        time.sleep(0.05)


def healthy(url: str) -> bool:
    """Whether the Prefect API at `url` answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


def _since_boot(process: Any) -> float:
    """Seconds from the machine's start to a process' own, whatever was done to the clock since."""
    import psutil

    return float(process.create_time() - psutil.boot_time())
