"""Publishing as a Prefect task: the artifact's files, its version, and its report in the UI."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.logging import get_run_logger

from compute.settings import INPUT_KINDS, EncodeSettings, LevelSettings, PublishSettings
from storage.activations import ActivationSet
from storage.artifacts import (
    Artifact,
    ArtifactReference,
    CorruptArtifact,
    Registry,
    UnknownArtifact,
)
from storage.codes import CodeSet
from storage.condemned import clear_condemned, read_condemned
from storage.gates import no_better_than_mean
from storage.locations import Location
from storage.records import canonical_json, fingerprint
from storage.references import Reference
from storage.seals import SealedFolder
from storage.versions import STRIPS_FILE
from tasks.announcing import announce
from tasks.planning import code_commit, package_versions
from tasks.progress import step_progress
from tasks.steps import read_graph, read_strips

__all__ = ["publish", "registry_of"]

# Raised when publishing comes to put something else into an artifact.
PUBLISH_VERSION = 3


def registry_of(store: str) -> Registry:
    """The registry that belongs to a store."""
    return Registry((Location(store) / "artifacts").url)


@task(name="publish", task_run_name="publish {name}")
def publish(
    store: str,
    name: str,
    title: str,
    description: str,
    levels: Sequence[LevelSettings],
    settings: dict[str, Any],
    encode_settings: EncodeSettings,
    publish_settings: PublishSettings,
    activations: Reference,
    dictionaries: Reference,
    codes: Reference,
    graph: Reference,
) -> Reference:
    """Put everything together and publish it as the next version, unless it is there already."""
    logger = get_run_logger()
    registry = registry_of(store)
    upstream = [step.fingerprint for step in (activations, dictionaries, codes, graph)]
    gates = publish_settings.model_dump(mode="json")
    described = {"name": name, "title": title, "description": description} | gates
    mark = fingerprint("publish", PUBLISH_VERSION, described, upstream)
    location = Reference.folder(Location(store), "publish", mark)
    found = Reference.find(location)
    condemned = bool(read_condemned(location))
    if found is not None and found.sha256 and not condemned:
        version = found.summary["version"]
        published = _published(registry, name, version)
        if published is not None:
            logger.info("%s v%d is published already", name, version)
            return _shown(found, published)
    begun = time.monotonic()
    with step_progress("publish", "parts") as progress:
        stored, encoded = ActivationSet(activations.open()), CodeSet(codes.open())
        learned = dictionaries.open()
        findings = _findings(levels, encode_settings, stored, encoded, learned, dictionaries, graph)
        progress(1, 3)
        from compute import publication
        from compute.continuity import continue_from

        ancestors = _ancestors(registry, name)
        continuity = continue_from(
            ancestors,
            findings,
            stored,
            encoded,
            learned,
        )
        findings = continuity.findings
        files = publication.artifact_files(findings, learned)
        assumed = publication.assumptions(findings, encoded)
        files["assumptions.json"] = canonical_json(assumed.to_json())
        strips = read_strips(graph)
        if strips:
            files[STRIPS_FILE] = canonical_json(strips)
        created_at = datetime.now(UTC).replace(microsecond=0)
        steps = [(step.step, step.seconds) for step in (activations, dictionaries, codes, graph)]

        def report(version: int, _parent: int | None) -> bytes:
            data = publication.atlas_data(
                findings,
                name=name,
                version=version,
                created_at=created_at,
                title=title or name,
                description=description,
                facts=[
                    *_facts(settings, activations, dictionaries),
                    *(("Guarantee", sentence) for sentence in assumed.guarantees),
                    *(("Not guaranteed", sentence) for sentence in assumed.warnings),
                ],
                steps=steps,
                histories=continuity.histories(version),
                strips=strips,
                changes=continuity.changes,
            )
            return publication.report_page(data)

        progress(2, 3)
        lineage = {
            "model": settings["model"]["source"],
            "weights_sha256": activations.summary["weights_sha256"],
            "data_sha256": activations.summary["inputs_sha256"],
            "settings": settings,
            "code_commit": code_commit(),
            "packages": package_versions(),
            "upstream": {
                step.step: {"fingerprint": step.fingerprint, "content_hash": step.content_hash}
                for step in (activations, dictionaries, codes, graph)
            },
        }
        rejections = no_better_than_mean(
            dictionaries.summary["levels"].items(), publish_settings.gates
        )
        published = registry.publish(
            name,
            files,
            status="rejected" if rejections else "published",
            rejections=rejections,
            fingerprint=mark,
            lineage=lineage,
            levels=publication.describe_levels(findings),
            metrics={
                "levels": dictionaries.summary["levels"],
                "graph": graph.summary,
                "continuity": continuity.metrics,
            },
            # Nothing can be asked of the continuity of a first version.
            gates=[
                gate
                for gate in publish_settings.gates
                if ancestors or not gate.metric.startswith("continuity.")
            ],
            parent=ancestors[-1].version if ancestors else None,
            created_at=created_at,
            pages={"report.html": report},
        )
        progress(3, 3)
    version = registry.load(name, published.version, verify=condemned)
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
            "name": name,
            "version": published.version,
            "levels": dictionaries.summary["levels"],
            "graph": graph.summary,
            "status": published.status,
            "rejections": list(published.rejections),
            "report_sha256": version.manifest.files["report.html"].sha256,
        },
    )
    clear_condemned(location)
    for reason in published.rejections:
        logger.warning("%s v%d is rejected: %s", name, published.version, reason)
    announce(published, upstream=[s.url for s in (activations, dictionaries, codes, graph)])
    return _shown(reference, published)


def _findings(
    levels: Sequence[LevelSettings],
    settings: EncodeSettings,
    stored: ActivationSet,
    encoded: CodeSet,
    learned: SealedFolder,
    dictionaries: Reference,
    graph: Reference,
) -> Any:
    from compute.publication import gather_findings
    from compute.sources import load_samples

    return gather_findings(
        stored,
        encoded,
        learned,
        read_graph(graph),
        load_samples(stored.files),
        levels,
        dictionaries.summary["levels"],
        settings,
    )


def _facts(
    settings: dict[str, Any], activations: Reference, dictionaries: Reference
) -> list[tuple[str, str]]:
    told = activations.summary
    outliers = int(max(s["n_outliers"] for s in dictionaries.summary["levels"].values()))
    learn = settings["learn"]
    kind, source = next((k, v) for k in INPUT_KINDS if (v := settings["inputs"][k]) is not None)
    one_row = "tokens" if kind == "text" else "patches"
    sample = {"text": "documents", "prompts": "drawings", "images": "images"}[kind]
    return [
        ("Model", settings["model"]["gguf_file"] or settings["model"]["source"]),
        ("Weights", f"sha256 {told['weights_sha256'][:12]}…, run in {told['model_dtype']}"),
        (kind.capitalize(), f"{source}, {told['samples']:,} {sample}"),
        ("Rows", f"{told['rows']:,} {one_row}, {told['rows'] - told['train_rows']:,} held out"),
        ("Outliers", f"{outliers:,} rows left out (attention sinks)"),
        (
            "Dictionaries",
            f"{learn['architecture']}, {learn['n_concepts']:,} concepts, k {learn['k']}",
        ),
    ]


def _ancestors(registry: Registry, name: str) -> list[Artifact]:
    """The newest version that was not rejected and those before it, oldest first."""
    try:
        return registry.ancestors(name)
    except UnknownArtifact:
        return []


def _published(registry: Registry, name: str, version: int) -> ArtifactReference | None:
    """The version, if this store's registry has it; a damaged one is mended by publishing again."""
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
        for number, (level, scores) in enumerate(told["levels"].items(), 1)
    ]
    title = f"{told['name']} v{told['version']}"
    create_table_artifact(
        table,
        key="results",
        description=f"## {title}\n\n[Open the report]({told['report']})\n\n{told['artifact']}",
    )
    create_link_artifact(told["report"], link_text=f"Report of {title}", key="report")
