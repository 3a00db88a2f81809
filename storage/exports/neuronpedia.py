"""Graphs and dashboards as Neuronpedia and circuit-tracer read them.

A concept graph becomes an attribution graph: observed variables are its embeddings (and, in their
order, the tokens of its "prompt"), concepts are its features, and what a concept's parts leave
unexplained is an error node of its own that points at the concept. Their format has no place for
confidence, stability and verdict: leave out weak or refuted edges beforehand, with
:meth:`storage.graph.concept_graph.ConceptGraph.subgraph`. How a concept comes again from other
seeds, where that is known, is a field of its node that their page passes over.

Dashboards are the rows that Neuronpedia's bulk import takes, one folder per dictionary.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from storage.graph.concept_graph import ConceptGraph
from storage.locations import check_name
from storage.records import digest

__all__ = [
    "ConceptDashboard",
    "DashboardSource",
    "Excerpt",
    "to_dashboards",
    "to_neuronpedia_graph",
]

_FEATURE, _EMBEDDING, _ERROR = "cross layer transcoder", "embedding", "mlp reconstruction error"


def to_neuronpedia_graph(
    graph: ConceptGraph,
    *,
    slug: str,
    scan: str,
    version: str,
    description: str = "",
    source_set: str | None = None,
    settings: Mapping[str, Any] | None = None,
    pruning: Mapping[str, Any] | None = None,
    created_at: datetime | None = None,
) -> dict[str, Any]:
    """Return a graph as the plain data of an attribution graph.

    Parameters
    ----------
    graph : ConceptGraph
        The graph; some hundred nodes are what their page can show well.
    slug, scan : str
        Name of the graph, and the model's id on Neuronpedia.
    version : str
        Version of the artifact, shown as that of the generator.
    description : str
        Shown beside the graph.
    source_set : str, optional
        Neuronpedia's source set that holds the concepts' dashboards.
    settings, pruning : mapping, optional
        Shown as generation and pruning settings; plain JSON.
    created_at : datetime, optional
        When the graph was made.

    Raises
    ------
    ValueError
        If `slug` or `scan` is not a safe name.
    """
    check_name(slug, field="slug")
    check_name(scan, field="scan")
    rows = graph.nodes.to_pylist()
    observed = [row for row in rows if row["level"] == 0]
    position = {row["id"]: i for i, row in enumerate(observed)}
    _place_wholes(graph, position)
    names = {row["id"]: _node_id(row, position[row["id"]]) for row in rows}
    tokens = [_label(row) for row in observed] or [""]

    nodes, links = [], []
    for row in rows:
        at = position[row["id"]]
        nodes.append(_node(row, names[row["id"]], at))
        if row["unexplained"] is not None and row["level"] > 0:
            error = f"{row['level']}_error{row['index']}_{at}"
            nodes.append(_error_node(row, error, at))
            links.append(
                {"source": error, "target": names[row["id"]], "weight": row["unexplained"]}
            )
    for edge in graph.edges.to_pylist():
        links.append(
            {
                "source": names[edge["source"]],
                "target": names[edge["target"]],
                "weight": _weight(edge),
            }
        )
    info: dict[str, Any] = {
        "description": description,
        "generator": {"name": "strata", "version": version, "url": ""},
    }
    if created_at is not None:
        info["create_time_ms"] = int(created_at.timestamp() * 1000)
    metadata: dict[str, Any] = {
        "slug": slug,
        "scan": scan,
        "prompt": " ".join(token.strip() for token in tokens),
        "prompt_tokens": tokens,
        "info": info,
        "generation_settings": dict(settings or {}),
        "pruning_settings": dict(pruning or {}),
    }
    if source_set is not None:
        metadata["feature_details"] = {"neuronpedia_source_set": source_set}
    query = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return {"metadata": metadata, "qParams": query, "nodes": nodes, "links": links}


def _place_wholes(graph: ConceptGraph, position: dict[str, int]) -> None:
    """Put every whole above its strongest part, so that the picture reads from bottom to top."""
    strongest: dict[str, tuple[float, str]] = {}
    for edge in graph.edges.to_pylist():
        candidate = (abs(edge["strength"]), edge["source"])
        strongest[edge["target"]] = max(strongest.get(edge["target"], candidate), candidate)
    for node_id in graph.nodes["id"].to_pylist():
        if node_id not in position:
            part = strongest.get(node_id)
            # Nodes are sorted by level, so that a part always has its place already.
            position[node_id] = position[part[1]] if part else 0


def _node_id(row: Mapping[str, Any], at: int) -> str:
    layer = "E" if row["level"] == 0 else row["level"]
    return f"{layer}_{row['index']}_{at}"


def _label(row: Mapping[str, Any]) -> str:
    return str(row["label"]) if row["label"] is not None else str(row["id"])


def _node(row: Mapping[str, Any], node_id: str, at: int) -> dict[str, Any]:
    layer = "E" if row["level"] == 0 else str(row["level"])
    again = row.get("recurrence")
    return {
        "node_id": node_id,
        "feature": row["index"],
        "layer": layer,
        "ctx_idx": at,
        "feature_type": _EMBEDDING if row["level"] == 0 else _FEATURE,
        "jsNodeId": f"{layer}_{row['index']}-{at}",
        "clerp": _label(row),
        "influence": None,
        "activation": None,
    } | ({} if again is None else {"recurrence": again})


def _error_node(row: Mapping[str, Any], node_id: str, at: int) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "feature": None,
        "layer": str(row["level"]),
        "ctx_idx": at,
        "feature_type": _ERROR,
        "jsNodeId": f"{row['level']}_error{row['index']}-{at}",
        "clerp": f"unexplained share of {_label(row)}",
        "influence": None,
        "activation": None,
    }


def _weight(edge: Mapping[str, Any]) -> float:
    strength = float(edge["strength"])
    return -abs(strength) if edge["sign"] == -1 else strength


# ---- dashboards ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Excerpt:
    """Tokens around a strong activation, and the concept's activation at each of them."""

    tokens: Sequence[str]
    values: Sequence[float]

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.values):
            raise ValueError(
                f"excerpt has {len(self.tokens)} tokens and {len(self.values)} values: give one "
                "value for each of one or more tokens."
            )


