"""The steps of a run as Prefect tasks: settings and references in, a reference out.

A step's folder is named by its fingerprint, so a finished step is found and not done again, and an
interrupted one goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from prefect import State, task
from prefect.logging import get_run_logger

from compute.cluster import Progress
from compute.settings import (
    EncodeSettings,
    ExtractSettings,
    InputSettings,
    LearnSettings,
    LevelSettings,
    ModelSettings,
    RecoverSettings,
    ResourceSettings,
)
from storage.doctor import read_condemned
from storage.locations import Location
from storage.records import digest, fingerprint
from storage.references import Reference, Step
from storage.versions import STRIPS_FILE
from tasks import planning
from tasks.announcing import announce_step
from tasks.progress import step_progress

__all__ = ["check", "encode", "extract", "hash_below", "learn", "recover"]

# Raised when a step comes to compute something else from the same settings.
LEARN_VERSION = 1
ENCODE_VERSION = 1
RECOVER_VERSION = 2


def _may_pass(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether another try may end better: not where the input itself was refused."""
    try:
        state.result()
    except (ValueError, TypeError, PermissionError):
        return False
    except Exception:
        return True
    return True


RETRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [5, 30],
    # Runs that failed together, as when a store is away, do not come back together.
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _may_pass,
}
"""How often a step is tried again. What its last try left is found and not done again."""

_GRAPH_FILES = ("nodes.parquet", "edges.parquet")


def once(
    store: str,
    step: Step,
    name: str,
    unit: str,
    work: Callable[[Location, Progress], tuple[str, dict[str, Any]]],
    upstream: Sequence[str] = (),
) -> Reference:
    """Return the finished step of this fingerprint, doing the work first if there is none.

    `work` is given the step's folder, which may hold what an interrupted run left, and returns the
    content hash and the summary. `upstream` are the URLs of what it reads, for the lineage.
    """
    logger = get_run_logger()
    location = Reference.folder(Location(store), step, name)
    found = Reference.find(location)
    if found is not None and not read_condemned(location):
        logger.info("%s %s is there already", step, name)
        return found
    logger.info("%s %s begins", step, name)
    begun = time.monotonic()
    with step_progress(step, unit) as progress:
        content, summary = work(location, progress)
    reference = Reference(
        step=step,
        fingerprint=name,
        url=location.url,
        content_hash=content,
        seconds=round(time.monotonic() - begun, 3),
        summary=summary,
    )
    reference.save()
    announce_step(reference, upstream=upstream)
    logger.info("%s %s took %.1f s", step, name, reference.seconds)
    return reference


@task(name="check", task_run_name="check inputs, model and disk")
def check(
    store: str,
    model: ModelSettings,
    inputs: InputSettings,
    levels: Sequence[LevelSettings],
    extract: ExtractSettings,
    learn: LearnSettings,
) -> None:
    """Refuse what cannot work, before any model is loaded."""
    planning.check(store, model, inputs, levels, extract, learn)


@task(name="extract", task_run_name="extract from {model.source}", **RETRIES)
def extract(
    store: str,
    model: ModelSettings,
    inputs: InputSettings,
    levels: Sequence[LevelSettings],
    settings: ExtractSettings,
    resources: ResourceSettings,
) -> Reference:
    """Run the model over the inputs and store aligned, shuffled activations of all levels."""
    from compute.sources import look

    sources = look(model, inputs, levels, seed=settings.seed)
    name = planning.extraction_fingerprint(sources, settings)

    def work(location: Location, progress: Progress) -> tuple[str, dict[str, Any]]:
        from compute.extraction import write_activations

        plan = planning.plan_extraction(Location(store), sources, settings)
        plan.samples.save(location)
        stored = write_activations(
            location,
            plan.activations,
            sources.items(plan.samples),
            sources.adapter(settings),
            resources=resources,
            progress=progress,
        )
        summary = {
            "rows": len(stored),
            "train_rows": stored.plan.n_train,
            "samples": plan.samples.n_samples,
            "bytes": stored.plan.disk_bytes,
            "weights_sha256": sources.weights_sha256,
            "inputs_sha256": sources.inputs_sha256,
            "model_dtype": sources.dtype,
            "architecture": sources.architecture,
        }
        return stored.content_hash, summary

    outside = [f"model://{model.source}", f"inputs://{inputs.source}"]
    return once(store, "extract", name, "rows", work, outside)


