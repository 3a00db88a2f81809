"""What was proved of a model before a run, as a record that lasts. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

__all__ = ["Preflight", "Proof", "Seen"]


class Seen(NamedTuple):
    """What came of trying one thing, as in :class:`Proof`."""

    told: str
    holds: bool = True


class Proof(BaseModel):
    """One thing that was tried.

    Attributes
    ----------
    name : such as ``batch = single``.
    holds : whether it was proved; what did not hold and no run needs is told and no more.
    told : what was seen, in words that stand after the name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    holds: bool
    told: str


class Preflight(BaseModel):
    """What was proved before a run, JSON-ready.

    Attributes
    ----------
    rows : number of rows that were looked at, at every level.
    largest : level → largest magnitude of its values.
    dtype, device : in which, and where, the model ran.
    packages : versions of the libraries that ran it.
    proofs : in the order in which they were made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    largest: dict[str, float]
    dtype: str
    device: str
    packages: dict[str, str]
    proofs: tuple[Proof, ...]
