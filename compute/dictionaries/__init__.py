"""Sparse dictionaries: the concepts of one level, learnt from its activations.

``fit_dictionary`` is the front door for data in memory; ``train_levels`` and
``DictionaryTrainer`` learn from streams. Importing this package does not import torch: the
settings are read by parts of the project that run without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compute.dictionaries.dictionary_settings import DictionarySettings

if TYPE_CHECKING:
    from compute.dictionaries.dictionary import Dictionary
    from compute.dictionaries.fit import fit_dictionary
    from compute.dictionaries.level_training import train_levels
    from compute.dictionaries.trainer import DictionaryTrainer

_HOMES = {
    "Dictionary": "compute.dictionaries.dictionary",
    "DictionaryTrainer": "compute.dictionaries.trainer",
    "fit_dictionary": "compute.dictionaries.fit",
    "train_levels": "compute.dictionaries.level_training",
}

__all__ = [
    "Dictionary",
    "DictionarySettings",
    "DictionaryTrainer",
    "fit_dictionary",
    "train_levels",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
