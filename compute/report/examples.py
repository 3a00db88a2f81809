"""Examples: for each concept its strongest places, in context or in the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compute.inputs.corpus import Corpus
from compute.inputs.gallery import Gallery
from compute.settings import EncodeSettings
from compute.steps.encode import ConceptSummary
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeSet

__all__ = ["PictureExample", "TextExample", "picture_examples", "text_examples"]


@dataclass(frozen=True, slots=True)
class TextExample:
    """One place at which a concept is strong.

    Attributes
    ----------
    document, position : int
        Where the peak is.
    tokens : array (t,) int32
        Token ids of the window around the peak, which stays in the peak's context.
    values : array (t,) float32
        The concept's codes there.
    peak : int
        The peak's place in the window.
    """

    document: int
    position: int
    tokens: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]
    peak: int

    @property
    def activation(self) -> float:
        """The code at the peak."""
        return float(self.values[self.peak])


@dataclass(frozen=True, slots=True)
class PictureExample:
    """One picture in which a concept is strong.

    Attributes
    ----------
    sample : int
    values : array (height, width) float32
        The concept's codes on the picture's patches.
    """

    sample: int
    values: npt.NDArray[np.float32]

    @property
    def activation(self) -> float:
        """The largest code."""
        return float(self.values.max())

    @property
    def position(self) -> int:
        """The patch of the largest code, row by row."""
        return int(self.values.argmax())


def picture_examples(
    activations: ActivationSet,
    codes: CodeSet,
    gallery: Gallery,
    level: str,
    summary: ConceptSummary,
    settings: EncodeSettings,
) -> list[list[PictureExample]]:
    """The strongest pictures of every concept of a level, strongest first, each one once."""
    row_of = _row_of(activations, gallery)
    sample = activations.index("sample", 0, len(activations))
    found = [
        list(dict.fromkeys(sample[rows[rows >= 0]].tolist()))[: settings.examples]
        for rows in summary.top_rows
    ]
    wanted = [(concept, s) for concept, samples in enumerate(found) for s in samples]
    values = _gather(codes, level, [(concept, row_of[s]) for concept, s in wanted])
    examples: list[list[PictureExample]] = [[] for _ in found]
    for (concept, s), shade in zip(wanted, values, strict=True):
        examples[concept].append(PictureExample(s, shade.reshape(gallery.grid)))
    return examples


def _row_of(
    activations: ActivationSet, samples: Corpus | Gallery
) -> dict[int, npt.NDArray[np.int64]]:
    """For each sample, the stored row of each of its positions; −1 where it has none."""
    plan = activations.plan
    destinations = np.concatenate([plan.destinations(b) for b in range(plan.n_blocks)])
    return {
        sample: np.where(rows >= 0, destinations[rows], -1)
        for sample, rows in samples.canonical_rows().items()
    }


def text_examples(
    activations: ActivationSet,
    codes: CodeSet,
    corpus: Corpus,
    level: str,
    summary: ConceptSummary,
    settings: EncodeSettings,
) -> list[list[TextExample]]:
    """The strongest examples of every concept of a level, strongest first.

    Candidates of one concept that lie in the same context show the same text, so only the strongest
    of them is kept. The codes around the peaks are gathered in one pass over the code set.
    """
    candidates = summary.top_rows
    place = _Places(activations, corpus)
    found: list[list[tuple[int, int]]] = []
    for rows in candidates:
        chosen: list[tuple[int, int]] = []
        contexts: set[tuple[int, int]] = set()
        for row in rows[rows >= 0]:
            document, position = place.of(int(row))
            context = (document, place.context_start(document, position))
            if context not in contexts and len(chosen) < settings.examples:
                contexts.add(context)
                chosen.append((document, position))
        found.append(chosen)
    windows = [
        (concept, document, position, *place.window(document, position, settings.window))
        for concept, places in enumerate(found)
        for document, position in places
    ]
    values = _gather(codes, level, [(w[0], place.rows(w[1], w[3], w[4])) for w in windows])
    examples: list[list[TextExample]] = [[] for _ in found]
    for (concept, document, position, start, stop), shade in zip(windows, values, strict=True):
        tokens = corpus.tokens[document][start:stop]
        examples[concept].append(TextExample(document, position, tokens, shade, position - start))
    return examples


class _Places:
    """Translates stored rows to documents and positions and back."""

    def __init__(self, activations: ActivationSet, corpus: Corpus) -> None:
        self._row_of = _row_of(activations, corpus)
        self._starts = {document: np.zeros(len(t), int) for document, t in enumerate(corpus.tokens)}
        self._stops = {document: np.zeros(len(t), int) for document, t in enumerate(corpus.tokens)}
        for w in corpus.windows:
            self._starts[w.document][w.start : w.start + w.length] = w.start
            self._stops[w.document][w.start : w.start + w.length] = w.start + w.length
        self._sample = activations.index("sample", 0, len(activations))
        self._position = activations.index("position", 0, len(activations))

    def of(self, row: int) -> tuple[int, int]:
        return int(self._sample[row]), int(self._position[row])

    def context_start(self, document: int, position: int) -> int:
        return int(self._starts[document][position])

    def window(self, document: int, position: int, reach: int) -> tuple[int, int]:
        start = max(position - reach, self._starts[document][position])
        stop = min(position + reach + 1, self._stops[document][position])
        return int(start), int(stop)

    def rows(self, document: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        return self._row_of[document][start:stop]


def _gather(
    codes: CodeSet, level: str, wanted: list[tuple[int, npt.NDArray[np.int64]]]
) -> Iterator[npt.NDArray[np.float32]]:
    """Codes of one concept at some rows, for each entry; one pass over the shards."""
    if not wanted:
        return iter(())
    rows = np.concatenate([rows for _, rows in wanted])
    concepts = np.concatenate([np.full(len(rows), concept) for concept, rows in wanted])
    values = np.zeros(len(rows), dtype=np.float32)
    order = np.argsort(rows, kind="stable")
    cuts = np.searchsorted(
        rows[order], np.arange(len(codes.plan.shards) + 1) * codes.plan.shard_rows
    )
    for shard in codes.plan.shards:
        chosen = order[cuts[shard] : cuts[shard + 1]]
        start = shard * codes.plan.shard_rows
        indices, strengths = codes.read(level, start, start + codes.plan.shard_size(shard))
        local = rows[chosen] - start
        hit = indices[local] == concepts[chosen, None]
        values[chosen] = np.where(hit, strengths[local], 0).sum(axis=1)
    return iter(np.split(values, np.cumsum([len(rows) for _, rows in wanted])[:-1]))
