"""Generative models behind one contract: named levels in, aligned activation rows out.

`load_adapter` picks the adapter by kind; torch and the model libraries are imported by it and not
by this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compute.models.adapter import ModelAdapter

__all__ = ["ADAPTERS", "load_adapter"]

ADAPTERS = {
    "language": ("compute.models.language", "LanguageModel"),
    "diffusion": ("compute.models.diffusion", "DiffusionModel"),
}


def load_adapter(kind: str, source: str, **settings: Any) -> ModelAdapter[Any]:
    """Load the model at ``source`` as an adapter of the given kind.

    Parameters
    ----------
    kind : ``language`` or ``diffusion``.
    source : hub id, folder, GGUF file or ``package:NAME``.
    settings : keyword arguments of `LanguageModel.load` or `DiffusionModel.load`.

    Raises
    ------
    ValueError : the kind is unknown, or the adapter refuses a setting.
    """
    if kind not in ADAPTERS:
        raise ValueError(f"model kind {kind!r} is unknown; use one of {', '.join(ADAPTERS)}")
    module, name = ADAPTERS[kind]
    adapter: ModelAdapter[Any] = getattr(import_module(module), name).load(source, **settings)
    return adapter
