"""Training of the project's own models: one Prefect task per stage."""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from compute.cluster import Progress
from compute.models.own.training_settings import (
    AutoencoderSettings,
    DigitSettings,
    GrammarSettings,
    SpriteSettings,
    TextSettings,
)
from storage.locations import Location
from storage.records import fingerprint
from storage.references import Reference
from storage.sealing.seals import seal_files
from tasks.once import hash_below, once

if TYPE_CHECKING:
    from compute.models.own.sprite_pipeline import Stage
    from compute.models.own.training_loop import Progress as StageProgress

__all__ = [
    "score_digit_model",
    "score_grammar_model",
    "score_sprite_model",
    "train_digit_model",
    "train_grammar_model",
    "train_sprite_model",
    "train_sprite_part",
]

# Raised when training comes to compute something else from the same settings.
TRAIN_VERSION = 1
SCORE_VERSION = 1

# Of no use once the model is trained; see `storage.references.SCRATCH`.
_CHECKPOINT = "checkpoint"
_SHOWN = 48
_PER_ROW = 12


@task(name="train-part", task_run_name="train a part of the sprite model")
def train_sprite_part(
    store: str, settings: AutoencoderSettings | TextSettings, every: int
) -> Reference:
    """Train the autoencoder or the text encoder by itself; its checkpoint is the result."""
    stage: Stage = "autoencoder" if isinstance(settings, AutoencoderSettings) else "text_encoder"
    name = fingerprint(f"train-{stage}", TRAIN_VERSION, settings.model_dump(), [])

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.models.own.sprite_pipeline import SpriteCheckpoints, train_sprites

        whole = SpriteSettings(**settings.model_dump())
        places = SpriteCheckpoints(location, location, location)
        train_sprites(whole, places, _steps_of(progress), until=stage, every=every)
        return {"stage": stage}

    return once(store, "train", name, "steps", work, hash_below)


@task(name="train-sprites", task_run_name="train the denoiser of sprites")
def train_sprite_model(
    store: str,
    settings: SpriteSettings,
    autoencoder: Reference,
    text_encoder: Reference,
    every: int,
) -> Reference:
    """Train the denoiser, and save the pipeline below the store's models as ``sprites``."""
    upstream = [autoencoder.fingerprint, text_encoder.fingerprint]
    name = fingerprint("train-sprites", TRAIN_VERSION, settings.model_dump(), upstream)

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.models.own.sprite_pipeline import SpriteCheckpoints, train_sprites

        for part in (autoencoder, text_encoder):
            for damage in part.open().find_damage():
                raise damage
        places = SpriteCheckpoints(
            autoencoder.location, text_encoder.location, location / _CHECKPOINT
        )
        pipeline = train_sprites(settings, places, _steps_of(progress), every=every)
        _save(pipeline, location)
        return {"settings": settings.model_dump()}

    return _named(store, "sprites", once(store, "train", name, "steps", work, _model_content))


@task(name="train-digits", task_run_name="train the denoiser of digits")
def train_digit_model(store: str, settings: DigitSettings, every: int) -> Reference:
    """Train the denoiser, and save the pipeline below the store's models as ``digits``."""
    name = fingerprint("train-digits", TRAIN_VERSION, settings.model_dump(), [])

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.models.own.digit_pipeline import train_digits
        from compute.models.own.training_loop import Checkpoints

        place = Checkpoints(location / _CHECKPOINT, settings.model_dump(), every)
        pipeline = train_digits(settings, place, _steps_of(progress))
        _save(pipeline, location)
        return {"settings": settings.model_dump()}

    return _named(store, "digits", once(store, "train", name, "steps", work, _model_content))


@task(name="train-grammar", task_run_name="train the language model of a grammar")
def train_grammar_model(store: str, settings: GrammarSettings, every: int) -> Reference:
    """Train the model, and save it with its tokenizer below the store's models as ``grammar``."""
    name = fingerprint("train-grammar", TRAIN_VERSION, settings.model_dump(), [])

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.models.own import grammar_model

        def told(step: int, steps: int, loss: float) -> None:
            progress(step, steps)

        model = grammar_model.train_grammar_model(
            settings, location / _CHECKPOINT, told, checkpoint_every=every
        )
        world = grammar_model.grammar_world(settings)
        _write(lambda folder: grammar_model.save_grammar_model(model, world, folder), location)
        return {"settings": settings.model_dump()}

    return _named(store, "grammar", once(store, "train", name, "steps", work, _model_content))


@task(name="score", task_run_name="score the sprites")
def score_sprite_model(store: str, model: Reference, drawings: int, guidance: float) -> Reference:
    """Draw held-out captions and read what the drawings show."""

    def score(folder: Path) -> _Scored:
        from compute.models.own.packaged import load_text_to_image
        from compute.models.own.sprite_pipeline import draw_sprites, judge_sprites

        drawn = draw_sprites(load_text_to_image(folder), drawings, guidance=guidance)
        return _Scored(judge_sprites(drawn)._asdict(), drawn.images, drawn.captions)

    return _score(store, model, {"drawings": drawings, "guidance": guidance}, score)


