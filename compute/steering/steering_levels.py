"""The levels of an artifact as steering needs them: where each is read, and its dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compute.dictionaries import Dictionary

__all__ = ["ConceptLevel", "concept_levels", "find_level"]


@dataclass(frozen=True, eq=False)
class ConceptLevel:
    """One level: a place in a model, and the dictionary of the activations found there.

    Attributes
    ----------
    level : number, 1..L, lowest first.
    name : path-safe name.
    hookpoint : place in the model, as in `compute.models.hooks`.
    dictionary : encoder and decoder; codes are in the units of the activations.
    timestep : training timestep of a diffusion model, or None.
    largest : ``(n_concepts,)`` largest code that was observed of each concept, NaN where unknown.
    frequency : ``(n_concepts,)`` share of rows in which each concept is active, NaN where unknown.
    """

    level: int
    name: str
    hookpoint: str
    dictionary: Dictionary
    timestep: int | None = None
    largest: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    frequency: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        n = self.dictionary.n_concepts
        for name in ("largest", "frequency"):
            given = getattr(self, name)
            if not len(given):
                object.__setattr__(self, name, np.full(n, np.nan))
            elif given.shape != (n,):
                raise ValueError(
                    f"{name} of level {self.name!r} has shape {given.shape}: it must be ({n},)"
                )

    def largest_of(self, concept: int) -> float:
        """Return the largest code that was observed of a concept.

        Raises
        ------
        ValueError : nothing is known of it.
        """
        largest = float(self.largest[concept])
        if not np.isfinite(largest):
            raise ValueError(
                f"concept {self.level}:{concept} has no observed range: it has no example in the "
                "artifact; leave clamp out, or give the level 'largest'"
            )
        return largest


def concept_levels(artifact: Any) -> tuple[ConceptLevel, ...]:
    """Return the levels of an artifact, lowest first.

    Parameters
    ----------
    artifact : a loaded `storage.artifacts.Artifact`, one `ConceptLevel`, or a sequence of them.

    Raises
    ------
    ValueError : there is no level, two have one number or name, or a dictionary cannot be edited.
    """
    if isinstance(artifact, ConceptLevel):
        levels: Sequence[ConceptLevel] = (artifact,)
    elif hasattr(artifact, "dictionary") and hasattr(artifact, "levels"):
        levels = [_published(artifact, entry) for entry in artifact.levels]
    else:
        levels = list(artifact)
    if not levels:
        raise ValueError("the artifact has no level: steering needs a dictionary")
    for what in ("level", "name"):
        found = [getattr(level, what) for level in levels]
        if len(set(found)) < len(found):
            raise ValueError(f"levels repeat a {what} ({found}): give each its own")
    return tuple(sorted(levels, key=lambda level: level.level))


def find_level(levels: Sequence[ConceptLevel], wanted: int | str) -> ConceptLevel:
    """Return the level of this number or name.

    Raises
    ------
    ValueError : there is none.
    """
    for level in levels:
        if wanted in (level.level, level.name):
            return level
    known = ", ".join(f"{level.level} ({level.name})" for level in levels)
    raise ValueError(f"level {wanted!r} is not in the artifact: it has {known}")


def moved(levels: Sequence[ConceptLevel], device: Any) -> tuple[ConceptLevel, ...]:
    """Return the levels with their dictionaries on a device."""
    return tuple(
        level
        if level.dictionary.device == device
        else replace(level, dictionary=level.dictionary.to(device))
        for level in levels
    )


def _published(artifact: Any, entry: Any) -> ConceptLevel:
    published = artifact.dictionary(entry.level)
    architecture, weights = published.architecture, dict(published.weights)
    if architecture == "standard":
        # relu(pre) is a jumprelu whose thresholds are 0.
        architecture = "jumprelu"
        weights["threshold"] = np.zeros(published.n_concepts, dtype=np.float32)
    if architecture == "transcoder":
        raise ValueError(
            f"level {entry.name!r} is a transcoder, which maps one place to another: only "
            "dictionaries of one place can be edited"
        )
    frequency = published.log10_frequency
    return ConceptLevel(
        level=entry.level,
        name=entry.name,
        hookpoint=entry.hookpoint,
        # Only a topk dictionary reads k; elsewhere it says how many are active on average.
        dictionary=Dictionary.from_weights(
            architecture, weights, k=published.k or int(published.metadata.get("k") or 1)
        ),
        timestep=entry.timestep,
        largest=_largest(artifact, entry.level, published.n_concepts),
        frequency=np.empty(0) if frequency is None else 10.0 ** frequency.astype(np.float64),
    )


def _largest(artifact: Any, level: int, n_concepts: int) -> NDArray[np.float32]:
    """The largest code of every concept: that of its strongest example."""
    largest = np.full(n_concepts, np.nan, dtype=np.float32)
    try:
        examples = artifact.examples(level)
    except KeyError:
        return largest
    for example in examples:
        index, activation = example.get("index"), example.get("activation")
        if index is not None and activation is not None:
            largest[index] = np.fmax(largest[index], np.float32(activation))
    return largest
