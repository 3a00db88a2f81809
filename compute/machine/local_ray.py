"""How Ray is started on one machine: for its user alone, and with patience.

Left alone, Ray opens its ports on all interfaces, keeps its token where every user of the machine
can read it, lets them into the folder of its sockets and logs, and gives each of its processes half
a minute to come up, which a busy machine does not keep.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from compute.machine.leftovers import MARK

__all__ = ["environment_of_ray", "loopback_only", "patience", "start_seconds"]

_START = "STRATA_START_SECONDS"
_START_SECONDS = 600
# Ray's own, by which it may be one of several machines; elsewhere than on Linux it may not.
_SEVERAL = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_RETRY_SECONDS = 0.5


def start_seconds() -> float:
    """How long anything may take to start, from ``STRATA_START_SECONDS``; 600 without it.

    Raises
    ------
    ValueError
        If the variable holds no positive number.
    """
    told = os.environ.get(_START, str(_START_SECONDS))
    try:
        seconds = float(told)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{_START} is {told!r}: give seconds, such as {_START_SECONDS}.")
    return seconds


def environment_of_ray() -> dict[str, str]:
    """Variables with which Ray waits as long as it may, with a token that stands in no file.

    What is set already is left as it is.
    """
    seconds = str(int(start_seconds()) + 1)
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": seconds,
        "RAY_agent_register_timeout_ms": f"{seconds}000",
        "RAY_gcs_rpc_server_connect_timeout_s": seconds,
        "RAY_gcs_server_port_wait_time_s": seconds,
        "RAY_py_gcs_connect_timeout_s": seconds,
        "RAY_raylet_start_wait_time_s": seconds,
        "RAY_worker_register_timeout_seconds": seconds,
        # A node that does not answer for so long is taken for dead.
        "RAY_health_check_timeout_ms": "60000",
    }
    if os.environ.get("RAY_AUTH_MODE", "token") == "token":
        wanted["RAY_AUTH_MODE"] = "token"
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextlib.contextmanager
def patience(folder: Path) -> Iterator[None]:
    """Have Ray that is started in the block wait for itself, and be its user's alone.

    Parameters
    ----------
    folder : Path
        Of the process that owns it, as :func:`compute.machine.leftovers.owned_folder` gives; what
        is started is marked with it.
    """
    # Ray gives up its look for the node after half a minute, whatever it is told: no setting says
    # how long.
    from ray._private import services

    look = services.get_node
    deadline = time.monotonic() + start_seconds()

    def look_again(gcs_address: str, node_id: str) -> Any:
        while True:
            try:
                return look(gcs_address, node_id)  # type: ignore[no-untyped-call]
            except RuntimeError:
                if time.monotonic() > deadline or not _raylet_lives():
                    raise
                time.sleep(_RETRY_SECONDS)

    services.get_node = look_again
    os.environ[MARK] = str(folder)
    try:
        with loopback_only():
            yield
    finally:
        services.get_node = look
        del os.environ[MARK]


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Have Ray listen, and look for Ray, on the loopback address for the time of the block.

    It would take the machine's address for that of the loopback, and listen on all. It still does
    where ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1`` asks for nodes on other machines.
    """
    from ray._private import ray_constants

    # The public way, a variable, is read when Ray is imported, which others may have done before.
    told = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(_SEVERAL, "0").lower() in ("1", "true")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = told


def _raylet_lives() -> bool:
    children = psutil.Process().children()
    return any(c.name() == "raylet" and c.status() != psutil.STATUS_ZOMBIE for c in children)
