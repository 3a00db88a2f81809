"""The flows that train the project's own models: sprites, digits and a grammar."""

# No `from __future__ import annotations` here: Prefect resolves the flow's parameters where this
# module's names are not to be had, so its annotations must be classes and not strings.
from collections.abc import Callable

from prefect import flow

from compute.models.own.training_settings import (
    AutoencoderSettings,
    DigitSettings,
    GrammarSettings,
    SpriteSettings,
    TextSettings,
)
from flows.current_run import note_flow_run
from flows.training_recipes import DigitTraining, GrammarTraining, SpriteTraining, Training
from storage.references import Reference
from tasks.training import (
    score_digit_model,
    score_grammar_model,
    score_sprite_model,
    train_digit_model,
    train_grammar_model,
    train_sprite_model,
    train_sprite_part,
)

__all__ = ["run_training", "train_digits", "train_grammar", "train_sprites"]


@flow(name="train-sprites", log_prints=False)
def train_sprites(settings: SpriteTraining) -> dict[str, Reference]:
    """Train the text-to-image model of sprites and score it on captions it has not seen.

    The model lies in `<store>/models/sprites` afterwards. What is trained already, with the same
    settings, is not trained again; an interrupted training goes on where it stopped.

    Returns
    -------
    dict of str to Reference
        `model` and `score`.
    """
    note_flow_run()
    store, every = settings.store, settings.checkpoint_every
    drawing = train_sprite_part(store, settings.stage(AutoencoderSettings), every)
    reading = train_sprite_part(store, settings.stage(TextSettings), every)
    model = train_sprite_model(store, settings.stage(SpriteSettings), drawing, reading, every)
    score = score_sprite_model(store, model, settings.drawings, settings.guidance)
    return {"model": model, "score": score}


@flow(name="train-digits", log_prints=False)
def train_digits(settings: DigitTraining) -> dict[str, Reference]:
    """Train the unconditional model of MNIST digits and let a reader of digits score it.

    The model lies in `<store>/models/digits` afterwards. What is trained already, with the same
    settings, is not trained again; an interrupted training goes on where it stopped.

    Returns
    -------
    dict of str to Reference
        `model` and `score`.
    """
    note_flow_run()
    store, every = settings.store, settings.checkpoint_every
    model = train_digit_model(store, settings.stage(DigitSettings), every)
    return {"model": model, "score": score_digit_model(store, model, settings.drawings)}


@flow(name="train-grammar", log_prints=False)
def train_grammar(settings: GrammarTraining) -> dict[str, Reference]:
    """Train a small GPT-2 on texts of a grammar world and check the sentences that it writes.

    The model lies in `<store>/models/grammar` afterwards. What is trained already, with the same
    settings, is not trained again; an interrupted training goes on where it stopped.

    Returns
    -------
    dict of str to Reference
        `model` and `score`.
    """
    note_flow_run()
    store, stage = settings.store, settings.stage(GrammarSettings)
    model = train_grammar_model(store, stage, settings.checkpoint_every)
    return {"model": model, "score": score_grammar_model(store, model, stage, settings.texts)}


_FLOWS: dict[type[Training], Callable[..., dict[str, Reference]]] = {
    SpriteTraining: train_sprites,
    DigitTraining: train_digits,
    GrammarTraining: train_grammar,
}


def run_training(settings: Training, announce: Callable[[str], None]) -> dict[str, Reference]:
    """Run the training that the settings are of, and announce where it lies and what it scored."""
    done = _FLOWS[type(settings)](settings)
    announce(f"model  {done['model'].summary['model']}")
    for name, value in done["score"].summary["score"].items():
        announce(
            f"  {name:<16} {value:.3f}" if isinstance(value, float) else f"  {name:<16} {value}"
        )
    return done
