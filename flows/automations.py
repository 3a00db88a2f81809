"""What the Prefect server does by itself: end runs whose process is gone, tell of failed nights.

That a new version starts the consumer is the consumer's own trigger (:mod:`flows.consumer`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import StateType
from prefect.events import AutomationCore, EventTrigger
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows.recipe import BadInput

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

__all__ = ["FAILED_NIGHT", "LOST_RUN", "register_automations"]

LOST_RUN = "strata: a run whose process is gone has crashed"
FAILED_NIGHT = "strata: tell of a failed night"

_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled", "AwaitingRetry", "Paused")
_MISSED = 3


def register_automations(client: SyncPrefectClient, *, notify: str | None = None) -> list[str]:
    """Register the automations with the server, in place of others of the same names.

    Parameters
    ----------
    client
        Of the server.
    notify : str, optional
        A notification block that is told of nights that failed, as ``type/name``, such as
        ``slack-webhook/operators``; without it nobody is told.

    Returns
    -------
    list of str
        Names of what is registered.

    Raises
    ------
    BadInput
        If there is no such block.
    """
    wanted = [_lost_run()]
    if notify is not None:
        wanted.append(_failed_night(client, notify))
    missing = {automation.name: automation for automation in wanted}
    for name in (LOST_RUN, FAILED_NIGHT):
        for old in client.read_automations_by_name(name):
            # A new one has seen no heartbeat of a run that is lost already, and would miss none.
            if name in missing and _says(old) == _says(missing[name]):
                del missing[name]
            else:
                client.delete_automation(old.id)
    for automation in missing.values():
        client.create_automation(automation)
    return [automation.name for automation in wanted]


def _says(automation: AutomationCore) -> dict[str, Any]:
    return automation.model_dump(include=set(AutomationCore.model_fields))


def _lost_run() -> AutomationCore:
    """A run that is killed together with its worker stays *Running* for ever, were it not for this.

    Its heartbeat is missed three times before it is given up.
    """
    seconds = get_current_settings().flows.heartbeat_frequency or 180
    return AutomationCore(
        name=LOST_RUN,
        trigger=EventTrigger(
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{state}" for state in _ENDS)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            within=timedelta(seconds=_MISSED * seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="The process of this run is gone; a retry goes on where it stopped.",
            )
        ],
    )


def _failed_night(client: SyncPrefectClient, notify: str) -> AutomationCore:
    kind, _, name = notify.partition("/")
    try:
        block = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound:
        raise BadInput(
            f"notification block {notify!r} is not on the server: make it in the UI under Blocks, "
            "and name it as type/name, such as slack-webhook/operators."
        ) from None
    return AutomationCore(
        name=FAILED_NIGHT,
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in ("Failed", "TimedOut", "Crashed")},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": "nightly"},
            posture=Posture.Reactive,
        ),
        actions=[
            SendNotification(
                block_document_id=block.id,
                subject="{{ flow_run.name }}: {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
            )
        ],
    )
