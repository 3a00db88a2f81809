"""Learning: one dictionary per level, each by itself or all as a hierarchical selection model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compute.cluster import Progress, actor_options, connect, silent, watch, worker_log
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.settings import LearnSettings, LevelSettings, Recipe, ResourceSettings
from storage.exports.saelens import CONFIG_FILE, SPARSITY_FILE, WEIGHTS_FILE, to_saelens
from storage.locations import Location, NotFound
from storage.sealing.damage import CorruptFile
from storage.sealing.seals import SealedFolder, seal_files
from storage.tables.activations import ActivationSet
from storage.tables.loader import ActivationLoader, kept_rows

__all__ = ["DICTIONARY_FILES", "load_dictionaries", "norm_bounds", "published_metadata", "train"]

DICTIONARY_FILES = (CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE)
_BOUNDS = "norm_bounds.json"
_CHECKPOINTS = "checkpoints"
# A damaged one is not used, and training goes on from the one before it.
_KEPT_CHECKPOINTS = 2
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
    progress: Progress = silent,
) -> dict[str, dict[str, float]]:
    """Train a dictionary for every level, or go on from the last checkpoint.

    A hierarchical selection model is fitted to some rows in memory; it has no checkpoints.

    Writes ``dictionaries/<level>/`` in SAELens' layout and the norm bounds below `location`, and
    leaves checkpoints below ``checkpoints``.

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
    progress : callable
        Told the steps done and all steps.

    Returns
    -------
    dict of str to dict
        Per level, scores on the held-out rows: explained_variance, l0, dead_share (concepts that
        no kept row of either split activates), n_rows, n_outliers (rows left out, of both splits).
        One that is not a number is left out.
    """
    import ray

    connect()
    task = ray.remote(max_retries=3, **actor_options(resources))(_train)
    scores: dict[str, dict[str, float]] = watch(
        lambda report: task.remote(
            activations, location.url, settings, metadata, resources, known, report
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


def load_dictionaries(learned: SealedFolder) -> dict[str, Any]:
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


def read_norm_bounds(learned: SealedFolder) -> dict[str, float]:
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
    report: Any,
) -> dict[str, dict[str, float]]:
    import torch

    torch.set_num_threads(max(1, int(resources.cpus)))
    location = Location(url)
    bounds = norm_bounds(activations, settings.outlier_norm)
    location.put(_BOUNDS, json.dumps(bounds).encode())
    found = _whole(known, settings, activations.levels)
    missing = [level for level in activations.levels if level not in found]
    if missing and settings.method == "hierarchical":
        found = _together(activations, settings, bounds, report) | found
    elif missing:
        found |= _apart(activations, missing, location, settings, bounds, resources, report)
    scores = {}
    for level in activations.levels:
        dictionary = found[level]
        held_out = _evaluate(activations, dictionary, level, bounds, "held_out")
        train = _evaluate(activations, dictionary, level, bounds, "train")
        silent_everywhere = (held_out.frequencies == 0) & (train.frequencies == 0)
        told = held_out.summary() | {
            "dead_share": float(silent_everywhere.mean()),
            "train_explained_variance": train.explained_variance,
            "n_outliers": float(len(activations) - held_out.n_rows - train.n_rows),
        }
        scores[level] = {name: value for name, value in told.items() if math.isfinite(value)}
        rows = held_out.n_rows + train.n_rows
        firing = (held_out.frequencies * held_out.n_rows + train.frequencies * train.n_rows) / rows
        files = to_saelens(
            dictionary.weights(),
            architecture=dictionary.architecture,
            k=dictionary.k if dictionary.architecture == "topk" else None,
            metadata={**metadata[level], "k": dictionary.k},
            frequency=firing,
        )
        for name, data in files.items():
            path = f"dictionaries/{level}/{name}"
            if known is None or known.find_damage([path]):
                location.put(path, data)
    return scores


def _whole(
    known: SealedFolder | None, settings: LearnSettings, levels: Sequence[str]
) -> dict[str, Any]:
    """Level → its dictionary, of those whose weights are there as they were sealed."""
    from safetensors.numpy import load

    from compute.dictionaries import Dictionary

    together = settings.method == "hierarchical"
    architecture = "jumprelu" if together else settings.architecture
    found: dict[str, Any] = {}
    if known is None:
        return found
    for level in levels:
        try:
            weights = load(known.get(f"dictionaries/{level}/{WEIGHTS_FILE}"))
        except CorruptFile:
            continue
        found[level] = Dictionary.from_weights(architecture, weights, k=settings.k)
    return found


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

    own = {name: getattr(settings, name) for name in DictionarySettings.model_fields}
    chosen = {level: DictionarySettings(**own) for level in levels}
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
        trainers = train_levels(
            stream, chosen, trainers=trainers, after_step=after_step, device=str(device)
        )
    return {level: trainer.dictionary for level, trainer in trainers.items()}


def _together(
    activations: ActivationSet, settings: LearnSettings, bounds: dict[str, float], report: Any
) -> dict[str, Any]:
    """Level → its dictionary in a hierarchical selection model of all levels."""
    from compute.selection import HierarchicalSelectionModel

    blocks: dict[str, list[np.ndarray]] = {level: [] for level in activations.levels}
    found = 0
    for start, stop, kept in _kept_chunks(activations, bounds, "train"):
        for level, own in blocks.items():
            own.append(activations.read(level, start, stop)[kept].astype(np.float32))
        found += int(kept.sum())
        if found >= settings.rows:
            break
    n_levels = len(blocks)
    worker_log().info("fitting %d levels to %d rows", n_levels, min(found, settings.rows))
    model = HierarchicalSelectionModel(
        [settings.n_concepts] * n_levels, settings.k, settings.seed, steps=settings.steps
    )

    def after_level(done: int) -> None:
        report.remote(settings.steps * done // n_levels, settings.steps)

    rows = [np.concatenate(own)[: settings.rows] for own in blocks.values()]
    return dict(zip(blocks, model.fit(rows, progress=after_level).dictionaries_, strict=True))


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
    activations: ActivationSet, dictionary: Any, level: str, bounds: dict[str, float], split: Any
) -> Any:
    from compute.dictionaries.evaluation import evaluate

    return evaluate(
        dictionary,
        (
            activations.read(level, start, stop)[kept].astype(np.float32)
            for start, stop, kept in _kept_chunks(activations, bounds, split)
        ),
    )


def _checkpoint(location: Location, step: int, trainers: Mapping[str, Any]) -> None:
    folder = location / _CHECKPOINTS / str(step)
    for level, trainer in trainers.items():
        folder.put(f"{level}.safetensors", trainer.checkpoint())
    seal_files(folder, [f"{level}.safetensors" for level in trainers])
    for earlier in _checkpoint_steps(location)[_KEPT_CHECKPOINTS:]:
        location.delete_folder(f"{_CHECKPOINTS}/{earlier}")


def _checkpoint_steps(location: Location) -> list[int]:
    """Steps of which there is something, latest first."""
    return sorted(map(int, filter(str.isdigit, location.children(_CHECKPOINTS))), reverse=True)


def _restore(
    location: Location, settings: Mapping[str, DictionarySettings], device: str
) -> tuple[dict[str, Any], int]:
    """Trainers of the latest checkpoint that is whole, and the steps that they have done."""
    from compute.dictionaries import DictionaryTrainer

    for step in _checkpoint_steps(location):
        try:
            sealed = SealedFolder.open(location / _CHECKPOINTS / str(step))
            trainers = {
                level: DictionaryTrainer.from_checkpoint(sealed.get(f"{level}.safetensors"), device)
                for level in settings
            }
        except NotFound:
            # A killed run had not ended it.
            continue
        except CorruptFile as error:
            worker_log().warning("the checkpoint of step %d is not used: %s", step, error)
            continue
        return trainers, step
    return {}, 0