@dataclass(frozen=True)
class ConceptDashboard:
    """What Neuronpedia shows of one concept.

    Attributes
    ----------
    index : int
        Position inside the dictionary.
    frequency : float
        Share of rows in which the concept is active.
    maximum : float
        Largest activation seen.
    histogram : tuple
        Edges (one more than counts) and counts of the non-zero activations.
    raised, lowered : sequence of (str, float)
        Output tokens that the concept raises and lowers most, with their scores.
    excerpts : sequence of Excerpt
        Strongest examples first.
    direction : sequence of float
        Decoder row; empty leaves it out.
    """

    index: int
    frequency: float
    maximum: float
    histogram: tuple[Sequence[float], Sequence[int]] = ((), ())
    raised: Sequence[tuple[str, float]] = ()
    lowered: Sequence[tuple[str, float]] = ()
    excerpts: Sequence[Excerpt] = ()
    direction: Sequence[float] = ()


@dataclass(frozen=True)
class DashboardSource:
    """Where the concepts of one dictionary belong on Neuronpedia.

    Attributes
    ----------
    model : str
        Id of the model there.
    layer : int
        Number of the layer that the dictionary reads.
    source_set : str
        Name of the set; the source is ``{layer}-{source_set}``.
    hook_name : str
        Hookpoint of the dictionary.
    creator, creator_id : str
        Who publishes it, and that one's id there.
    release, description, dataset, url : str
        Shown on the release's page.
    """

    model: str
    layer: int
    source_set: str
    hook_name: str = ""
    creator: str = ""
    creator_id: str = ""
    release: str = ""
    description: str = ""
    dataset: str = ""
    url: str = ""
    created_at: datetime = field(default=datetime(1970, 1, 1, tzinfo=UTC))

    @property
    def source(self) -> str:
        """Id of the source."""
        return f"{self.layer}-{self.source_set}"


