"""The project's own text-to-image model: trained on sprites, and scored by their factor reader."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compute.models.own.diffusion_training import (
    Texts,
    draw,
    encode_images,
    train_autoencoder,
    train_denoiser,
    train_text_encoder,
)
from compute.models.own.small_pipelines import new_text_to_image
from compute.models.own.training_loop import Checkpoints, Progress
from compute.models.own.training_settings import AutoencoderSettings, SpriteSettings, TextSettings
from compute.worlds.sprite_reader import read_sprites, shows
from compute.worlds.sprites import (
    OBJECTS,
    SIZE,
    SpriteFactors,
    Sprites,
    SpriteWorld,
    caption_words,
)
from storage.locations import Location

Stage = Literal["autoencoder", "text_encoder", "denoiser"]


class SpriteScore(NamedTuple):
    """How well drawings show what their captions name.

    Attributes
    ----------
    named : share of the named objects that are there in their colour.
    complete : share of the drawings on which every named object is there in its colour.
    clean : share of the drawings that the world itself would keep.
    n : number of drawings.
    """

    named: float
    complete: float
    clean: float
    n: int


def sprite_data(settings: SpriteSettings) -> Sprites:
    """Return the training pictures; captions that are held out are not among them."""
    return SpriteWorld(settings.seed).sample(settings.n_images, held_out=False)


def named_factors(factors: SpriteFactors) -> NDArray[np.int64]:
    """Return what captions name, ``(n, 4)``: per slot 0 for nothing, or 1 + colour and object."""
    kind = 1 + factors.colours * len(OBJECTS) + factors.objects
    return np.where(factors.objects >= 0, kind, 0)


class SpriteCheckpoints(NamedTuple):
    """Where each stage is saved; a stage that finished there is not trained again."""

    autoencoder: Location
    text_encoder: Location
    denoiser: Location


def train_sprites(
    settings: SpriteSettings,
    checkpoints: SpriteCheckpoints,
    progress: Progress | None = None,
    *,
    until: Stage = "denoiser",
    every: int = 250,
) -> Any:
    """Train the sprite pipeline: autoencoder, text encoder, then the denoiser with the latter.

    A run that was stopped goes on from its checkpoints.

    Parameters
    ----------
    progress : called with the stage, the step, the number of steps and the loss.
    until : last stage to train.
    every : steps between checkpoints.

    Returns
    -------
    The `StableDiffusionPipeline`, as far as it is trained.
    """
    data = sprite_data(settings)
    pipeline = new_text_to_image(caption_words(), size=SIZE, seed=settings.seed)
    if until != "text_encoder":
        drawing = settings.stage(AutoencoderSettings)
        place = Checkpoints(checkpoints.autoencoder, drawing.model_dump(), every)
        train_autoencoder(pipeline.vae, data.images, drawing, place, progress)
    if until != "autoencoder":
        reading = settings.stage(TextSettings)
        place = Checkpoints(checkpoints.text_encoder, reading.model_dump(), every)
        factors = named_factors(data.factors)
        train_text_encoder(pipeline, data.captions, factors, reading, place, progress)
    if until == "denoiser":
        place = Checkpoints(checkpoints.denoiser, settings.model_dump(), every)
        texts = Texts(
            pipeline.tokenizer, pipeline.text_encoder, data.captions, settings.unconditional
        )
        latents = encode_images(pipeline.vae, data.images)
        train_denoiser(
            pipeline.unet, pipeline.scheduler, latents, settings, place, progress, texts=texts
        )
    return pipeline


class SpriteDrawings(NamedTuple):
    """Drawings ``(n, 32, 32, 3)`` in [0, 1], the captions they are of, and what those name."""

    images: NDArray[np.float32]
    captions: list[str]
    wanted: SpriteFactors


def draw_sprites(
    pipeline: Any, n: int = 500, *, steps: int = 25, guidance: float = 2.0, seed: int = 1
) -> SpriteDrawings:
    """Draw ``n`` held-out captions.

    Parameters
    ----------
    steps, guidance : DDIM steps and guidance scale.
    seed : of the captions; drawing i starts from seed i.
    """
    _, captions, wanted = SpriteWorld(seed).sample(n, stream=1, held_out=True)
    images = draw(pipeline, captions, range(n), steps=steps, guidance=guidance)
    return SpriteDrawings(images, captions, wanted)


def judge_sprites(drawings: SpriteDrawings) -> SpriteScore:
    """Read what drawings show, and compare it with what their captions name."""
    wanted, seen = drawings.wanted, read_sprites(drawings.images).factors
    share = shows(wanted, seen)
    n_objects = (wanted.objects >= 0).sum(axis=1)
    return SpriteScore(
        named=float((share * n_objects).sum() / n_objects.sum()),
        complete=float((share == 1).mean()),
        clean=float(seen.selected.mean()),
        n=len(share),
    )
