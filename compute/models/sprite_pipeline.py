"""The project's own text-to-image model: trained on sprites, and scored by their factor reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from compute.models.training import (
    Captioned,
    Progress,
    TrainingSettings,
    draw,
    new_pipeline,
    train_text_to_image,
)
from compute.worlds.sprite_reader import read_sprites, shows
from compute.worlds.sprites import SIZE, SpriteWorld, caption_words


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


def train_sprites(
    folder: Path,
    checkpoints: Path,
    settings: TrainingSettings | None = None,
    *,
    n_images: int = 20_000,
    progress: Progress | None = None,
) -> Any:
    """Train the sprite pipeline and save it as a diffusers folder, weights in half precision.

    Captions that are held out are never trained on. A run that was stopped goes on from its
    checkpoints.

    Parameters
    ----------
    folder : where the finished pipeline is saved, in float16 safetensors.
    checkpoints : folder for checkpoints.
    n_images : number of training pictures.
    progress : called with the stage, the step, the number of steps and the loss.

    Returns
    -------
    The trained pipeline, as it reads back from ``folder``, in float32.
    """
    import diffusers

    settings = settings or TrainingSettings()
    images, captions, _ = SpriteWorld(settings.seed).sample(n_images, held_out=False)
    pipeline = new_pipeline(caption_words(), size=SIZE, seed=settings.seed)
    train_text_to_image(pipeline, Captioned(images, captions), settings, checkpoints, progress)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
    loader: Any = diffusers.StableDiffusionPipeline
    saved = loader.from_pretrained(folder, dtype=torch.float32)
    saved.set_progress_bar_config(disable=True)
    return saved


def score_sprites(
    pipeline: Any, n: int = 500, *, steps: int = 25, guidance: float = 3.0, seed: int = 1
) -> SpriteScore:
    """Draw ``n`` held-out captions and read what the drawings show.

    Parameters
    ----------
    steps, guidance : DDIM steps and guidance scale.
    seed : of the captions; drawing i starts from seed i.
    """
    _, captions, wanted = SpriteWorld(seed).sample(n, stream=1, held_out=True)
    seen = read_sprites(draw(pipeline, captions, range(n), steps=steps, guidance=guidance)).factors
    share = shows(wanted, seen)
    n_objects = (wanted.objects >= 0).sum(axis=1)
    return SpriteScore(
        named=float((share * n_objects).sum() / n_objects.sum()),
        complete=float((share == 1).mean()),
        clean=float(seen.selected.mean()),
        n=n,
    )