def to_dashboards(
    concepts: Iterable[ConceptDashboard], source: DashboardSource, *, batch_size: int = 1024
) -> dict[str, bytes]:
    """Return the files of one dictionary's dashboards, by path below the export's root.

    The bytes depend on the arguments alone.

    Raises
    ------
    ValueError
        If a name is not safe, or if the batch size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1.")
    check_name(source.model, field="model")
    check_name(source.source, field="source set")
    root = f"{source.model}/{source.source}"
    files = {f"{root}/{name}": _jsonl([row]) for name, row in _metadata_rows(source).items()}
    ordered = sorted(concepts, key=lambda concept: concept.index)
    for batch, start in enumerate(range(0, len(ordered), batch_size)):
        chunk = ordered[start : start + batch_size]
        features = [_feature_row(concept, source) for concept in chunk]
        activations = [row for concept in chunk for row in _activation_rows(concept, source)]
        for kind, rows in (("features", features), ("activations", activations)):
            # No time stamp in the header: equal content has equal bytes.
            packed = gzip.compress(_jsonl(rows), mtime=0)
            files[f"{root}/{kind}/batch-{batch}.jsonl.gz"] = packed
    return files


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows
    )


def _metadata_rows(source: DashboardSource) -> dict[str, dict[str, Any]]:
    created = source.created_at.isoformat()
    creator = {"creatorId": source.creator_id, "createdAt": created}
    return {
        "release.jsonl": {
            "name": source.release or source.source_set,
            "description": source.description,
            "descriptionShort": source.description,
            "urls": [source.url] if source.url else [],
            "creatorName": source.creator,
            "creatorNameShort": source.creator,
            "visibility": "PUBLIC",
            **creator,
        },
        "model.jsonl": {
            "id": source.model,
            "instruct": source.model.lower().endswith(("-it", "-instruct")),
            "displayName": source.model,
            "displayNameShort": source.model,
            "visibility": "PUBLIC",
            "inferenceEnabled": False,
            "layers": 0,
            "neuronsPerLayer": 0,
            "owner": "",
            "updatedAt": created,
            **creator,
        },
        "sourceset.jsonl": {
            "modelId": source.model,
            "name": source.source_set,
            "hasDashboards": True,
            "visibility": "PUBLIC",
            "description": source.description,
            "type": "",
            "creatorName": source.creator,
            "urls": [source.url] if source.url else [],
            "releaseName": source.release or source.source_set,
            **creator,
        },
        "source.jsonl": {
            "id": source.source,
            "modelId": source.model,
            "setName": source.source_set,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "visibility": "PUBLIC",
            "dataset": source.dataset,
            **creator,
        },
    }


def _feature_row(concept: ConceptDashboard, source: DashboardSource) -> dict[str, Any]:
    edges, counts = concept.histogram
    # Their page pairs values and heights one to one: the middle of a bin stands for its two edges.
    centres = [(low + high) / 2 for low, high in pairwise(edges)]
    return {
        "modelId": source.model,
        "layer": source.source,
        "index": str(concept.index),
        "sourceSetName": source.source_set,
        "creatorId": source.creator_id,
        "createdAt": source.created_at.isoformat(),
        "maxActApprox": float(concept.maximum),
        "hasVector": len(concept.direction) > 0,
        "vector": [float(value) for value in concept.direction],
        "hookName": source.hook_name,
        "frac_nonzero": float(concept.frequency),
        "pos_str": [token for token, _ in concept.raised],
        "pos_values": [float(score) for _, score in concept.raised],
        "neg_str": [token for token, _ in concept.lowered],
        "neg_values": [float(score) for _, score in concept.lowered],
        "freq_hist_data_bar_heights": [int(count) for count in counts],
        "freq_hist_data_bar_values": [float(value) for value in centres],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
    }


def _activation_rows(concept: ConceptDashboard, source: DashboardSource) -> list[dict[str, Any]]:
    rows = []
    for number, excerpt in enumerate(concept.excerpts):
        values = [float(value) for value in excerpt.values]
        peak = max(range(len(values)), key=values.__getitem__)
        key = f"{source.model}/{source.source}/{concept.index}/{number}"
        rows.append(
            {
                "id": "c" + digest(key.encode())[:24],
                "modelId": source.model,
                "layer": source.source,
                "index": str(concept.index),
                "creatorId": source.creator_id,
                "createdAt": source.created_at.isoformat(),
                "tokens": list(excerpt.tokens),
                "values": values,
                "maxValue": values[peak],
                "maxValueTokenIndex": peak,
                "minValue": min(values),
                "dfaValues": [],
                "lossValues": [],
            }
        )
    return rows
