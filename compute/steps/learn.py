"""Learning: one dictionary per level, each by itself, all together, or trained elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compute.cluster import Progress, actor_options, connect, silent, watch, worker_log
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.settings import LearnSettings, LevelSettings, Recipe, ResourceSettings
from compute.steps.importing import try_on_rows
from storage.exports.saelens import CONFIG_FILE, SPARSITY_FILE, WEIGHTS_FILE, to_saelens
from storage.locations import Location
from storage.sealing.damage import CorruptFile
from storage.sealing.sealed_checkpoints import SealedCheckpoints
from storage.sealing.seals import Files, SealedFolder
from storage.tables.activations import ActivationSet
from storage.tables.loader import ActivationLoader, kept_rows

__all__ = [
    "DICTIONARY_FILES",
    "load_dictionaries",
    "load_model",
    "norm_bounds",
    "published_metadata",
    "read_norm_bounds",
    "read_recurrence",
    "train",
]

DICTIONARY_FILES = (CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE)
_BOUNDS = "norm_bounds.json"
_CHECKPOINTS = "checkpoints"
# A hierarchical selection model, from which its codes are inferred.
_MODEL = "selection.safetensors"
# By level, how each concept comes again from other seeds.
_RECURRENCE = "recurrence.json"
# Mean |cosine| with its counterparts from which on a concept is said to come again.
SAME_DIRECTION = 0.9
# Rows are shuffled globally, so the first ones are a fair sample of all.
_MEDIAN_ROWS = 1_000_000


def norm_bounds(activations: ActivationSet, outlier_norm: float) -> dict[str, float]:
    """The largest norm a row may have at each level: `outlier_norm` medians of the training rows.

    A few rows have norms a hundred times the rest (attention sinks); they would dominate every
    sum of squares and flatter every score.
    """
    stop = min(activations.plan.n_train, _MEDIAN_ROWS)
    return {
        level: outlier_norm * float(np.median(activations.norms(level, 0, stop)))
        for level in activations.levels
    }


def train(
    activations: ActivationSet,
    location: Location,
    settings: LearnSettings,
    *,
    metadata: Mapping[str, Mapping[str, Any]],
    resources: ResourceSettings,
    known: SealedFolder | None = None,
    imported: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, float]]:
    """Train a dictionary for every level, or go on from the last checkpoint, or take trained ones.

    Writes ``dictionaries/<level>/`` in SAELens' layout, the norm bounds and, of a hierarchical
    selection model, the model itself below `location`, and leaves checkpoints below
    ``checkpoints``.

    Parameters
    ----------
    activations : ActivationSet
    location : Location
    settings : LearnSettings
        The same for every level.
    metadata : mapping of str to mapping
        Per level, what its ``cfg.json`` shall say.
    resources : ResourceSettings
        What the training task reserves; its CPUs are its threads.
    known : SealedFolder, optional
        What an earlier run wrote at `location`: levels whose weights are whole are not trained
        again.
    imported : mapping of str to Imported, optional
        Per level, its trained dictionary (:mod:`compute.dictionaries.imports`), of import.
    progress : callable
        Told the steps done and all steps; of a hierarchical selection model, the phases that its
        levels are through and all of them; of dictionaries trained elsewhere, levels.

    Returns
    -------
    dict of str to dict
        Per level, scores on the held-out rows: explained_variance, l0, dead_share (concepts that
        no kept row of either split activates), n_rows, n_outliers (rows left out, of both splits).
        Those of a hierarchical selection model are of its own codes; beside them stands
        reading_explained_variance, of the dictionary that is published, and with several seeds
        agreement, the mean |cosine| of concepts matched between seeds, and agreement_share, the
        share of concepts that come again. One that is not a number is left out. What codes keep of
        the model's loss is none of them, since rows alone do not tell it: that is
        :func:`compute.steps.fidelity.measure_fidelity`, which needs the model.
    """
    import ray

    connect()
    task = ray.remote(max_retries=3, **actor_options(resources))(_train)
    scores: dict[str, dict[str, float]] = watch(
        lambda report: task.remote(
            activations, location.url, settings, metadata, resources, known, imported, report
        ),
        progress,
    )
    return scores


def published_metadata(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the ``cfg.json`` of each level says of it, under SAELens' names where it has one."""
    return {
        level.name: _published_metadata(number, level, recipe)
        for number, level in enumerate(recipe.levels, 1)
    }


