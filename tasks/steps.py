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
from storage.condemned import clear_condemned, read_condemned
from storage.damage import Damaged
from storage.gates import no_better_than_mean
from storage.locations import Location
from storage.records import digest, fingerprint
from storage.references import SCRATCH, Reference, Step, belongs_to_no_result
from storage.seals import SealedFolder
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
    """Whether another try may end better: not where the input was refused or is damaged."""
    try:
        state.result()
    except (ValueError, TypeError, PermissionError, Damaged):
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
    work: Callable[[Location, Progress], dict[str, Any]],
    content: Callable[[Location], str],
    upstream: Sequence[str] = (),
) -> Reference:
    """Return the finished step of this fingerprint, doing the work first if there is none.

    `work` is given the step's folder, which may hold what an interrupted run left, and returns the
    summary. `content` gives the content hash of the files that it wrote. `upstream` are the URLs of
    what it reads, for the lineage.

    Raises
    ------
    CorruptFile
        If the step's record is damaged, so that nobody knows what it should be.
    ValueError
        If what was condemned does not come out as it was sealed, and its readers go on refusing it;
        or if what an earlier version left is not what its record says.
    """
    logger = get_run_logger()
    location = Reference.folder(Location(store), step, name)
    found = Reference.find(location)
    condemned = bool(read_condemned(location))
    if found is not None and not condemned:
        if not found.sha256:
            found = _adopt(found, content)
            logger.info("%s %s was written by an earlier version and is sealed now", step, name)
        logger.info("%s %s is there already", step, name)
        return found
    logger.info("%s %s begins", step, name)
    begun = time.monotonic()
    with step_progress(step, unit) as progress:
        summary = work(location, progress)
    took = round(time.monotonic() - begun, 3)
    if found is None:
        found = Reference.seal(
            location, content_hash=content(location), seconds=took, summary=summary
        )
        announce_step(found, upstream=upstream)
    elif found.sha256:
        _check_remade(found)
    else:
        found = _adopt(found, content)
    clear_condemned(location)
    for folder in SCRATCH:
        location.delete_folder(folder)
    logger.info("%s %s took %.1f s", step, name, took)
    return found


def _adopt(found: Reference, content: Callable[[Location], str]) -> Reference:
    """Seal what an earlier version left, if its content is still the one of its record."""
    if content(found.location) != found.content_hash:
        raise ValueError(
            f"{found.url} was written by an earlier version and has changed since: delete the "
            "folder and run again."
        )
    return Reference.seal(
        found.location,
        content_hash=found.content_hash,
        seconds=found.seconds,
        summary=found.summary,
    )


def _check_remade(found: Reference) -> None:
    wrong = [error.path for error in found.open().find_damage()]
    if wrong:
        raise ValueError(
            f"{wrong[0]!r} of {found.url} cannot be re-made: it comes out other than it was "
            "written; restore the model, the packages and the number of threads that wrote it, or "
            "delete the folders of this step and of those that follow, and run again."
        )


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

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.extraction import write_activations
        from compute.gallery import Gallery
        from compute.sources import resumed_samples, save_samples

        plan = planning.plan_extraction(Location(store), sources, settings)
        if resumed_samples(location) is None:
            save_samples(plan.samples, location)
        stored = write_activations(
            location,
            plan.activations,
            sources.items(plan.samples),
            sources.adapter(settings),
            pictures=isinstance(plan.samples, Gallery),
            resources=resources,
            progress=progress,
        )
        return {
            "rows": len(stored),
            "train_rows": stored.plan.n_train,
            "samples": plan.samples.n_samples,
            "bytes": stored.plan.disk_bytes,
            "weights_sha256": sources.weights_sha256,
            "inputs_sha256": sources.inputs_sha256,
            "model_dtype": sources.dtype,
            "architecture": sources.architecture,
        }

    outside = [f"model://{model.source}", f"inputs://{inputs.source}"]
    return once(store, "extract", name, "rows", work, _table_content, outside)


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

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.learning import train
        from storage.activations import ActivationSet

        metadata = {
            level.name: published_metadata(number, level, model, context_length)
            for number, level in enumerate(levels, 1)
        }
        scores = train(
            ActivationSet(activations.open()),
            location,
            settings,
            metadata=metadata,
            resources=resources,
            known=_known(location),
            progress=progress,
        )
        return {"levels": scores}

    reference = once(
        store,
        "learn",
        name,
        "steps",
        work,
        lambda location: hash_below(location, "dictionaries"),
        [activations.url],
    )
    for reason in no_better_than_mean(reference.summary["levels"].items()):
        get_run_logger().warning(
            "%s; a version of it is rejected: lower learn.learning_rate, or raise learn.steps",
            reason,
        )
    return reference


def _known(location: Location) -> SealedFolder | None:
    """What a step's folder is known to hold, where the step is done to mend it."""
    reference = Reference.find(location)
    return reference.open() if reference is not None and reference.sha256 else None


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

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute import encoding
        from storage.activations import ActivationSet

        codes = encoding.encode(
            ActivationSet(activations.open()),
            dictionaries.open(),
            location,
            settings,
            fingerprint=name,
            resources=resources,
            progress=progress,
        )
        return {"rows": len(codes)}

    upstream_urls = [activations.url, dictionaries.url]
    return once(store, "encode", name, "rows", work, _table_content, upstream_urls)


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

    def work(location: Location, progress: Progress) -> dict[str, Any]:
        from compute.encoding import read_summary
        from compute.observed import observed_variables
        from compute.recovery import recover_graph
        from compute.sources import load_samples
        from storage.activations import ActivationSet
        from storage.codes import CodeSet

        stored, encoded = ActivationSet(activations.open()), CodeSet(codes.open())
        samples = load_samples(stored.files)
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
        return {
            "nodes": {str(level): count for level, count in graph.levels.items()},
            "edges_into": counts,
        }

    def content(location: Location) -> str:
        return digest(location.get(file) for file in _GRAPH_FILES)

    upstream_urls = [activations.url, codes.url]
    return once(store, "recover", name, "level pairs", work, content, upstream_urls)


def read_graph(reference: Reference) -> Any:
    """The graph that :func:`recover` wrote."""
    from storage.graphs import ConceptGraph

    files = reference.open()
    return ConceptGraph.from_parquet(*(files.get(file) for file in _GRAPH_FILES))


def read_strips(reference: Reference) -> dict[str, dict[str, Any]]:
    """Steering strips by concept, if the graph has come with any."""
    files = reference.open()
    if not files.exists(STRIPS_FILE):
        return {}
    strips: dict[str, dict[str, Any]] = json.loads(files.get(STRIPS_FILE))
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
    """SHA-256 over the paths and the bytes of a result's files below a folder, in order of path."""
    paths = sorted(path for path in location.walk(folder) if not belongs_to_no_result(path))
    return digest(part for path in paths for part in (path.encode(), location.get(path)))


def _table_content(location: Location) -> str:
    """Content hash of a table, from its receipts."""
    from storage.tables import open_table

    shards = open_table(location).plan.shards
    return digest(location.get(f"receipts/{shard}.json") for shard in shards)
