"""Dictionaries that were trained elsewhere: found, held against their levels, and tried on rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compute.settings import LearnSettings, LevelLearnSettings, LevelSettings, ModelSettings, Recipe
from storage.tables.activations import ActivationSet
from storage.tables.loader import kept_rows

if TYPE_CHECKING:
    from compute.dictionaries.imports import Imported

__all__ = ["find_dictionaries", "sized", "try_on_rows"]

# Rows on which a dictionary is tried before all are read.
_PROBE_ROWS = 4096
# Share of the explained variance that its files claim, below which it is not the one they mean.
_FAR_BELOW = 0.5


def find_dictionaries(recipe: Recipe, widths: Sequence[int] = ()) -> dict[str, Imported]:
    """Level → its dictionary, as the recipe's `learn.source` names it.

    Parameters
    ----------
    recipe : Recipe
    widths : sequence of int
        Width of each level's activations, where they are known.

    Raises
    ------
    ValueError
        In one sentence, if one is not there, cannot be read, or is of another model or place.
    """
    from compute.dictionaries.imports import import_dictionary

    found = {}
    for number, level in enumerate(recipe.levels):
        source = recipe.learn.source_of(level.name)
        try:
            imported = import_dictionary(source, level.name)
            _check(imported, level, recipe.model, widths[number] if widths else None)
        except ValueError as error:
            raise ValueError(f"learn.source of level {level.name!r}: {error}.") from None
        found[level.name] = imported
    return found


def sized(recipe: Recipe, widths: Sequence[int]) -> LearnSettings:
    """How the recipe learns, with the sizes of the dictionaries where it takes trained ones.

    Raises
    ------
    ValueError
        As :func:`find_dictionaries` does.
    """
    learn = recipe.learn
    if learn.method != "import":
        return learn
    found = find_dictionaries(recipe, widths)
    levels = {
        name: LevelLearnSettings(n_concepts=own.dictionary.n_concepts, k=own.likely_k)
        for name, own in found.items()
    }
    kinds = {own.dictionary.architecture for own in found.values()}
    return learn.model_copy(
        update={
            "levels": levels,
            "n_concepts": max(own.dictionary.n_concepts for own in found.values()),
            "k": max(own.likely_k for own in found.values()),
            "architecture": "topk" if kinds == {"topk"} else "jumprelu",
        }
    )


def try_on_rows(
    activations: ActivationSet, level: str, imported: Imported, bounds: Mapping[str, float]
) -> Any:
    """The dictionary of a level, if it describes rows that were held out.

    Its k, where its files do not tell it, is the mean number of active concepts of these rows,
    rounded up.

    Raises
    ------
    ValueError
        If it explains no more than the mean of the rows does, or far less than its files claim.
    """
    from compute.dictionaries.evaluation import Evaluator

    rows = activations.plan.split("held_out")
    evaluator = Evaluator(imported.dictionary)
    for start in range(rows.start, min(rows.stop, rows.start + _PROBE_ROWS), 512):
        stop = min(start + 512, rows.stop, rows.start + _PROBE_ROWS)
        kept = kept_rows(activations, dict(bounds), start, stop)
        if kept.any():
            evaluator.update(activations.read(level, start, stop)[kept].astype(np.float32))
    found = evaluator.result()
    reached, claimed = found.explained_variance, imported.claims.explained_variance
    least = _FAR_BELOW * claimed if claimed is not None and claimed > 0 else 0.0
    # Of a single row there is no variance to explain, and nothing can be said.
    if math.isfinite(reached) and reached <= least:
        told = "" if claimed is None else f", where its files claim {claimed:.3g}"
        raise ValueError(
            f"learn.source of level {level!r}: the dictionary explains {reached:.3g} of the"
            f" variance of {found.n_rows} held-out rows{told}, with {found.l0:.0f} of"
            f" {imported.dictionary.n_concepts} concepts active{_claimed_l0(imported)}:"
            f" {_reasons(imported)}; give the one of this place."
        )
    return imported.with_k(math.ceil(found.l0))


def _claimed_l0(imported: Imported) -> str:
    l0 = imported.claims.l0
    return "" if l0 is None else f" (claimed: {l0:.0f})"


def _reasons(imported: Imported) -> str:
    """What has likely gone wrong, the likeliest first."""
    place = "it may be of another layer or model"
    if imported.claims.hook is not None:
        place = f"it says that it is of {imported.claims.hook}, and may be of another model's"
    return (
        f"{place}, have been trained on activations that were normalised, or on a model whose"
        " weights were centred or folded (as TransformerLens does), or on texts of another"
        " tokenizer"
    )


def _check(
    imported: Imported, level: LevelSettings, model: ModelSettings, width: int | None
) -> None:
    """Refuse a dictionary that is clearly of another place or model."""
    from compute.dictionaries.imports.hook_names import may_be_one_model, may_be_one_place

    claims, d = imported.claims, imported.dictionary.d
    if claims.hook is not None and not may_be_one_place(claims.hook, level.hookpoint):
        raise ValueError(
            f"the dictionary was trained on {claims.hook}, and the level reads {level.hookpoint}:"
            " give the dictionary of that place, or change the level's hookpoint"
        )
    if claims.timestep is not None and claims.timestep != level.timestep:
        raise ValueError(
            f"the dictionary was trained at timestep {claims.timestep}, and the level reads"
            f" {level.timestep}: give the one of that timestep, or change the level's"
        )
    if claims.model is not None and not _may_be(claims.model, model, may_be_one_model):
        raise ValueError(
            f"the dictionary was trained on {claims.model}, and the model is {model.source}: give"
            " a dictionary of this model, or that model"
        )
    if width is not None and d != width:
        raise ValueError(
            f"the dictionary reads activations of width {d}, and those of {level.hookpoint} have"
            f" {width}: it is of another model or place"
        )


def _may_be(claimed: str, model: ModelSettings, may_be_one_model: Any) -> bool:
    """Whether the names may mean one model; a folder or a package may be named anyhow."""
    if claimed in (model.source, model.gguf_file):
        return True
    anyhow = model.source.startswith("package:") or Path(model.source).expanduser().exists()
    return anyhow or bool(may_be_one_model(claimed, model.source))
