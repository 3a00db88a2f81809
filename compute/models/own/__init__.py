"""The models that Strata trains itself: sprites, digits and a grammar, whose truth is known.

Each is an ordinary model of diffusers or transformers, trained by a function that goes on from its
checkpoint. Weights that come with the project lie in `compute/pretrained`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compute.models.own.digit_pipeline import train_digits
    from compute.models.own.grammar_model import train_grammar_model
    from compute.models.own.sprite_pipeline import train_sprites

_HOMES = {
    "train_digits": "compute.models.own.digit_pipeline",
    "train_grammar_model": "compute.models.own.grammar_model",
    "train_sprites": "compute.models.own.sprite_pipeline",
}

__all__ = ["train_digits", "train_grammar_model", "train_sprites"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