@task(name="learn", **RETRIES)
def learn(
    store: str,
    activations: Reference,
    model: ModelSettings,
    levels: Sequence[LevelSettings],
    context_length: int,
    settings: LearnSettings,
    resources: ResourceSettings,
) -> Reference:
    """Learn one dictionary per level from the activations."""
    # How often a run is saved decides nothing about its result.
    deciding = settings.model_dump(exclude={"checkpoint_steps"})
    if settings.method == "independent":
        del deciding["method"], deciding["rows"]
    threads = {"cpus": resources.cpus, "gpus": resources.gpus}
    name = fingerprint("learn", LEARN_VERSION, deciding | threads, [activations.fingerprint])

    def work(location: Location, progress: Progress) -> tuple[str, dict[str, Any]]:
        from compute.learning import train
        from storage.activations import ActivationSet

        metadata = {
            level.name: published_metadata(number, level, model, context_length)
            for number, level in enumerate(levels, 1)
        }
        scores = train(
            ActivationSet(activations.location),
            location,
            settings,
            metadata=metadata,
            resources=resources,
            progress=progress,
        )
        return hash_below(location, "dictionaries"), {"levels": scores}

    return once(store, "learn", name, "steps", work, [activations.url])


@task(name="encode", **RETRIES)
def encode(
    store: str,
    activations: Reference,
    dictionaries: Reference,
    settings: EncodeSettings,
    resources: ResourceSettings,
) -> Reference:
    """Encode every row at every level into sparse codes."""
    upstream = [activations.fingerprint, dictionaries.fingerprint]
    name = fingerprint("encode", ENCODE_VERSION, settings.model_dump(), upstream)

    def work(location: Location, progress: Progress) -> tuple[str, dict[str, Any]]:
        from compute import encoding
        from storage.activations import ActivationSet

        codes = encoding.encode(
            ActivationSet(activations.location),
            dictionaries.location,
            location,
            settings,
            fingerprint=name,
            resources=resources,
            progress=progress,
        )
        return codes.content_hash, {"rows": len(codes)}

    return once(store, "encode", name, "rows", work, [activations.url, dictionaries.url])


@task(name="recover", **RETRIES)
def recover(
    store: str,
    activations: Reference,
    codes: Reference,
    settings: RecoverSettings,
    resources: ResourceSettings,
) -> Reference:
    """Recover the graph: observed variables → level 1 → … → level L."""
    upstream = [activations.fingerprint, codes.fingerprint]
    name = fingerprint("recover", RECOVER_VERSION, settings.model_dump(), upstream)

    def work(location: Location, progress: Progress) -> tuple[str, dict[str, Any]]:
        from compute.encoding import read_summary
        from compute.observed import observed_variables
        from compute.recovery import recover_graph
        from compute.sources import load_samples
        from storage.activations import ActivationSet
        from storage.codes import CodeSet

        stored, encoded = ActivationSet(activations.location), CodeSet(codes.location)
        samples = load_samples(activations.location)
        summaries = [read_summary(encoded, level) for level in encoded.levels]
        graph = recover_graph(
            stored,
            encoded,
            observed_variables(stored, encoded, samples, settings),
            [summary.counts / max(1, summary.rows) for summary in summaries],
            settings,
            resources=resources,
            progress=progress,
        )
        files = graph.to_parquet()
        for file in _GRAPH_FILES:
            location.put(file, files[file])
        counts: dict[str, int] = {}
        for target in graph.edges.column("target").to_pylist():
            level = target.partition(":")[0]
            counts[level] = counts.get(level, 0) + 1
        summary = {
            "nodes": {str(level): count for level, count in graph.levels.items()},
            "edges_into": counts,
        }
        return digest(files[file] for file in _GRAPH_FILES), summary

    return once(store, "recover", name, "level pairs", work, [activations.url, codes.url])


def read_graph(reference: Reference) -> Any:
    """The graph that :func:`recover` wrote."""
    from storage.graphs import ConceptGraph

    return ConceptGraph.from_parquet(*(reference.location.get(file) for file in _GRAPH_FILES))


def read_strips(reference: Reference) -> dict[str, dict[str, Any]]:
    """Steering strips by concept, if the graph has come with any."""
    try:
        strips: dict[str, dict[str, Any]] = json.loads(reference.location.get(STRIPS_FILE))
    except FileNotFoundError:
        return {}
    return strips


def published_metadata(
    number: int, level: LevelSettings, model: ModelSettings, context_length: int
) -> dict[str, Any]:
    """What a level's ``cfg.json`` says of it, under SAELens' names where it has one."""
    parts = level.hookpoint.split(".")
    layer = int(parts[1]) if parts[0] == "layers" and parts[1:2] and parts[1].isdigit() else None
    hook = f"blocks.{layer}.hook_resid_post" if parts[2:] == ["output"] else level.hookpoint
    return {
        "model_name": model.gguf_file or model.source,
        "hook_name": hook,
        "context_size": context_length if model.kind == "language" else None,
        "prepend_bos": False,
        "level": number,
        "level_name": level.name,
        "layer": layer,
        "hookpoint": level.hookpoint,
        "timestep": level.timestep,
    }


def hash_below(location: Location, folder: str = "") -> str:
    """SHA-256 over the paths and the bytes of all files below a folder, in order of path."""
    paths = sorted(location.walk(folder))
    return digest(part for path in paths for part in (path.encode(), location.get(path)))
