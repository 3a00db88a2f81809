"""Encoding: sparse codes of every row, and what each concept's codes look like.

The work is split by whole shards. Beside its codes a shard leaves a *summary* of fixed size, from
which frequencies, histograms and the strongest rows of each concept are merged without reading the
codes again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compute.cluster import (
    Progress,
    actor_options,
    actor_pool,
    connect,
    count_rows,
    silent,
    worker_count,
)
from compute.dictionaries.dictionary_settings import codes_per_row
from compute.settings import EncodeSettings, ResourceSettings
from compute.steps.learn import load_dictionaries, load_model, read_norm_bounds
from storage.locations import Location
from storage.sealing.condemned import read_condemned
from storage.sealing.seals import SealedFolder
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeLevel, CodePlan, CodeSet, CodeWriter
from storage.tables.loader import kept_rows
from storage.tables.sealed import NotSealed

__all__ = ["ConceptSummary", "encode", "published_codes", "read_summary"]

# Activations are counted in bins of equal ratio, so that one grid suits every concept.
BIN_EDGES = np.geomspace(2.0**-10, 2.0**16, 53)
# Each example shows another place, so more candidates are kept than examples are wanted.
_CANDIDATES = 4


@dataclass(frozen=True)
class ConceptSummary:
    """What the codes of one level's concepts look like over all kept rows.

    Attributes
    ----------
    rows : int
        Kept rows.
    counts : array (n_concepts,) int64
        Rows in which the concept is active.
    sums : array (n_concepts,) float64
        Sum of its codes.
    maxima : array (n_concepts,) float32
        Its largest code.
    histogram : array (n_concepts, len(BIN_EDGES) − 1) int64
        Active rows by code.
    top_rows, top_values : arrays (n_concepts, c)
        Stored rows of its largest codes, largest first; −1 where there are fewer.
    """

    rows: int
    counts: npt.NDArray[np.int64]
    sums: npt.NDArray[np.float64]
    maxima: npt.NDArray[np.float32]
    histogram: npt.NDArray[np.int64]
    top_rows: npt.NDArray[np.int64]
    top_values: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls,
        indices: npt.NDArray[Any],
        values: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        n_concepts: int,
        candidates: int,
    ) -> ConceptSummary:
        """Summarise codes (n, k) that belong to the given stored rows (n,)."""
        active = values > 0
        concept = indices[active].astype(np.int64)
        value = values[active]
        row = np.broadcast_to(rows[:, None], values.shape)[active]
        counts = np.bincount(concept, minlength=n_concepts)
        bins = np.clip(np.searchsorted(BIN_EDGES, value, side="right") - 1, 0, len(BIN_EDGES) - 2)
        n_bins = len(BIN_EDGES) - 1
        histogram = np.bincount(concept * n_bins + bins, minlength=n_concepts * n_bins)
        maxima = np.zeros(n_concepts, dtype=np.float32)
        np.maximum.at(maxima, concept, value)
        top_rows, top_values = _strongest(concept, value, row, n_concepts, candidates)
        return cls(
            rows=len(rows),
            counts=counts,
            sums=np.bincount(concept, weights=value, minlength=n_concepts).astype(np.float64),
            maxima=maxima,
            histogram=histogram.reshape(n_concepts, n_bins),
            top_rows=top_rows,
            top_values=top_values,
        )

    def merge(self, other: ConceptSummary) -> ConceptSummary:
        """The summary of both sets of rows together."""
        n_concepts, candidates = self.top_rows.shape
        rows = np.concatenate([self.top_rows, other.top_rows], axis=1)
        values = np.concatenate([self.top_values, other.top_values], axis=1)
        concept = np.broadcast_to(np.arange(n_concepts)[:, None], rows.shape)
        used = rows >= 0
        top_rows, top_values = _strongest(
            concept[used], values[used], rows[used], n_concepts, candidates
        )
        return ConceptSummary(
            rows=self.rows + other.rows,
            counts=self.counts + other.counts,
            sums=self.sums + other.sums,
            maxima=np.maximum(self.maxima, other.maxima),
            histogram=self.histogram + other.histogram,
            top_rows=top_rows,
            top_values=top_values,
        )

    def to_bytes(self) -> bytes:
        """The summary as a safetensors file."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        return bytes(save(arrays | {"rows": np.array([self.rows])}))

    @classmethod
    def from_bytes(cls, data: bytes) -> ConceptSummary:
        """Read what :meth:`to_bytes` wrote."""
        from safetensors.numpy import load

        arrays = load(data)
        return cls(rows=int(arrays["rows"][0]), **{name: arrays[name] for name in _ARRAYS})