def _published_metadata(number: int, level: LevelSettings, recipe: Recipe) -> dict[str, Any]:
    parts = level.hookpoint.split(".")
    layer = int(parts[1]) if parts[0] == "layers" and parts[1:2] and parts[1].isdigit() else None
    hook = f"blocks.{layer}.hook_resid_post" if parts[2:] == ["output"] else level.hookpoint
    language = recipe.model.kind == "language"
    return {
        "model_name": recipe.model.gguf_file or recipe.model.source,
        "hook_name": hook,
        "context_size": recipe.extract.context_length if language else None,
        "prepend_bos": False,
        "level": number,
        "level_name": level.name,
        "layer": layer,
        "hookpoint": level.hookpoint,
        "timestep": level.timestep,
    }


def load_dictionaries(learned: Files) -> dict[str, Any]:
    """The dictionaries that :func:`train` wrote: level → :class:`Dictionary`.

    Raises
    ------
    CorruptFile
        If a file is not the one that was sealed.
    """
    from compute.dictionaries import Dictionary
    from storage.exports.saelens import from_saelens

    found = {}
    for level in learned.children("dictionaries"):
        paths = {name: f"dictionaries/{level}/{name}" for name in DICTIONARY_FILES}
        published = from_saelens(
            {name: learned.get(path) for name, path in paths.items() if learned.exists(path)}
        )
        k = published.k or int(published.metadata["k"])
        found[level] = Dictionary.from_weights(published.architecture, published.weights, k=k)
    return found


def load_model(learned: Files, device: str = "cpu") -> Any:
    """The hierarchical selection model that :func:`train` fitted, or none.

    Raises
    ------
    CorruptFile
        If it is not the one that was sealed.
    """
    if not learned.exists(_MODEL):
        return None
    from compute.selection import StreamedSelectionModel

    return StreamedSelectionModel.from_checkpoint(learned.get(_MODEL), device)


def read_recurrence(learned: SealedFolder) -> dict[str, list[float]]:
    """Level → for each concept its mean |cosine| with what other seeds have found in its place, in
    coordinates whitened on all rows. Empty where :func:`train` was given one seed."""
    if not learned.exists(_RECURRENCE):
        return {}
    found: dict[str, list[float]] = json.loads(learned.get(_RECURRENCE))
    return found


def read_norm_bounds(learned: Files) -> dict[str, float]:
    """The norm bounds that :func:`train` used: level → largest norm."""
    bounds: dict[str, float] = json.loads(learned.get(_BOUNDS))
    return bounds


def _train(
    activations: ActivationSet,
    url: str,
    settings: LearnSettings,
    metadata: Mapping[str, Mapping[str, Any]],
    resources: ResourceSettings,
    known: SealedFolder | None,
    imported: Mapping[str, Any] | None,
    report: Any,
) -> dict[str, dict[str, float]]:
    import torch

    torch.set_num_threads(max(1, int(resources.cpus)))
    location = Location(url)
    bounds = norm_bounds(activations, settings.outlier_norm)
    location.put(_BOUNDS, json.dumps(bounds).encode())
    model = None
    again: dict[str, list[float]] = {}
    found = _whole(known, activations.levels)
    missing = [level for level in activations.levels if level not in found]
    if settings.method == "hierarchical":
        whole = None if missing or known is None else _whole_model(known, settings)
        if whole is None:
            model, again = _together(activations, location, settings, bounds, resources, report)
            found = dict(zip(activations.levels, model.dictionaries_, strict=True))
        else:
            model, again = whole
    elif imported:
        for number, level in enumerate(missing, 1):
            found[level] = try_on_rows(activations, level, imported[level], bounds)
            report.remote(number, len(missing))
    elif missing:
        found |= _apart(activations, missing, location, settings, bounds, resources, report)
    held_out = _evaluate(activations, found, model, bounds, "held_out")
    train = _evaluate(activations, found, model, bounds, "train")
    read = held_out if model is None else _evaluate(activations, found, None, bounds, "held_out")
    scores = {}
    for level in activations.levels:
        own, trained = held_out[level], train[level]
        silent_everywhere = (own.frequencies == 0) & (trained.frequencies == 0)
        told = own.summary() | {
            "dead_share": float(silent_everywhere.mean()),
            "train_explained_variance": trained.explained_variance,
            "n_outliers": float(len(activations) - own.n_rows - trained.n_rows),
        }
        if model is not None:
            told["reading_explained_variance"] = read[level].explained_variance
        if level in again:
            told["agreement"] = float(np.mean(again[level]))
            told["agreement_share"] = float(np.mean(np.array(again[level]) > SAME_DIRECTION))
        scores[level] = {name: value for name, value in told.items() if math.isfinite(value)}
        rows = own.n_rows + trained.n_rows
        firing = (own.frequencies * own.n_rows + trained.frequencies * trained.n_rows) / rows
        for name, data in _files(found[level], metadata[level], firing).items():
            path = f"dictionaries/{level}/{name}"
            if known is None or known.find_damage([path]):
                location.put(path, data)
    return scores


