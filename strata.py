"""Strata's front door: published artifacts, steering and the models behind them, in one name.

    import strata
    artifact = strata.load("smollm2")
    artifact.concept("2:417").parents

Each name is imported when it is first asked for: reading artifacts needs no torch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.artifacts import Artifact

_HOMES = {
    "DiscreteHierarchy": "compute.selection",
    "Edit": "compute.steering",
    "HierarchicalSelectionModel": "compute.selection",
    "Registry": "storage.artifacts",
    "SelectionWorld": "compute.worlds",
    "fit_dictionary": "compute.dictionaries",
    "nonnegative_rank": "compute.selection",
    "recover_edges": "compute.graphs",
    "steer": "compute.steering",
}


def load(name: str, version: int | str = "latest", store: str | None = None) -> "Artifact":
    """Open a published version from a store: a folder or URL, else STRATA_STORE, else `.strata`.

    Raises UnknownArtifact (a KeyError) if there is none, in a sentence that says what there is.
    """
    from storage.artifacts import Registry, UnknownArtifact
    from storage.locations import Location

    place = Location(str(store or os.environ.get("STRATA_STORE", ".strata")))
    registry = Registry((place / "artifacts").url)
    try:
        return registry.load(name, version)
    except UnknownArtifact as error:
        found = ", ".join(registry.names()) or "nothing yet, `strata run RECIPE` fills it"
        raise type(error)(f"{str(error).rstrip('.')}; in {place.url}: {found}.") from None


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'strata' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"strata.{name} needs the package {error.name!r}: pip install 'strata[pipeline]'."
        ) from error


def __dir__() -> list[str]:
    return ["load", *_HOMES]
