"""The flow run that this process is at work on, for who has to end it from elsewhere."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

from flows.command_notes import lost_runs

__all__ = ["end_flow_run", "keep_run", "note_flow_run"]

_noted: list[str] = []
_kept: list[Path] = []


def keep_run(path: Path | None) -> None:
    """Have the flow run of this process noted in a file, too, by which a later command finds it."""
    _kept[:] = [] if path is None else [path]


def note_flow_run() -> None:
    """Remember the flow run in which this is called: the first line of a flow.

    Runs of commands that were killed, which nobody has ended, are ended here: now there is a
    server that answers.
    """
    from prefect.runtime import flow_run

    _noted[:] = [str(flow_run.get_id())]
    for path in _kept:
        path.write_text(_noted[0])
        for lost in lost_runs():
            with contextlib.suppress(Exception):
                _end(lost.read_text(), "CRASHED", "The command of this run was killed.")
            lost.unlink(missing_ok=True)


def end_flow_run(kind: Literal["CANCELLED", "CRASHED"], message: str) -> None:
    """Set the state of the noted flow run, if there is one that has not ended."""
    for run in _noted:
        _end(run, kind, message)


def _end(run: str, kind: str, message: str) -> None:
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import State, StateType

    with get_client(sync_client=True) as client:
        found = client.read_flow_run(UUID(run)).state
        if found is None or not found.is_final():
            state: State[Any] = State(type=StateType(kind), message=message)
            client.set_flow_run_state(UUID(run), state, force=True)
