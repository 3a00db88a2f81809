"""Publication: everything of a run put together as the files of one concept artifact."""

from __future__ import annotations

import itertools
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compute.inputs.corpus import Corpus
from compute.inputs.gallery import Gallery, read_pictures
from compute.report.examples import PictureExample, TextExample, picture_examples, text_examples
from compute.settings import EncodeSettings, LevelSettings
from compute.steps.encode import BIN_EDGES, ConceptSummary, read_summary
from compute.steps.learn import DICTIONARY_FILES, read_recurrence
from storage.atlas import (
    AtlasData,
    Changes,
    Concept,
    Edge,
    Histogram,
    HistoryEntry,
    ImageExample,
    Level,
    Neighbour,
    TokenExample,
    render,
)
from storage.atlas.labels import ContrastLabeller, background_counts, contrast_words, words_of
from storage.graph.concept_graph import ConceptGraph, concept_place
from storage.registry.manifests import LEVEL_SCORES
from storage.sealing.seals import SealedFolder
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeSet

if TYPE_CHECKING:
    from compute.selection.assumptions import AssumptionReport

__all__ = [
    "Findings",
    "artifact_files",
    "assumptions",
    "atlas_data",
    "gather_findings",
    "report_page",
]

_NEIGHBOURS = 6
_ASSUMPTION_ROWS = 20_000


@dataclass(frozen=True)
class LevelFindings:
    """What is known of one level's concepts; arrays have one entry per concept."""

    settings: LevelSettings
    scores: Mapping[str, float]
    summary: ConceptSummary
    examples: Sequence[Sequence[TextExample | PictureExample]]
    shown: Sequence[Sequence[TokenExample | ImageExample]]
    labels: Sequence[str]
    directions: npt.NDArray[np.float32]

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """Share of kept rows in which each concept is active."""
        return self.summary.counts / max(1, self.summary.rows)


@dataclass(frozen=True)
class Findings:
    """A whole run, ready to be published."""

    levels: Sequence[LevelFindings]
    graph: ConceptGraph
    samples: Corpus | Gallery


def gather_findings(
    activations: ActivationSet,
    codes: CodeSet,
    learned: SealedFolder,
    graph: ConceptGraph,
    samples: Corpus | Gallery,
    levels: Sequence[LevelSettings],
    scores: Mapping[str, Mapping[str, float]],
    settings: EncodeSettings,
) -> Findings:
    """Collect summaries, examples and labels of every level, and write the labels to the graph."""
    from safetensors.numpy import load

    show: _Texts | _Pictures = (
        _Texts(activations, codes, samples)
        if isinstance(samples, Corpus)
        else _Pictures(activations, codes, samples)
    )
    found = []
    for level in levels:
        summary = read_summary(codes, level.name)
        examples, shown, labels = show(level.name, summary, settings)
        weights = load(learned.get(f"dictionaries/{level.name}/{DICTIONARY_FILES[1]}"))
        found.append(
            LevelFindings(
                level, scores[level.name], summary, examples, shown, labels, weights["W_dec"]
            )
        )
    again = read_recurrence(learned)
    named = _named(graph, [level.labels for level in found], [again.get(o.name) for o in levels])
    return Findings(found, named, samples)


class _Texts:
    """Shows concepts by tokens in context, and names them by the words there."""

    def __init__(self, activations: ActivationSet, codes: CodeSet, corpus: Corpus) -> None:
        self._of = (activations, codes, corpus)
        self._labeller = ContrastLabeller(
            background_counts(
                [corpus.vocabulary.get(int(t), "") for t in tokens] for tokens in corpus.tokens
            )
        )

    def __call__(self, level: str, summary: ConceptSummary, settings: EncodeSettings) -> Any:
        examples = text_examples(*self._of, level, summary, settings)
        shown = [[token_example(e, self._of[2]) for e in chosen] for chosen in examples]
        return examples, shown, [self._labeller(chosen) if chosen else "" for chosen in shown]


