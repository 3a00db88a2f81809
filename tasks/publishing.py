"""Publishing as a Prefect task: the artifact's files, its version, and its report in the UI."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.logging import get_run_logger

from compute.cluster import Progress
from compute.settings import Recipe
from storage.artifacts import (
    Artifact,
    ArtifactReference,
    CorruptArtifact,
    Registry,
    UnknownArtifact,
)
from storage.graph.concept_graph import ConceptGraph
from storage.locations import Location
from storage.records import canonical_json, fingerprint
from storage.references import Reference
from storage.registry.manifests import LEVEL_SCORES, LOSS_SCORES
from storage.registry.quality_gates import QualityGate, no_better_than_mean
from storage.registry.versions import STRIPS_FILE
from storage.sealing.condemned import clear_condemned, read_condemned
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeSet
from tasks.announcing import announce
from tasks.progress import step_progress
from tasks.verifying import read_strips

if TYPE_CHECKING:
    from compute.report.continuity import Continuity
    from compute.selection.assumptions import AssumptionReport

__all__ = ["Steps", "gather", "publish", "registry_of"]

# Raised when publishing comes to put something else into an artifact.
PUBLISH_VERSION = 3


def registry_of(store: str) -> Registry:
    """The registry that belongs to a store."""
    return Registry((Location(store) / "artifacts").url)


class Steps(NamedTuple):
    """References of all that a version is made from, in the order of the run."""

    activations: Reference
    dictionaries: Reference
    codes: Reference
    graph: Reference


@task(name="publish", task_run_name="publish {recipe.name}")
def publish(
    recipe: Recipe,
    activations: Reference,
    dictionaries: Reference,
    codes: Reference,
    graph: Reference,
) -> Reference:
    """Put everything together and publish it as the next version, unless it is there already."""
    logger = get_run_logger()
    registry = registry_of(recipe.store)
    steps = Steps(activations, dictionaries, codes, graph)
    described = recipe.model_dump(mode="json", include={"name", "title", "description"})
    described |= recipe.publish.model_dump(mode="json")
    upstream = [step.fingerprint for step in steps]
    mark = fingerprint("publish", PUBLISH_VERSION, described, upstream)
    location = Reference.folder(Location(recipe.store), "publish", mark)
    found = Reference.find(location)
    condemned = bool(read_condemned(location))
    if found is not None and found.sha256 and not condemned:
        version = found.summary["version"]
        there = _published(registry, recipe.name, version)
        if there is not None:
            logger.info("%s v%d is published already", recipe.name, version)
            return _shown(found, there)
    begun = time.monotonic()
    with step_progress("publish", "parts") as progress:
        published = _publish(recipe, steps, registry, mark, progress)
    stored = registry.load(recipe.name, published.version, verify=condemned)
    if found is not None and found.sha256 and found.summary["version"] == published.version:
        # Published again since files of it were damaged.
        clear_condemned(location)
        return _shown(found, published)
    reference = Reference.seal(
        location,
        content_hash=published.content_hash,
        seconds=round(time.monotonic() - begun, 3),
        # Nothing of where the version lies: a store may be moved.
        summary={
            "name": recipe.name,
            "version": published.version,
            "levels": dictionaries.summary["levels"],
            "graph": _of_graph(graph),
            "status": published.status,
            "rejections": list(published.rejections),
            "report_sha256": stored.manifest.files["report.html"].sha256,
        },
    )
    clear_condemned(location)
    for reason in published.rejections:
        logger.warning("%s v%d is rejected: %s", recipe.name, published.version, reason)
    announce(published, upstream=[step.url for step in steps])
    return _shown(reference, published)


def _publish(
    recipe: Recipe, steps: Steps, registry: Registry, mark: str, progress: Progress
) -> ArtifactReference:
    """Gather what the steps have found, and publish it under the fingerprint `mark`."""
    from compute.report import findings as publication
    from compute.report.provenance import facts, lineage

    scores = steps.dictionaries.summary["levels"]
    ancestors = _ancestors(registry, recipe.name)
    files, continuity, assumed, strips = gather(recipe, steps, ancestors)
    progress(1, 3)
    findings = continuity.findings
    created_at = datetime.now(UTC).replace(microsecond=0)

    def report(version: int, _parent: int | None) -> bytes:
        data = publication.atlas_data(
            findings,
            name=recipe.name,
            version=version,
            created_at=created_at,
            title=recipe.title or recipe.name,
            description=recipe.description,
            facts=[*facts(recipe, steps.activations.summary, scores), *_promises(assumed)],
            steps=[(step.step, step.seconds) for step in steps],
            histories=continuity.histories(version),
            strips=strips,
            changes=continuity.changes,
        )
        return publication.report_page(data)

    progress(2, 3)
    rejections = no_better_than_mean(scores.items(), recipe.publish.gates)
    published = registry.publish(
        recipe.name,
        files,
        status="rejected" if rejections else "published",
        rejections=rejections,
        fingerprint=mark,
        lineage=lineage(recipe, steps),
        levels=publication.describe_levels(findings),
        metrics={
            "levels": scores,
            "graph": _of_graph(steps.graph),
            "continuity": continuity.metrics,
        },
        gates=_gates(recipe, follows=bool(ancestors)),
        parent=ancestors[-1].version if ancestors else None,
        created_at=created_at,
        pages={"report.html": report},
    )
    progress(3, 3)
    return published


class Gathered(NamedTuple):
    """The files that a version's content hash is of, and what is told of them."""

    files: dict[str, bytes]
    continuity: Continuity
    assumed: AssumptionReport
    strips: dict[str, dict[str, Any]]


