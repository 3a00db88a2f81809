"""What a run reads: texts, prompts or images, and the model beside them.

`look` reads and identifies all of them once and returns `Sources`, from which the rest comes: the
blocks of samples that are extracted, their identity in a fingerprint, and the model's adapter.
`load_samples` reads back what an extraction has written of its samples. Nothing is imported with
this package before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compute.inputs.sources import Samples, Sources, load_samples, look

_HOMES = {
    "Samples": "compute.inputs.sources",
    "Sources": "compute.inputs.sources",
    "load_samples": "compute.inputs.sources",
    "look": "compute.inputs.sources",
}

__all__ = ["Samples", "Sources", "load_samples", "look"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