class _Pictures:
    """Shows concepts by pictures with their patches, and names them by the prompts' words."""

    def __init__(self, activations: ActivationSet, codes: CodeSet, gallery: Gallery) -> None:
        self._of = (activations, codes, gallery)
        self._background = background_counts([text] for text in gallery.texts)

    def __call__(self, level: str, summary: ConceptSummary, settings: EncodeSettings) -> Any:
        activations, _, gallery = self._of
        examples = picture_examples(*self._of, level, summary, settings)
        samples = {example.sample for chosen in examples for example in chosen}
        pictures = read_pictures(activations.files, samples)
        shown = [
            [image_example(e, gallery, pictures[e.sample]) for e in chosen] for chosen in examples
        ]
        return examples, shown, [self._label(chosen) for chosen in examples]

    def _label(self, examples: Sequence[PictureExample]) -> str:
        if not examples:
            return ""
        gallery = self._of[2]
        words = contrast_words(
            [words_of([gallery.texts[e.sample]]) for e in examples], self._background
        )
        place, share = Counter(e.position for e in examples).most_common(1)[0]
        where = [_place(place, gallery.grid)] if share > len(examples) / 2 else []
        return " · ".join([", ".join(words), *where] if words else where)


def artifact_files(findings: Findings, learned: SealedFolder) -> dict[str, bytes]:
    """The deterministic files of the artifact: dictionaries, graph and examples."""
    files: dict[str, bytes] = {}
    for level in findings.levels:
        folder = f"dictionaries/{level.settings.name}"
        for name in DICTIONARY_FILES:
            files[f"{folder}/{name}"] = learned.get(f"{folder}/{name}")
        files[f"examples/{level.settings.name}.parquet"] = _examples_table(level, findings.samples)
    for name, data in findings.graph.files().items():
        files[f"graph/{name}"] = data
    return files


def assumptions(findings: Findings, codes: CodeSet) -> AssumptionReport:
    """What the theory needs, measured on this run's training rows, concepts and graph."""
    from scipy.sparse import csr_matrix, vstack

    from compute.selection.assumptions import assumption_report

    matrices, kept = [], []
    stop = min(codes.plan.n_train, _ASSUMPTION_ROWS)
    # Rows are shuffled globally, so the first ones are a fair sample of all.
    for start, end in codes.plan.shard_bounds(range(stop)):
        kept.append(codes.kept(start, end))
    for level in findings.levels:
        blocks = [
            codes.matrix(level.settings.name, start, end)[rows]
            for (start, end), rows in zip(codes.plan.shard_bounds(range(stop)), kept, strict=True)
        ]
        matrices.append(vstack(blocks).tocsr())
    table = findings.graph.edges
    places = [
        tuple(concept_place(end) for end in ends)
        for ends in zip(
            table.column("source").to_pylist(), table.column("target").to_pylist(), strict=True
        )
    ]
    edges = []
    for number, (below, above) in enumerate(itertools.pairwise(matrices), 1):
        pairs = [(part, whole) for (at, part), (_, whole) in places if at == number]
        rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        ones = np.ones(len(pairs), dtype=bool)
        shape = (below.shape[1], above.shape[1])
        edges.append(csr_matrix((ones, (rows, columns)), shape=shape))
    return assumption_report(matrices, [level.directions for level in findings.levels], edges)


def report_page(data: AtlasData) -> bytes:
    """The report as one self-contained HTML page."""
    return render(data).encode()