@task(name="score", task_run_name="score the digits")
def score_digit_model(store: str, model: Reference, drawings: int) -> Reference:
    """Draw digits and read what the drawings show."""

    def score(folder: Path) -> _Scored:
        from compute.models.own.digit_pipeline import draw_digits, judge_digits
        from compute.models.own.packaged import load_unconditional

        drawn = draw_digits(load_unconditional(folder), drawings, seed=1)
        return _Scored(judge_digits(drawn)._asdict(), drawn, [])

    return _score(store, model, {"drawings": drawings}, score)


@task(name="score", task_run_name="score the model of a grammar")
def score_grammar_model(
    store: str, model: Reference, settings: GrammarSettings, texts: int
) -> Reference:
    """Let the model write texts and check their sentences."""
    name = fingerprint("score", SCORE_VERSION, {"texts": texts}, [model.fingerprint])

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from transformers import AutoModelForCausalLM

        from compute.models.own.grammar_model import grammar_world, judge_grammar_model

        with _folder_of(model) as folder:
            loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        world = grammar_world(settings)
        score, written = judge_grammar_model(loaded, world, texts, settings.length)
        progress(1, 1)
        location.put("texts.txt", "\n".join(written).encode())
        return {"score": score._asdict(), "texts": written[:_SHOWN]}

    reference = once(store, "score", name, "texts", work, hash_below)
    told = model.summary["model"]
    create_table_artifact([reference.summary["score"]], key="score", description=f"Score of {told}")
    create_markdown_artifact(
        "\n".join(f"1. {text}" for text in reference.summary["texts"]),
        key="texts",
        description="The first texts that the model wrote",
    )
    return reference


class _Scored(NamedTuple):
    """A score, the drawings ``(n, h, w[, 3])`` in [0, 1], and their captions if they have any."""

    score: dict[str, Any]
    drawings: NDArray[np.float32]
    captions: list[str]


def _score(store: str, model: Reference, settings: dict[str, Any], score: Any) -> Reference:
    name = fingerprint("score", SCORE_VERSION, settings, [model.fingerprint])

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.inputs.images import mosaic, png

        with _folder_of(model) as folder:
            scored: _Scored = score(folder)
        progress(1, 1)
        shown = np.rint(scored.drawings[:_SHOWN] * 255).astype(np.uint8)
        grid = mosaic(shown, _PER_ROW)
        location.put("drawings.png", png(grid, most=max(grid.shape)))
        return {
            "score": scored.score,
            "captions": scored.captions[:_SHOWN],
        }

    reference = once(store, "score", name, "drawings", work, hash_below)
    _show(model, reference)
    return reference


def _show(model: Reference, score: Reference) -> None:
    told = model.summary["model"]
    create_table_artifact([score.summary["score"]], key="score", description=f"Score of {told}")
    picture = base64.b64encode(score.open().get("drawings.png")).decode()
    captions = "\n".join(f"{i}. {text}" for i, text in enumerate(score.summary["captions"], 1))
    create_markdown_artifact(
        f"![drawings](data:image/png;base64,{picture})\n\n{captions}",
        key="drawings",
        description="The first drawings, row by row",
    )


def _save(pipeline: Any, location: Location) -> None:
    """Save a pipeline in half precision below `location`."""
    from compute.models.own.packaged import save_pipeline

    _write(lambda folder: save_pipeline(pipeline, folder), location)


def _write(save: Callable[[Path], None], location: Location) -> None:
    """Let `save` fill a folder and put it below `location` as ``model``."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                location.put(f"model/{path.relative_to(folder).as_posix()}", path.read_bytes())


def _model_content(location: Location) -> str:
    return hash_below(location / "model")


def _named(store: str, name: str, model: Reference) -> Reference:
    """Put the model where people look for it; another training may have put its own there."""
    shown = Location(store) / "models" / name
    files = model.open()
    paths = [path.removeprefix("model/") for path in files.walk("model")]
    for path in paths:
        shown.put(path, files.get(f"model/{path}"))
    seal_files(shown, paths)
    return model.model_copy(update={"summary": model.summary | {"model": shown.url}})


@contextlib.contextmanager
def _folder_of(model: Reference) -> Iterator[Path]:
    """A model, checked, as a folder of this machine for the duration of the block."""
    files = model.open()
    with tempfile.TemporaryDirectory() as folder:
        for path in files.walk("model"):
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files.get(path))
        yield Path(folder, "model")


def _steps_of(progress: Progress) -> StageProgress:
    return lambda stage, step, steps, loss: progress(step, steps)