def _files(dictionary: Any, metadata: Mapping[str, Any], frequency: Any) -> dict[str, bytes]:
    """A dictionary's files as they are published."""
    return to_saelens(
        dictionary.weights(),
        architecture=dictionary.architecture,
        k=dictionary.k if dictionary.architecture == "topk" else None,
        metadata={**metadata, "k": dictionary.k},
        frequency=frequency,
    )


def _whole(known: SealedFolder | None, levels: Sequence[str]) -> dict[str, Any]:
    """Level → its dictionary, of those whose weights are there as they were sealed."""
    from safetensors.numpy import load

    from compute.dictionaries import Dictionary

    found: dict[str, Any] = {}
    if known is None:
        return found
    for level in levels:
        try:
            weights = load(known.get(f"dictionaries/{level}/{WEIGHTS_FILE}"))
        except CorruptFile:
            continue
        told = json.loads(known.get(f"dictionaries/{level}/{CONFIG_FILE}"))
        k = int(told["metadata"]["k"])
        found[level] = Dictionary.from_weights(told["architecture"], weights, k=k)
    return found


def _whole_model(
    known: SealedFolder, settings: LearnSettings
) -> tuple[Any, dict[str, list[float]]] | None:
    """The model that is there, and how its concepts came again, if both are as they were sealed."""
    try:
        model, again = load_model(known), read_recurrence(known)
    except CorruptFile:
        return None
    return None if model is None or (settings.seeds > 1 and not again) else (model, again)


def _apart(
    activations: ActivationSet,
    levels: Sequence[str],
    location: Location,
    settings: LearnSettings,
    bounds: dict[str, float],
    resources: ResourceSettings,
    report: Any,
) -> dict[str, Any]:
    """Level → its dictionary, of these levels, each trained by itself on all rows."""
    import torch

    from compute.dictionaries import train_levels
    from compute.models.devices import choose_device

    chosen = {level: settings.of_level(level).dictionary_settings() for level in levels}
    device = choose_device("auto" if resources.gpus else "cpu")
    trainers, done = _restore(location, chosen, str(device))
    worker_log().info("training on %s from step %d of %d", device, done, settings.steps)
    loader = ActivationLoader(
        activations,
        levels=levels,
        batch_size=settings.batch_size,
        seed=settings.seed,
        max_norm=bounds,
        start=done,
    )

    def after_step(_: Any, running: Mapping[str, Any]) -> None:
        step = max(trainer.steps_done for trainer in running.values())
        if step % 20 == 0 or step == settings.steps:
            report.remote(step, settings.steps)
        if step % settings.checkpoint_steps == 0 and step < settings.steps:
            _checkpoint(location, step, running)

    if done < settings.steps:
        stream = (
            {level: torch.from_numpy(rows).float() for level, rows in batch.items()}
            for batch in loader
        )
        white = _whitened(activations, levels, bounds) if settings.whiten and not trainers else None
        trainers = train_levels(
            stream,
            chosen,
            trainers=trainers,
            after_step=after_step,
            normalizations=white,
            device=str(device),
        )
    return {level: trainer.dictionary for level, trainer in trainers.items()}


def _whitened(
    activations: ActivationSet, levels: Sequence[str], bounds: Mapping[str, float]
) -> dict[str, Any]:
    """Level → coordinates in which its rows for training are white, all of them."""
    import torch

    from compute.dictionaries.architectures import Normalization
    from compute.selection.continuous.rows import white_level

    found = {}
    for level in levels:
        white = white_level(activations, level, bounds)
        found[level] = Normalization(white.mean, torch.ones(()), white.into, white.back)
    return found