def atlas_data(
    findings: Findings,
    *,
    name: str,
    version: int,
    created_at: datetime,
    title: str,
    description: str,
    facts: Sequence[tuple[str, str]],
    steps: Sequence[tuple[str, float]],
    histories: Mapping[str, tuple[HistoryEntry, ...]] | None = None,
    changes: Changes | None = None,
    strips: Mapping[str, Any] | None = None,
) -> AtlasData:
    """What the report shows of a run; histories and strips are given by the concepts' ids."""
    nodes = {node["id"]: node for node in findings.graph.nodes.to_pylist()}
    observed = [
        Concept(id=node["id"], level=0, index=node["index"], label=node["label"], frequency=0.0)
        for node in nodes.values()
        if node["level"] == 0
    ]
    concepts = list(observed)
    levels = [Level(level=0, name="observed", n_concepts=len(observed))]
    for number, level in enumerate(findings.levels, 1):
        concepts += _concepts(number, level, nodes, histories or {}, strips or {})
        levels.append(_shown_level(number, level))
    return AtlasData(
        name=name,
        version=version,
        created_at=created_at.isoformat(),
        title=title,
        description=description,
        facts=tuple(facts),
        steps=tuple(steps),
        levels=tuple(levels),
        concepts=tuple(concepts),
        edges=tuple(_shown_edge(edge) for edge in findings.graph.edges.to_pylist()),
        changes=changes,
    )


def _shown_level(number: int, level: LevelFindings) -> Level:
    return Level(
        level=number,
        name=level.settings.name,
        hookpoint=level.settings.hookpoint,
        timestep=level.settings.timestep,
        n_concepts=len(level.summary.counts),
        metrics={key: float(level.scores[key]) for key in LEVEL_SCORES if key in level.scores},
    )


def _shown_edge(edge: Mapping[str, Any]) -> Edge:
    return Edge(
        source=edge["source"],
        target=edge["target"],
        strength=max(0.0, edge["strength"]),
        confidence=edge["confidence"],
        sign=-1 if (edge["sign"] or 1) < 0 else 1,
        stability=edge["stability"],
        verdict=edge["verdict"],
        effect=edge["effect"],
    )


def token_example(example: TextExample, corpus: Corpus) -> TokenExample:
    """An example with its tokens as text."""
    return TokenExample(
        tokens=tuple(corpus.vocabulary[token] for token in example.tokens.tolist()),
        values=tuple(np.round(example.values.astype(float), 4).tolist()),
        peak=example.peak,
        activation=round(example.activation, 4),
        source=f"{corpus.names[example.document]}, token {example.position}",
    )


def image_example(example: PictureExample, gallery: Gallery, picture: bytes) -> ImageExample:
    """An example with its picture."""
    text = gallery.texts[example.sample]
    name = gallery.names[example.sample]
    return ImageExample(
        image=f"data:image/png;base64,{b64encode(picture).decode()}",
        patches=tuple(tuple(row) for row in np.round(example.values.astype(float), 4).tolist()),
        activation=round(example.activation, 4),
        source=f"{text} · {name}" if text else name,
    )


