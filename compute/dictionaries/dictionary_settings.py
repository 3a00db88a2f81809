"""What a training run of a dictionary can be told. Imports no torch, so flows may read it."""

from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

ArchitectureName = Literal["topk", "batchtopk", "jumprelu", "matryoshka", "gated"]

NESTED: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
# Of a setting that no recipe of the project turns.
ADVANCED: dict[str, JsonValue] = {"advanced": True}


def mark_advanced(schema: dict[str, Any]) -> None:
    """Let the descriptions in the form of a settings class say which settings are advanced."""
    for field in schema.get("properties", {}).values():
        if field.get("advanced"):
            field["description"] = f"{field.get('description', '')} (advanced)".lstrip()


class DictionarySettings(BaseModel):
    """Everything that decides how one sparse dictionary is trained, apart from its data.

    Lengths that are measured in samples count rows of activations, not batches, so that a
    changed batch size does not change their meaning.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=mark_advanced)

    architecture: ArchitectureName = Field(
        "topk",
        description="Which concepts of a row are active, and how that choice is trained.",
        json_schema_extra=ADVANCED,
    )
    n_concepts: int = Field(4096, ge=1, description="Number of concepts the dictionary learns.")
    k: int = Field(
        32,
        ge=1,
        description=(
            "Active concepts per row: exactly for topk, on average for every other architecture."
        ),
    )
    steps: int = Field(1000, ge=1, description="Optimiser steps of the whole run.")
    batch_size: int = Field(2048, ge=1, description="Rows per optimiser step, over all workers.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Peak learning rate of Adam; left out, it is chosen from n_concepts.",
        json_schema_extra=ADVANCED,
    )
    warm_up: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of the steps over which the learning rate rises.",
        json_schema_extra=ADVANCED,
    )
    decay: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the steps, at the end, over which it falls to zero.",
        json_schema_extra=ADVANCED,
    )
    aux_k: int | None = Field(
        None,
        ge=0,
        description=(
            "Dead concepts per row that learn from the residual (0: none); left out, 2 k but at"
            " most half the dimension."
        ),
        json_schema_extra=ADVANCED,
    )
    aux_weight: float = Field(
        1 / 32,
        ge=0,
        description="Weight of the auxiliary loss against the reconstruction.",
        json_schema_extra=ADVANCED,
    )
    dead_after: int | None = Field(
        None,
        ge=1,
        description=(
            "A concept that has not fired for this many rows is dead; left out, a hundred times"
            " the n_concepts / k rows after which the average concept fires."
        ),
        json_schema_extra=ADVANCED,
    )
    spare: float | None = Field(
        None,
        ge=0,
        le=4,
        description=(
            "Concepts trained beyond n_concepts in the first half of the run, as a share of them;"
            " the least useful are then dropped. Left out, 0.5 for dictionaries of up to twice the"
            " dimension and none for wider ones."
        ),
        json_schema_extra=ADVANCED,
    )
    nested: tuple[float, ...] = Field(
        NESTED,
        min_length=1,
        description="Nested prefixes of a matryoshka dictionary, as shares of its concepts.",
        json_schema_extra=ADVANCED,
    )
    whiten: bool = Field(
        False,
        description=(
            "Train on activations that are whitened on all rows, in which quiet concepts count as"
            " much as loud ones: concepts are found better, while less of the variance is"
            " explained. Not for topk."
        ),
        json_schema_extra=ADVANCED,
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description=(
            "Precision of the encoder's matrix product; weights, kept codes and sums stay float32."
        ),
        json_schema_extra=ADVANCED,
    )
    seed: int = Field(
        0,
        ge=0,
        description="Seed of the initial directions.",
        json_schema_extra=ADVANCED,
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.active > self.n_concepts:
            raise ValueError(
                f"k = {self.active} exceeds n_concepts = {self.n_concepts}: choose a k no larger"
                " than the number of concepts"
            )
        if self.whiten and self.architecture == "topk":
            raise ValueError(
                "whiten = true goes with every architecture but topk, whose choice of the k"
                " strongest depends on the coordinates: choose batchtopk"
            )
        if self.warm_up + self.decay > 1:
            raise ValueError(
                f"warm_up = {self.warm_up} and decay = {self.decay} together exceed 1: choose"
                " shares of the steps that do not overlap"
            )
        if self.nested != NESTED and self.architecture != "matryoshka":
            raise ValueError(
                f"nested = {self.nested} does nothing with architecture = {self.architecture}:"
                " leave it out, or choose matryoshka"
            )
        if self.nested[-1] != 1 or any(a >= b for a, b in pairwise((0.0, *self.nested))):
            raise ValueError(
                f"nested = {self.nested} is not a rising series of shares: choose shares above 0"
                " that end with 1"
            )
        return self

    @property
    def active(self) -> int:
        """Active concepts per row, on average or exactly."""
        return self.k

    def auxiliary_width(self, d: int) -> int:
        """Dead concepts per row that learn from the residual of rows of dimension ``d``."""
        return min(2 * self.k, d // 2) if self.aux_k is None else self.aux_k

    def rows_until_dead(self) -> int:
        """Rows without firing after which a concept is dead."""
        return self.dead_after or max(10_000, 100 * self.n_concepts // self.k)

    def spare_concepts(self, d: int) -> int:
        """Concepts beyond ``n_concepts`` with which training on rows of dimension ``d`` starts.

        With as many concepts as there are true directions, some merge two of them and never part
        again; spare concepts take the place, and the merged ones become the useless ones. A
        dictionary far wider than the dimension has spare concepts anyway.
        """
        share = self.spare
        if share is None:
            # Dropping concepts would shift the prefixes that a matryoshka dictionary has learnt.
            narrow = self.n_concepts <= 2 * d and self.architecture != "matryoshka"
            share = 0.5 if narrow else 0.0
        return round(share * self.n_concepts) if self.steps > 1 else 0

    def peak_learning_rate(self) -> float:
        """The given learning rate, or the one that suits ``n_concepts``.

        The inverse square root of the width follows Gao et al. 2024 (2406.04093); the constant
        and the ceiling are the best of a few tried on language model activations and on worlds.
        """
        return self.learning_rate or min(8e-3, 3e-3 * (4096 / self.n_concepts) ** 0.5)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step ``step`` (0-based): linear rise, plateau, linear fall."""
        rise = (step + 1) / max(1.0, self.warm_up * self.steps)
        fall = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.peak_learning_rate() * max(0.0, min(1.0, rise, fall))

    @property
    def spare_until(self) -> int:
        """Steps taken with the spare concepts."""
        return self.steps // 2


def codes_per_row(architecture: str, k: int, n_concepts: int) -> int:
    """Places that a code set keeps for the active concepts of one row.

    Only TopK activates exactly k; the rest have k on average, and room for busier rows.
    """
    return k if architecture == "topk" else min(4 * k, n_concepts)
