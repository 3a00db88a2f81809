"""The flow that steers a published artifact's model and shows what comes of it."""

# No `from __future__ import annotations` here: Prefect resolves the flow's parameters where this
# module's names are not to be had, so its annotations must be classes and not strings.
import os
from typing import Any

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.steering import steer as steer_task

__all__ = ["SteerParameters", "steer"]


class SteerParameters(BaseModel):
    """What to steer, and on what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: str = Field(min_length=1, description="Name of the published artifact.")
    version: str = Field("latest", description="A number, or an alias.")
    store: str = Field(
        default_factory=lambda: os.environ.get("STRATA_STORE", ".strata"),
        description="Where results lie: a folder or a URL.",
    )
    concepts: tuple[str, ...] = Field(
        (), description="Ids of the concepts to steer, such as 2:417; or leave it to `find`."
    )
    find: str | None = Field(
        None, description="Words to find concepts by; without `concepts` the first one is steered."
    )
    scales: tuple[float, ...] = Field(
        (0.0, 3.0), description="Factors of the concepts' codes, one variant each; 0 removes."
    )
    induce: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="One more variant: everywhere set to this share of the largest observed code.",
    )
    prompts: tuple[str, ...] = Field(
        (), description="Texts to go on with or to draw; by default the concept's own examples."
    )
    propagate: bool = Field(
        False, description="Carry the edits down to the concepts' parts, through the graph."
    )
    seed: int = Field(0, ge=0, description="Of the noise that drawings start from.")
    new_tokens: int = Field(48, ge=1, le=4096, description="Length of a text's continuation.")

    @model_validator(mode="after")
    def _something_to_steer(self) -> "SteerParameters":
        if not self.concepts and not self.find:
            raise ValueError("neither concepts nor find is given: say what to steer.")
        return self


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
    version = int(what.version) if what.version.isdigit() else what.version
    return steer_task(
        what.store,
        what.artifact,
        version,
        what.concepts,
        what.find,
        what.scales,
        what.induce,
        what.prompts,
        what.propagate,
        what.seed,
        what.new_tokens,
    )