def _together(
    activations: ActivationSet,
    location: Location,
    settings: LearnSettings,
    bounds: dict[str, float],
    resources: ResourceSettings,
    report: Any,
) -> tuple[Any, dict[str, list[float]]]:
    """A hierarchical selection model of all levels, fitted to all rows and written, and by level
    how each of its concepts comes again from other seeds, if there are any."""
    from compute.dictionaries.evaluation import recurrence
    from compute.models.devices import choose_device
    from compute.selection import StreamedSelectionModel
    from compute.selection.continuous.streamed_training import PHASES

    device = choose_device("auto" if resources.gpus else "cpu")
    own = [settings.of_level(level) for level in activations.levels]
    worker_log().info("fitting %d levels on %s", len(own), device)
    fits = []
    for number in range(settings.seeds):
        model = StreamedSelectionModel(
            [one.n_concepts for one in own],
            [one.k for one in own],
            settings.seed + number,
            device=str(device),
        )

        told: list[Any] = []

        def after_generation(
            batches: int, phases: Sequence[Any], number: int = number, told: list[Any] = told
        ) -> None:
            if told != phases:
                told[:] = phases
                seed = settings.seed + number
                worker_log().info("seed %d, %d batches: %s", seed, batches, ", ".join(phases))
            passed = sum(PHASES.index(phase) for phase in phases)
            each = len(phases) * (len(PHASES) - 1)
            report.remote(number * each + passed, settings.seeds * each)

        checkpoint = location / _CHECKPOINTS / str(number)
        fits.append(model.fit_stored(activations, bounds, after_generation, checkpoint))
    again = {}
    if len(fits) > 1:
        for i, level in enumerate(activations.levels):
            white = fits[0].whitening_[i]
            directions = [fit.dictionaries_[i].directions.numpy() @ white for fit in fits]
            again[level] = recurrence(directions[0], directions[1:]).round(4).tolist()
        location.put(_RECURRENCE, json.dumps(again).encode())
    location.put(_MODEL, fits[0].checkpoint())
    return fits[0], again


def _kept_chunks(
    activations: ActivationSet, bounds: dict[str, float], split: Any
) -> Iterator[tuple[int, int, Any]]:
    """First and last row of each chunk of a split, and which of its rows are no outliers."""
    rows, chunk = activations.plan.split(split), activations.plan.chunk_rows
    for start in range(rows.start, rows.stop, chunk):
        stop = min(start + chunk, rows.stop)
        kept = kept_rows(activations, bounds, start, stop)
        if kept.any():
            yield start, stop, kept


def _evaluate(
    activations: ActivationSet,
    dictionaries: Mapping[str, Any],
    model: Any,
    bounds: dict[str, float],
    split: Any,
) -> dict[str, Any]:
    """Level → evaluation of the codes of a model of all levels, or of the dictionaries' own."""
    from compute.dictionaries.evaluation import Evaluator

    evaluators = {level: Evaluator(dictionaries[level]) for level in activations.levels}
    for start, stop, kept in _kept_chunks(activations, bounds, split):
        rows = {
            level: activations.read(level, start, stop)[kept].astype(np.float32)
            for level in activations.levels
        }
        codes = model.transform(list(rows.values())) if model is not None else [None] * len(rows)
        for (level, own), z in zip(rows.items(), codes, strict=True):
            evaluators[level].update(own, z)
    return {level: evaluator.result() for level, evaluator in evaluators.items()}


def _checkpoint(location: Location, step: int, trainers: Mapping[str, Any]) -> None:
    files = {f"{level}.safetensors": trainer.checkpoint() for level, trainer in trainers.items()}
    SealedCheckpoints(location / _CHECKPOINTS).save(step, files)


def _restore(
    location: Location, settings: Mapping[str, DictionarySettings], device: str
) -> tuple[dict[str, Any], int]:
    """Trainers of the latest checkpoint that is whole, and the steps that they have done."""
    from compute.dictionaries import DictionaryTrainer

    for step, files in SealedCheckpoints(location / _CHECKPOINTS, worker_log()).load():
        trainers = {
            level: DictionaryTrainer.from_checkpoint(files[f"{level}.safetensors"], device)
            for level in settings
        }
        return trainers, step
    return {}, 0
