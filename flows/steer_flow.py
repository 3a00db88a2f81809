"""The flow that steers a published artifact's model and shows what comes of it."""

# No `from __future__ import annotations` here: Prefect resolves the flow's parameters where this
# module's names are not to be had, so its annotations must be classes and not strings.
from typing import Any

from prefect import flow

from flows.current_run import note_flow_run
from tasks.steering import SteerParameters
from tasks.steering import steer as steer_task

__all__ = ["SteerParameters", "steer"]


@flow(name="steer", flow_run_name="steer {what.artifact}", description=__doc__, log_prints=False)
def steer(what: SteerParameters) -> dict[str, Any]:
    """Compare an artifact's model with itself under edits, and write a page of both.

    Parameters
    ----------
    what : SteerParameters

    Returns
    -------
    dict
        The page's URL, the concepts, and the scores.
    """
    note_flow_run()
    return steer_task(what)