def _place(patch: int, grid: tuple[int, int]) -> str:
    """Where in the picture a patch lies, in words."""
    row, column = divmod(patch, grid[1])
    down = ("top", "middle", "bottom")[min(2, 3 * row // grid[0])]
    across = ("left", "middle", "right")[min(2, 3 * column // grid[1])]
    return "middle" if down == across else f"{down} {across}"


def _concepts(
    number: int,
    level: LevelFindings,
    nodes: Mapping[str, Any],
    histories: Mapping[str, tuple[HistoryEntry, ...]],
    strips: Mapping[str, Any],
) -> list[Concept]:
    summary = level.summary
    alive = np.flatnonzero(summary.counts)
    neighbours = _neighbours(level.directions, alive)
    concepts = []
    for index in alive.tolist():
        node = nodes[f"{number}:{index}"]
        concepts.append(
            Concept(
                id=node["id"],
                level=number,
                index=index,
                label=level.labels[index],
                frequency=float(level.frequencies[index]),
                mean_activation=float(summary.sums[index] / summary.counts[index]),
                max_activation=float(summary.maxima[index]),
                histogram=_histogram(summary.histogram[index]),
                examples=tuple(level.shown[index]),
                neighbours=tuple(
                    Neighbour(id=f"{number}:{other}", cosine=cosine)
                    for other, cosine in neighbours[index]
                ),
                kind=node["kind"],
                form=node["form"],
                unexplained=node["unexplained"],
                recurrence=node.get("recurrence"),
                history=histories.get(node["id"], ()),
                steering=strips.get(node["id"]),
            )
        )
    return concepts


def _histogram(counts: npt.NDArray[np.int64]) -> Histogram | None:
    used = np.flatnonzero(counts)
    if not len(used):
        return None
    first, last = used[0], used[-1] + 1
    edges = BIN_EDGES[first : last + 1].tolist()
    return Histogram(edges=tuple(edges), counts=tuple(counts[first:last].tolist()))


def _neighbours(
    directions: npt.NDArray[np.float32], alive: npt.NDArray[np.int64]
) -> dict[int, list[tuple[int, float]]]:
    """The concepts of the level with the most similar directions, most similar first."""
    found: dict[int, list[tuple[int, float]]] = {}
    rows = directions[alive]
    count = min(_NEIGHBOURS, len(alive) - 1)
    for start in range(0, len(alive), 1024):
        cosines = rows[start : start + 1024] @ rows.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -2
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        for i, others in enumerate(best):
            found[int(alive[start + i])] = [
                (int(alive[other]), float(np.clip(cosines[i, other], -1, 1))) for other in others
            ]
    return found


def _named(
    graph: ConceptGraph,
    labels: Sequence[Sequence[str]],
    recurrences: Sequence[Sequence[float] | None],
) -> ConceptGraph:
    """The graph with its concepts' labels, and how they come again where that was measured."""
    nodes = {name: graph.nodes.column(name).to_pylist() for name in graph.nodes.column_names}
    edges = {name: graph.edges.column(name).to_pylist() for name in graph.edges.column_names}
    nodes["label"] = [
        label if level == 0 else labels[level - 1][index]
        for level, index, label in zip(nodes["level"], nodes["index"], nodes["label"], strict=True)
    ]
    if any(recurrences):
        nodes["recurrence"] = [
            None if level == 0 or (own := recurrences[level - 1]) is None else own[index]
            for level, index in zip(nodes["level"], nodes["index"], strict=True)
        ]
    return ConceptGraph.from_columns(nodes, edges)


def _examples_table(level: LevelFindings, samples: Corpus | Gallery) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "index": index,
            "rank": rank,
            "position": example.position,
            "activation": example.activation,
            "values": example.values.ravel().tolist(),
            **_context(example, samples),
        }
        for index, examples in enumerate(level.examples)
        for rank, example in enumerate(examples)
    ]
    fields = [
        ("index", pa.int32()),
        ("rank", pa.int16()),
        ("document", pa.string()),
        ("position", pa.int32()),
        ("peak", pa.int16()),
        ("activation", pa.float32()),
        ("tokens", pa.list_(pa.string())),
        ("values", pa.list_(pa.float32())),
    ]
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _context(example: TextExample | PictureExample, samples: Corpus | Gallery) -> dict[str, Any]:
    """What an example's values lie on: tokens, or the words of a picture's prompt."""
    if isinstance(samples, Corpus) and isinstance(example, TextExample):
        tokens = [
            samples.vocabulary.get(int(t), "\N{REPLACEMENT CHARACTER}") for t in example.tokens
        ]
        name = samples.names[example.document]
        return {"document": name, "peak": example.peak, "tokens": tokens}
    assert isinstance(samples, Gallery)  # pictures come from a gallery
    assert isinstance(example, PictureExample)
    text = samples.texts[example.sample]
    name = samples.names[example.sample]
    return {"document": name, "peak": example.position, "tokens": [text] if text else []}


def describe_levels(findings: Findings) -> list[dict[str, Any]]:
    """The levels as the manifest lists them."""
    return [
        {
            "level": number,
            "name": level.settings.name,
            "hookpoint": level.settings.hookpoint,
            "timestep": level.settings.timestep,
            "n_concepts": len(level.summary.counts),
            "d": int(level.directions.shape[1]),
            "metrics": json.loads(json.dumps(dict(level.scores))),
        }
        for number, level in enumerate(findings.levels, 1)
    ]
