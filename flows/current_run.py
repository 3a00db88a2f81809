"""The flow run that this process is at work on, for who has to end it from elsewhere."""

from __future__ import annotations

from typing import Any, Literal

__all__ = ["end_flow_run", "note_flow_run"]

_noted: list[Any] = []


def note_flow_run() -> None:
    """Remember the flow run in which this is called: the first line of a flow."""
    from prefect.runtime import flow_run

    _noted[:] = [flow_run.get_id()]


def end_flow_run(kind: Literal["CANCELLED", "CRASHED"], message: str) -> None:
    """Set the state of the noted flow run, if there is one that has not ended."""
    if not _noted:
        return
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.states import State

    with get_client(sync_client=True) as client:
        found = client.read_flow_run(_noted[0]).state
        if found is None or not found.is_final():
            state = State(type=StateType(kind), message=message)
            client.set_flow_run_state(_noted[0], state, force=True)
