"""References: what travels between steps in place of data, and the proof that a step is done.

Each step owns a folder named by its fingerprint. Its reference is written there last, so a folder
with a reference holds a finished result, and one without is resumed.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from storage.locations import Location, NotFound
from storage.records import MAX_RECORD, read_json

__all__ = ["Reference", "Step"]

Step = Literal["extract", "learn", "encode", "recover", "verify", "publish", "train", "score"]
_FILE = "reference.json"


class Reference(BaseModel):
    """Names the finished result of one step.

    ``content_hash`` covers the result's bytes; ``summary`` holds what people want to know of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Step
    fingerprint: str
    url: str
    content_hash: str
    seconds: float = Field(ge=0)
    """How long the work took when it was done."""
    summary: dict[str, Any] = Field(default_factory=dict)

    @property
    def location(self) -> Location:
        """Where the result lies."""
        return Location(self.url)

    @staticmethod
    def folder(store: Location, step: Step, fingerprint: str) -> Location:
        """Where a step with this fingerprint puts its result."""
        return store / step / fingerprint

    @classmethod
    def find(cls, location: Location) -> Reference | None:
        """The reference that lies at `location`, or None if the step did not finish there."""
        try:
            return cls.model_validate(read_json(location.get(_FILE, most=MAX_RECORD)))
        except NotFound:
            return None

    def save(self) -> None:
        """Declare the result finished."""
        self.location.put(_FILE, self.model_dump_json(indent=1).encode())
