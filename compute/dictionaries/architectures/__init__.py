"""The architectures of a dictionary, one file each."""

from compute.dictionaries.architectures.architecture import Architecture, Gradients, Normalization
from compute.dictionaries.architectures.batchtopk import BatchTopK
from compute.dictionaries.architectures.gated import Gated
from compute.dictionaries.architectures.jumprelu import JumpReLU
from compute.dictionaries.architectures.matryoshka import Matryoshka
from compute.dictionaries.architectures.topk import TopK
from compute.dictionaries.dictionary_settings import ArchitectureName

_KNOWN: tuple[Architecture, ...] = (TopK(), BatchTopK(), JumpReLU(), Matryoshka(), Gated())
_REGISTRY: dict[str, Architecture] = {known.name: known for known in _KNOWN}


def architecture_named(name: ArchitectureName) -> Architecture:
    """Return the architecture registered under ``name``.

    Raises
    ------
    ValueError
        If there is none.
    """
    if name not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise ValueError(f"architecture = {name!r} is not known: choose one of {known}")
    return _REGISTRY[name]


__all__ = ["Architecture", "Gradients", "Normalization", "architecture_named"]
