"""Settings of the trainings of the project's own models; no torch is needed to read or show them.

Each class holds what decides the weights of one stage, so that a stage is trained once for all
trainings that agree on it.
"""

from __future__ import annotations

from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "AutoencoderSettings",
    "DenoiserSettings",
    "DigitSettings",
    "GrammarSettings",
    "SpriteSettings",
    "TextSettings",
]

Stage = TypeVar("Stage", bound=BaseModel)


class _TrainingSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: int = Field(0, ge=0, lt=2**32)
    """Of what is drawn at random: training pictures, first weights, order of pictures, noise."""

    def stage(self, kind: type[Stage]) -> Stage:
        """Return the settings of one stage alone."""
        return kind(**{name: getattr(self, name) for name in kind.model_fields})


class _SpriteData(_TrainingSettings):
    n_images: int = Field(8000, ge=1, le=1_000_000)
    """Number of training pictures."""


class AutoencoderSettings(_SpriteData):
    """What decides the autoencoder."""

    autoencoder_steps: int = Field(2000, ge=1, le=1_000_000)
    """Optimiser steps of the autoencoder."""

    autoencoder_batch: int = Field(16, ge=1, le=4096)
    """Pictures per step of the autoencoder."""

    autoencoder_rate: float = Field(2e-3, gt=0, le=1)
    """Peak learning rate of the autoencoder; it rises, then falls to zero along half a cosine."""


class TextSettings(_SpriteData):
    """What decides the text encoder before it is trained with the denoiser."""

    text_steps: int = Field(400, ge=1, le=1_000_000)
    """Optimiser steps of the text encoder by itself."""

    text_batch: int = Field(64, ge=1, le=4096)
    """Captions per step of the text encoder by itself."""

    text_rate: float = Field(2e-3, gt=0, le=1)
    """Peak learning rate of the text encoder by itself."""


class DenoiserSettings(_TrainingSettings):
    """What decides a denoiser, its data apart."""

    denoiser_steps: int = Field(4000, ge=1, le=10_000_000)
    """Optimiser steps of the denoiser."""

    denoiser_batch: int = Field(32, ge=1, le=4096)
    """Pictures per step of the denoiser."""

    denoiser_rate: float = Field(1.5e-3, gt=0, le=1)
    """Learning rate of the denoiser; it rises over the first steps and then stays."""

    average: float = Field(0.995, ge=0, lt=1)
    """Decay of the running average of the denoiser's weights, which is what is kept."""


class SpriteSettings(AutoencoderSettings, TextSettings, DenoiserSettings):
    """How the text-to-image model of sprites is trained."""

    unconditional: float = Field(0.1, ge=0, lt=1)
    """Share of captions left empty in training, for classifier-free guidance."""


class DigitSettings(DenoiserSettings):
    """How the unconditional model of MNIST digits is trained."""


class GrammarSettings(_TrainingSettings):
    """How the language model of a grammar world is trained; no text is shown twice."""

    n_symbols: int = Field(16, ge=2, le=10_000)
    """Symbols of the grammar."""

    n_phrases: int = Field(12, ge=2, le=10_000)
    """Phrases, each of two or three symbols."""

    n_sentences: int = Field(8, ge=2, le=10_000)
    """Sentences, each of two or three phrases."""

    layers: int = Field(3, ge=1, le=64)
    """Blocks of the model."""

    width: int = Field(64, ge=1, le=8192)
    """Dimension of its residual stream; a multiple of the heads."""

    heads: int = Field(4, ge=1, le=64)
    """Attention heads of each block."""

    length: int = Field(32, ge=2, le=4096)
    """Tokens of a text."""

    steps: int = Field(600, ge=1, le=1_000_000)
    """Optimiser steps."""

    batch: int = Field(64, ge=1, le=4096)
    """Texts per step."""

    rate: float = Field(3e-3, gt=0, le=1)
    """Peak learning rate; it rises for a twentieth of the steps and falls along half a cosine."""

    average: float = Field(0.98, ge=0, lt=1)
    """Decay of the running average of the weights, which is what is kept."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; it must be a multiple of heads={self.heads}")
        return self
