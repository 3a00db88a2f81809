"""A published version written to a folder in the format of another tool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.registry.versions import new_folder

if TYPE_CHECKING:
    from storage.exports.neuronpedia import ConceptDashboard
    from storage.registry.manifests import LevelEntry
    from storage.registry.versions import Artifact

__all__ = ["FORMATS", "export"]


@dataclass(frozen=True)
class Listed:
    """A file of the version, by its path there: copied in pieces, however long it is."""

    path: str


Files = Mapping[str, bytes | Listed]


def export(artifact: Artifact, form: str, folder: str | Path) -> Path:
    """Write a version, verified, into a folder that is new or empty, and return its path.

    Parameters
    ----------
    artifact : Artifact
        The version.
    form : str
        ``saelens``: one folder per level, for ``SAE.load_from_disk``, with the model card;
        ``hub``: everything that the version holds, ready to be uploaded as a model repository;
        ``neuronpedia``: ``graph.json`` in the format of attribution graphs, and the rows of its
        bulk import for every level that has examples; ``graphml``: ``graph.graphml``.
    folder : str or Path
        Where to write.

    Raises
    ------
    ValueError
        If there is no such format, or the version holds nothing that could be written in it.
    FileExistsError
        If the folder exists and is not empty.
    CorruptArtifact
        If a file of the version is damaged.
    """
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is unknown: choose one of {', '.join(FORMATS)}.")
    with new_folder(folder) as partial:
        files = FORMATS[form](artifact)
        if not files:
            raise ValueError(
                f"{artifact.name} version {artifact.version} has nothing to export as {form}."
            )
        for path, source in files.items():
            if isinstance(source, Listed):
                artifact.copy(source.path, partial / path)
            else:
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                (partial / path).write_bytes(source)
    return Path(folder)


def _hub(artifact: Artifact) -> Files:
    from storage.registry.manifests import MANIFEST_FILE, SUMS_FILE

    return {
        **{path: Listed(path) for path in artifact.files},
        SUMS_FILE: artifact.manifest.checksums(),
        MANIFEST_FILE: artifact.manifest.to_bytes(),
    }


def _saelens(artifact: Artifact) -> Files:
    prefix = "dictionaries/"
    found = {
        path.removeprefix(prefix): Listed(path)
        for path in artifact.files
        if path.startswith(prefix)
    }
    if found:
        found["README.md"] = Listed("README.md")
    return found


def _graphml(artifact: Artifact) -> Files:
    if "graph/nodes.parquet" not in artifact.files:
        return {}
    return {"graph.graphml": artifact.graph.to_graphml()}


def _neuronpedia(artifact: Artifact) -> Files:
    import json

    from storage.exports.neuronpedia import DashboardSource, to_dashboards, to_neuronpedia_graph

    files: dict[str, bytes] = {}
    if "graph/nodes.parquet" in artifact.files:
        graph = to_neuronpedia_graph(
            artifact.graph,
            slug=f"{artifact.name}-v{artifact.version}",
            scan=artifact.name,
            version=str(artifact.version),
            source_set="strata",
            created_at=artifact.manifest.created_at,
        )
        files["graph.json"] = json.dumps(graph, ensure_ascii=False, allow_nan=False).encode()
    for level in artifact.levels:
        source = DashboardSource(
            model=artifact.name,
            layer=level.level,
            source_set="strata",
            hook_name=level.hookpoint,
            release=f"{artifact.name}-v{artifact.version}",
            description=_agreement(level),
            created_at=artifact.manifest.created_at,
        )
        concepts = list(_dashboards(artifact, level))
        if concepts:
            files |= to_dashboards(concepts, source)
    return files


def _agreement(level: LevelEntry) -> str:
    """How a level's concepts come again from other seeds, in words; empty where it is not known."""
    value = level.metrics.get("agreement")
    if not isinstance(value, int | float):
        return ""
    return f"Found from other seeds, its concepts have a mean |cosine| of {value:.3f}."


def _dashboards(artifact: Artifact, level: LevelEntry) -> Iterator[ConceptDashboard]:
    from storage.exports.neuronpedia import ConceptDashboard, Excerpt

    examples: dict[int, list[Mapping[str, Any]]] = {}
    try:
        records = artifact.examples(level.level)
    except KeyError:
        return
    for record in records:
        # An image's values lie on patches, for which these rows have no place.
        index, tokens, values = (record.get(key) for key in ("index", "tokens", "values"))
        if index is not None and tokens and len(tokens) == len(values or ()):
            examples.setdefault(index, []).append(record)
    dictionary = artifact.dictionary(level.level)
    frequency = dictionary.log10_frequency
    n_concepts = len(dictionary.directions)
    for index, own in sorted(examples.items()):
        if index >= n_concepts:
            raise ValueError(
                f"examples of {level.name} speak of concept {index}, and its dictionary has "
                f"{n_concepts}."
            )
        yield ConceptDashboard(
            index=index,
            frequency=0.0 if frequency is None else float(10.0 ** frequency[index]),
            maximum=max(float(record.get("activation") or 0.0) for record in own),
            excerpts=[Excerpt(record["tokens"], record["values"]) for record in own],
            direction=[round(float(v), 6) for v in dictionary.directions[index]],
        )


FORMATS: dict[str, Callable[[Artifact], Files]] = {
    "saelens": _saelens,
    "neuronpedia": _neuronpedia,
    "hub": _hub,
    "graphml": _graphml,
}
"""The known formats; each turns a version into files by their path below the export's folder."""