_ARRAYS = ("counts", "sums", "maxima", "histogram", "top_rows", "top_values")


def _strongest(
    concept: npt.NDArray[np.int64],
    value: npt.NDArray[np.float32],
    row: npt.NDArray[np.int64],
    n_concepts: int,
    candidates: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The largest values of each concept and their rows; ties go to the lower row."""
    order = np.lexsort((row, -value, concept))
    concept, value, row = concept[order], value[order], row[order]
    first = np.searchsorted(concept, np.arange(n_concepts))
    place = np.arange(len(concept)) - first[concept]
    chosen = place < candidates
    top_rows = np.full((n_concepts, candidates), -1, dtype=np.int64)
    top_values = np.zeros((n_concepts, candidates), dtype=np.float32)
    top_rows[concept[chosen], place[chosen]] = row[chosen]
    top_values[concept[chosen], place[chosen]] = value[chosen]
    return top_rows, top_values


class _Encoder:
    """Holds the dictionaries of all levels and encodes the shards it is given."""

    def __init__(
        self,
        activations: ActivationSet,
        learned: SealedFolder,
        url: str,
        plan: CodePlan,
        settings: EncodeSettings,
        resources: ResourceSettings,
    ) -> None:
        import torch

        from compute.models.devices import choose_device

        torch.set_num_threads(max(1, int(resources.cpus)))
        device = choose_device("auto" if resources.gpus else "cpu")
        self.activations = activations
        self.location = Location(url)
        self.writer = CodeWriter(self.location, plan)
        self.settings = settings
        self.bounds = read_norm_bounds(learned)
        self._count = count_rows("encode")
        self.model = load_model(learned, str(device))
        self.dictionaries = {
            level: dictionary.to(device) for level, dictionary in load_dictionaries(learned).items()
        }

    def encode(self, shard: int) -> int:
        """Encode one shard at every level; return its rows."""
        rows = self.writer.plan.shard_size(shard)
        if self.location.exists(f"receipts/{shard}.json"):
            # The worker before this one died between writing the receipt and saying so.
            return rows
        arrays, summaries = self._codes(shard)
        # Before the shard's receipt, which says that all of the shard is there.
        for path, data in summaries.items():
            self.location.put(path, data)
        self.writer.write_rows(shard, arrays)
        self._count(rows)
        return rows

    def remake(self, task: tuple[int, Sequence[str]]) -> int:
        """Encode a finished shard again and store its arrays of these paths; return its rows."""
        shard, paths = task
        arrays, summaries = self._codes(shard)
        self.writer.remake(shard, {path: arrays[path] for path in paths})
        for path, data in summaries.items():
            self.location.put(path, data)
        return self.writer.plan.shard_size(shard)

    def _codes(self, shard: int) -> tuple[dict[str, npt.NDArray[Any]], dict[str, bytes]]:
        """Arrays of the shard by path, and its summaries by path."""
        plan = self.writer.plan
        start = shard * plan.shard_rows
        stop = start + plan.shard_size(shard)
        kept = kept_rows(self.activations, self.bounds, start, stop)
        arrays: dict[str, npt.NDArray[Any]] = {"kept": kept.astype(np.uint8)}
        summaries: dict[str, bytes] = {}
        size = stop - start
        indices = [np.empty((size, own.k), column.dtype) for own, column in self._columns()]
        values = [np.empty((size, own.k), np.float32) for own in plan.levels]
        for begin in range(0, size, plan.chunk_rows):
            end = min(begin + plan.chunk_rows, size)
            found = self._sparse(start + begin, start + end)
            for where, what, codes in zip(indices, values, found, strict=True):
                where[begin:end] = codes.indices.cpu().numpy()
                what[begin:end] = codes.values.cpu().numpy()
        for level, where, what in zip(plan.levels, indices, values, strict=True):
            arrays[f"codes/{level.name}/indices"] = where
            arrays[f"codes/{level.name}/values"] = what
            summary = ConceptSummary.of(
                where[kept],
                what[kept],
                np.arange(start, stop)[kept],
                level.n_concepts,
                _CANDIDATES * self.settings.examples,
            )
            summaries[_summary_path(level.name, shard)] = summary.to_bytes()
        return arrays, summaries

    def _columns(self) -> list[tuple[CodeLevel, Any]]:
        """Each level of codes with the column of its indices."""
        plan = self.writer.plan
        return list(zip(plan.levels, plan.columns[::2], strict=False))

    def _sparse(self, start: int, stop: int) -> list[Any]:
        """Sparse codes of some rows, level by level: those of the model, if there is one."""
        levels = self.writer.plan.levels
        rows = [self.activations.read(own.name, start, stop).astype(np.float32) for own in levels]
        return published_codes([self.dictionaries[own.name] for own in levels], self.model, rows)


def published_codes(dictionaries: Sequence[Any], model: Any, rows: Sequence[Any]) -> list[Any]:
    """Sparse codes of aligned rows (n, d_l), level by level: those of the model, if there is one.

    ``dictionaries`` are those of the levels.
    """
    widths = [_places(dictionary) for dictionary in dictionaries]
    if model is not None:
        return list(model.transform_sparse(rows, widths))
    return [
        dictionary.encode_sparse(x, width=width)
        for dictionary, x, width in zip(dictionaries, rows, widths, strict=True)
    ]


def _places(dictionary: Any) -> int:
    """Codes that are kept of a row."""
    return codes_per_row(dictionary.architecture, dictionary.k, dictionary.n_concepts)


def encode(
    activations: ActivationSet,
    learned: SealedFolder,
    location: Location,
    settings: EncodeSettings,
    *,
    fingerprint: str,
    resources: ResourceSettings,
    progress: Progress = silent,
) -> CodeSet:
    """Encode an activation set with the `learned` dictionaries, or what is missing or condemned.

    `progress` is told the rows encoded so far, and all rows.

    Raises
    ------
    CorruptFile
        If a dictionary or the norm bounds are not what was sealed.
    ValueError
        If a condemned shard does not come out as it was written.
    """
    for damage in learned.find_damage():
        # Told here, since Ray would tell of a worker that could not start.
        raise damage
    try:
        found = CodeSet(location)
    except NotSealed:
        pass
    else:
        _mend(activations, learned, found, settings, resources)
        return found
    plan = code_plan(activations, load_dictionaries(learned), fingerprint)
    writer = CodeWriter(location, plan)
    writer.prepare()
    shards = writer.missing_shards()
    done = plan.n_rows - sum(plan.shard_size(shard) for shard in shards)
    if shards:
        import ray

        connect()
        encoder = ray.remote(**actor_options(resources))(_Encoder)
        with actor_pool(
            lambda: encoder.remote(activations, learned, location.url, plan, settings, resources),
            worker_count(resources, len(shards)),
        ) as actors:
            for _, rows in actors.run("encode", shards):
                done += rows
                progress(done, plan.n_rows)
    writer.seal()
    return CodeSet(location)


def _mend(
    activations: ActivationSet,
    learned: SealedFolder,
    codes: CodeSet,
    settings: EncodeSettings,
    resources: ResourceSettings,
) -> None:
    """Encode the condemned shards of a finished code set again, and those without a summary."""
    condemned = dict(read_condemned(codes.location).shards)
    there = set(codes.location.walk("summaries"))
    for shard in codes.plan.shards:
        if not {_summary_path(level, shard) for level in codes.levels} <= there:
            condemned.setdefault(shard, ())
    if not condemned:
        return
    import ray

    connect()
    encoder = ray.remote(**actor_options(resources))(_Encoder)
    url, plan = codes.location.url, codes.plan
    with actor_pool(
        lambda: encoder.remote(activations, learned, url, plan, settings, resources),
        worker_count(resources, len(condemned)),
    ) as actors:
        for _ in actors.run("remake", condemned.items()):
            pass


def code_plan(
    activations: ActivationSet, dictionaries: Mapping[str, Any], fingerprint: str
) -> CodePlan:
    """The plan of the code set that these dictionaries give on an activation set."""
    source = activations.plan
    levels = []
    for level in activations.levels:
        dictionary = dictionaries[level]
        k = _places(dictionary)
        levels.append(CodeLevel(name=level, n_concepts=dictionary.n_concepts, k=k))
    return CodePlan(
        fingerprint=fingerprint,
        n_train=source.n_train,
        n_rows=source.n_rows,
        shard_rows=source.shard_rows,
        chunk_rows=source.chunk_rows,
        levels=tuple(levels),
        activations=activations.content_hash,
    )


def read_summary(codes: CodeSet, level: str) -> ConceptSummary:
    """The summary of one level over all kept rows, merged shard by shard."""
    merged: ConceptSummary | None = None
    for shard in codes.plan.shards:
        part = ConceptSummary.from_bytes(codes.files.get(_summary_path(level, shard)))
        merged = part if merged is None else merged.merge(part)
    assert merged is not None  # a plan has at least one row
    return merged


def _summary_path(level: str, shard: int) -> str:
    return f"summaries/{level}/{shard}.safetensors"