def gather(recipe: Recipe, steps: Steps, ancestors: Sequence[Artifact]) -> Gathered:
    """Make the files of a version that follows `ancestors`, oldest first, from finished steps."""
    from compute.inputs.sources import load_samples
    from compute.report import findings as publication
    from compute.report.continuity import continue_from

    stored, encoded = ActivationSet(steps.activations.open()), CodeSet(steps.codes.open())
    learned, scores = steps.dictionaries.open(), steps.dictionaries.summary["levels"]
    graph = ConceptGraph.read(steps.graph.open())
    samples = load_samples(stored.files)
    findings = publication.gather_findings(
        stored, encoded, learned, graph, samples, recipe.levels, scores, recipe.encode
    )
    continuity = continue_from(ancestors, findings, stored, encoded, learned)
    files = publication.artifact_files(continuity.findings, learned)
    assumed = publication.assumptions(continuity.findings, encoded)
    files["assumptions.json"] = canonical_json(assumed.to_json())
    strips = read_strips(steps.graph)
    if strips:
        files[STRIPS_FILE] = canonical_json(strips)
    return Gathered(files, continuity, assumed, strips)


def _of_graph(graph: Reference) -> dict[str, Any]:
    """What its summary says of the graph itself."""
    return {key: value for key, value in graph.summary.items() if key != "made_on"}


def _promises(assumed: AssumptionReport) -> Iterator[tuple[str, str]]:
    """What the assumptions guarantee and what they do not, as facts of the report."""
    yield from (("Guarantee", sentence) for sentence in assumed.guarantees)
    yield from (("Not guaranteed", sentence) for sentence in assumed.warnings)


def _gates(recipe: Recipe, *, follows: bool) -> list[QualityGate]:
    """The gates of a version; nothing can be asked of the continuity of a first one."""
    gates = recipe.publish.gates
    return [gate for gate in gates if follows or not gate.metric.startswith("continuity.")]


def _ancestors(registry: Registry, name: str) -> list[Artifact]:
    """The newest version that was not rejected and those before it, oldest first."""
    try:
        return registry.ancestors(name)
    except UnknownArtifact:
        return []


def _published(registry: Registry, name: str, version: int) -> ArtifactReference | None:
    """The version as the registry has it; one that is damaged is mended by publishing it again."""
    try:
        return registry.load(name, version).reference
    except (CorruptArtifact, UnknownArtifact):
        return None


def _shown(reference: Reference, published: ArtifactReference) -> Reference:
    """The reference with the places of its version and report, after these were shown."""
    report = f"{published.url.rstrip('/')}/report.html"
    places = {"artifact": published.url, "report": report}
    shown = reference.model_copy(update={"summary": reference.summary | places})
    _show(shown)
    return shown


def _show(reference: Reference) -> None:
    told = reference.summary
    table = [
        {
            "level": number,
            "name": level,
            "concepts": told["graph"]["nodes"].get(str(number), 0),
            "edges from below": told["graph"]["edges_into"].get(str(number), 0),
            "explained variance": round(scores.get("explained_variance", float("nan")), 4),
            "L0": round(scores["l0"], 2),
            "dead": f"{scores['dead_share']:.2%}",
        }
        | {LEVEL_SCORES[key]: round(scores[key], 4) for key in LOSS_SCORES if key in scores}
        for number, (level, scores) in enumerate(told["levels"].items(), 1)
    ]
    title = f"{told['name']} v{told['version']}"
    create_table_artifact(
        table,
        key="results",
        description=f"## {title}\n\n[Open the report]({told['report']})\n\n{told['artifact']}",
    )
    create_link_artifact(told["report"], link_text=f"Report of {title}", key="report")
