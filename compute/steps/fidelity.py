"""What the model loses where a level's activations are replaced by what its codes say.

It is part of the step `learn`, for every method. The model runs where it ran when its activations
were extracted.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compute.cluster import actor_options, connect, worker_log
from compute.inputs.corpus import Corpus
from compute.inputs.sources import block_reader, load_samples, model_loader
from compute.settings import LevelSettings, Recipe, ResourceSettings
from compute.steps.encode import published_codes
from compute.steps.learn import load_dictionaries, load_model, read_norm_bounds
from storage.registry.manifests import LOSS_SCORES
from storage.sealing.seals import Files
from storage.tables.activations import ActivationSet
from storage.tables.loader import kept_rows

__all__ = ["measure_fidelity", "passed_rows"]

_log = logging.getLogger("strata")

# Held-out tokens, or pictures, that go through the model for every level and once as they are.
_TOKENS, _PICTURES = 2048, 32
# Tokens in one pass: with their logits over 250,000 words half a gigabyte.
_PASS_TOKENS = 512
# Rows are shuffled globally, so the first ones have the mean of all.
_MEAN_ROWS = 16_384
_SCORES = dict(zip(("language", "diffusion"), LOSS_SCORES, strict=True))


def measure_fidelity(
    recipe: Recipe, activations: ActivationSet, learned: Files, *, dtype: str
) -> dict[str, dict[str, float]]:
    """Run the model on some held-out samples with one level at a time replaced.

    Parameters
    ----------
    learned : Files
        What :func:`compute.steps.learn.train` wrote.
    dtype : str
        The type in which the model ran when its activations were extracted.

    Returns
    -------
    dict of str to dict
        Per level ``cross_entropy_recovered``, or ``denoising_loss_recovered`` of a diffusion model,
        by the codes that are published. Where these are a selection model's own the same of its
        linear reading, with ``reading_`` before the name. Empty where the model cannot be asked,
        such as one whose latents are packed, which is logged.
    """
    import ray

    samples = load_samples(activations.files)
    read = block_reader(samples, recipe.inputs, seed=recipe.extract.seed)
    items = _items(samples, read, recipe)
    load = model_loader(recipe.model, recipe.levels, recipe.extract, dtype)
    resources = recipe.resources.extract
    connect()
    _log.info("loads the model, to measure what it loses by codes")
    task = ray.remote(max_retries=1, **actor_options(resources))(_measure)
    found: dict[str, dict[str, float]] = ray.get(
        task.remote(load, items, recipe.levels, activations, learned, resources)
    )
    name = _SCORES[recipe.model.kind]
    return {
        level: {f"{kind}{name}": share for kind, share in shares.items()}
        for level, shares in found.items()
    }


def passed_rows(recipe: Recipe, rows_of_picture: int = 1) -> int:
    """Rows that go through the model, counted once for each pass."""
    passes = 2 + (2 if recipe.learn.method == "independent" else 3) * len(recipe.levels)
    once = _TOKENS if recipe.model.kind == "language" else _PICTURES * rows_of_picture
    return passes * once


def _items(samples: Any, read: Callable[[int], Sequence[Any]], recipe: Recipe) -> list[Any]:
    """Held-out windows or pictures, no more than are needed."""
    from compute.verification.items import held_out_items

    if not isinstance(samples, Corpus):
        return held_out_items(samples, read, _PICTURES, recipe.extract.seed)
    length = min(recipe.extract.context_length, _TOKENS)
    windows = held_out_items(samples, read, max(1, _TOKENS // length), recipe.extract.seed)
    return [dataclasses.replace(w, tokens=w.tokens[:length]) for w in windows]


def _measure(
    load: Callable[[], Any],
    items: Sequence[Any],
    levels: Sequence[LevelSettings],
    activations: ActivationSet,
    learned: Files,
    resources: ResourceSettings,
) -> dict[str, dict[str, float]]:
    """Level → share by kind of reconstruction: "" of what is published, "reading_"."""
    import torch

    from compute.steering import ConceptLevel
    from compute.verification import open_bench, recovered_loss

    torch.set_num_threads(max(1, int(resources.cpus)))
    dictionaries, bounds = load_dictionaries(learned), read_norm_bounds(learned)
    places = [
        ConceptLevel(number, level.name, level.hookpoint, dictionaries[level.name], level.timestep)
        for number, level in enumerate(levels, 1)
    ]
    means = _means(activations, bounds)
    try:
        bench = open_bench(load(), places, items, batch_size=_batch(items))
        model = load_model(learned, str(bench.target.device))
        moved = {level.level: level.dictionary for level in bench.levels}
        rebuilds = {"": lambda rows: _published(moved, model, rows)}
        if model is not None:
            rebuilds["reading_"] = lambda rows: {n: moved[n](x) for n, x in rows.items()}
        found = recovered_loss(
            bench,
            rebuilds,
            means={place.level: means[place.name] for place in places},
            bounds={place.level: bounds[place.name] for place in places},
        )
    except ValueError as error:
        worker_log().warning("what the model loses by codes is not measured: %s", error)
        return {}
    return {
        place.name: {
            kind: shares[place.level]
            for kind, shares in found.items()
            if math.isfinite(shares[place.level])
        }
        for place in places
    }


def _batch(items: Sequence[Any]) -> int | None:
    """Windows of one pass; pictures as many as the bench has by itself."""
    lengths = [len(item.tokens) for item in items if hasattr(item, "tokens")]
    return max(1, _PASS_TOKENS // max(lengths)) if lengths else None


def _published(
    dictionaries: Mapping[int, Any], model: Any, rows: Mapping[int, Any]
) -> dict[int, Any]:
    """Level → what its dictionary makes of the codes that are published of these rows."""
    numbers = sorted(rows)
    own = [dictionaries[number] for number in numbers]
    codes = published_codes(own, model, [rows[number] for number in numbers])
    return {
        number: dictionary.decode_sparse(sparse.indices, sparse.values)
        for number, dictionary, sparse in zip(numbers, own, codes, strict=True)
    }


def _means(activations: ActivationSet, bounds: Mapping[str, float]) -> dict[str, Any]:
    """Level → mean (d,) of its rows for training, outliers left out."""
    stop = min(activations.plan.n_train, _MEAN_ROWS)
    kept = kept_rows(activations, bounds, 0, stop)
    return {
        level: activations.read(level, 0, stop)[kept].mean(0, dtype=np.float64).astype(np.float32)
        for level in activations.levels
    }
