"""Hierarchical selection models that are trained on batches, of any number of rows and concepts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import pad

from compute.dictionaries import Dictionary
from compute.dictionaries.architectures import Normalization
from compute.dictionaries.dictionary import SparseCodes
from compute.graphs import recover_edges
from compute.selection.continuous.checked_rows import aligned_rows, checked_rows
from compute.selection.continuous.coordinates import White
from compute.selection.continuous.encoders import train_reading
from compute.selection.continuous.logic_gates import FloatArray
from compute.selection.continuous.rows import ArrayRows, RowSource, StoredRows
from compute.selection.continuous.search import Codes
from compute.selection.continuous.starts import start_together
from compute.selection.continuous.streamed_training import LevelTraining, Phase, plain
from compute.selection.estimator import Estimator
from storage.locations import Location
from storage.sealing.sealed_checkpoints import SealedCheckpoints
from storage.tables.activations import ActivationSet

_BLOCK_ROWS = 4096
# Batches from which the linear reading is trained.
_READING_ROWS, _READING_STEPS = 2048, 300
# Batches of a generation at the least, and rows that it holds for each concept.
_FEWEST_BATCHES = 5
_ROWS_PER_CONCEPT = 64
# Rows from which edges are recovered.
_EDGE_ROWS = 20_000
_EDGE_CELLS = 30_000_000
# Fewest rows of which anything can be told.
_FEWEST_ROWS = 100
_STATE_FILE = "selection.safetensors"
# Times as long as a checkpoint takes, training goes on until the next.
_BETWEEN = 20.0


class StreamedSelectionModel(Estimator):
    """Concepts of all levels, as few as describe the rows, joined by sparse gates.

    Parameters
    ----------
    n_concepts : sequence of int
        Most concepts per level, lowest first. What the data do not need is dropped.
    k : number or sequence of numbers, optional
        Most active concepts per row, on average, for all levels or each. Left out, or None for a
        level, as many as shorten the description.
    seed : int
        Same seed and data, same model.
    coupled : bool
        False fits every level by itself: the ablation.
    batch_rows : int
        Rows that are seen at once.
    device : str
        Where to train.

    Attributes
    ----------
    dictionaries_ : list of Dictionary
        One per level: directions (n_concepts_l, d_l), and the best encoder of one linear layer.
    edges_, strengths_ : lists of (n_concepts_l, n_concepts_{l+1}) bool and float
        Part → whole edges between adjacent levels; see
        :class:`compute.graphs.result.EdgeRecovery` for the meaning of a strength.
    n_concepts_ : tuple of int
        Concepts per level that were needed.
    active_ : tuple of float
        Active concepts per row that were needed, on average.
    reading_loss_ : tuple of float
        Per level, by how much less of the variance the linear reading explains than the model's
        own codes.
    n_features_in_ : tuple of int
        Dimension of each level.
    whitening_ : list of (d_l, r_l) arrays
        ``directions @ whitening_[l]`` are in coordinates whitened on all rows, in which concepts of
        two fits to the same rows are to be compared: plain ones share what all activations share.
    steps_ : int
        Batches that were seen.

    Notes
    -----
    See ``compute/selection/continuous/README.md`` for objective, priors, inference and cost.

    Examples
    --------
    >>> from compute.worlds import SelectionWorld
    >>> rows = SelectionWorld.vectors(sizes=(12, 5), dim=16, seed=0).sample(2000)
    >>> model = StreamedSelectionModel(n_concepts=(12, 5)).fit(rows.activations)
    >>> model.transform(rows.activations)[1].shape[0]
    2000
    """

    dictionaries_: list[Dictionary]
    edges_: list[NDArray[np.bool_]]
    strengths_: list[NDArray[np.float64]]
    n_concepts_: tuple[int, ...]
    active_: tuple[float, ...]
    reading_loss_: tuple[float, ...]
    n_features_in_: tuple[int, ...]
    steps_: int

    def __init__(
        self,
        n_concepts: Sequence[int] = (64, 24, 6),
        k: float | Sequence[float | None] | None = None,
        seed: int = 0,
        coupled: bool = True,
        batch_rows: int = 4096,
        device: str = "cpu",
    ) -> None:
        self.n_concepts = n_concepts
        self.k = k
        self.seed = seed
        self.coupled = coupled
        self.batch_rows = batch_rows
        self.device = device

    def fit(
        self,
        levels: Sequence[ArrayLike | Tensor],
        y: None = None,
        progress: Callable[[int, Sequence[Phase]], None] | None = None,
        checkpoint: Location | None = None,
    ) -> Self:
        """Fit to activations, one (n, d_l) array per level, lowest first; rows are aligned.

        Parameters
        ----------
        levels : of arrays
        progress : told the steps taken and the phase of every level
        checkpoint : a folder from which a fit that is interrupted goes on; the same arrays and
            settings are given again

        Raises
        ------
        ValueError
            If levels differ in their rows or from ``n_concepts`` in number, there are too few rows,
            a value is not finite, a setting is out of range, or a level needs no concept.
        """
        rows = _checked(levels)
        self._settings(len(rows))
        source = ArrayRows(rows, self.seed)
        return self._fit(source, [x.shape[1] for x in rows], progress, checkpoint)

    def fit_stored(
        self,
        activations: ActivationSet,
        max_norm: Mapping[str, float] | None = None,
        progress: Callable[[int, Sequence[Phase]], None] | None = None,
        checkpoint: Location | None = None,
    ) -> Self:
        """Fit to the rows for training of a store, its levels lowest first; see :meth:`fit`.

        Rows above any norm of ``max_norm`` are left out. Memory does not grow with the rows.
        """
        self._settings(len(activations.levels))
        widths = [level.width for level in activations.plan.levels]
        source = StoredRows(activations, self.seed, max_norm)
        return self._fit(source, widths, progress, checkpoint)

    def encode(self, level: int, x: ArrayLike | Tensor) -> FloatArray:
        """Codes (n, n_concepts_[level - 1]) of activations (n, d) of one level, 1 the lowest.

        The level is seen by itself; :meth:`transform` informs every level by the one below.

        Raises
        ------
        ValueError
            If the model is not fitted, there is no such level, or x is not of its dimension.
        """
        fitted = self._fitted()
        if not 1 <= level <= len(fitted):
            raise ValueError(f"level is {level}; give 1 (the lowest) to {len(fitted)}.")
        own = fitted[level - 1]
        rows = checked_rows(level, x, self.n_features_in_[level - 1], own.white.mean.device)
        blocks = [
            own.concepts.infer(own.white.rows(part)).dense(len(own.concepts))
            for part in torch.split(rows, _BLOCK_ROWS)
        ]
        return self._in_units(level, torch.cat(blocks))

    def transform(self, levels: Sequence[ArrayLike | Tensor]) -> list[FloatArray]:
        """Codes of aligned activations of all levels, wholes informed by their parts.

        Raises
        ------
        ValueError
            If the model is not fitted, or levels are not as they were in :meth:`fit`.
        """
        rows, fitted = self._aligned(levels), self._levels
        found: list[list[Tensor]] = [[] for _ in fitted]
        for start in range(0, len(rows[0]), _BLOCK_ROWS):
            batch = [x[start : start + _BLOCK_ROWS] for x in rows]
            for own, codes, level in zip(found, self._encoded(batch), fitted, strict=True):
                own.append(codes.dense(len(level.concepts)))
        return [self._in_units(i, torch.cat(own)) for i, own in enumerate(found, start=1)]

    def transform_sparse(
        self, levels: Sequence[ArrayLike | Tensor], widths: Sequence[int]
    ) -> list[SparseCodes]:
        """The ``widths[l]`` strongest codes of each row and level, as :meth:`transform` finds them.

        Raises
        ------
        ValueError
            As :meth:`transform`.
        """
        found = []
        codes = self._encoded(self._aligned(levels))
        for own, size, width in zip(codes, self._sizes, widths, strict=True):
            values = own.values * size.to(own.values.device)[own.index]
            top = values.topk(min(width, values.shape[1]), dim=1)
            indices = own.index.gather(1, top.indices)
            # A row has fewer candidates than places where the level has few concepts.
            missing = (0, width - top.values.shape[1])
            found.append(SparseCodes(pad(indices, missing), pad(top.values, missing)))
        return found

    @property
    def whitening_(self) -> list[FloatArray]:
        """(d_l, r_l) per level: a direction times it lies in coordinates whitened on all rows."""
        return [level.white.into.cpu().numpy() for level in self._fitted()]

    def checkpoint(self) -> bytes:
        """Settings and state of a fit, finished or not, as one safetensors file."""
        state: dict[str, Tensor] = {}
        values = []
        for number, level in enumerate(self._levels):
            own, plain_values = level.state()
            state |= {f"{number}.{name}": t.detach().cpu().contiguous() for name, t in own.items()}
            values.append(plain_values)
        about = {"settings": self._described(), "levels": values, "steps": self.steps_}
        return save(state, metadata={"about": plain(about)})

    @classmethod
    def from_checkpoint(cls, data: bytes, device: str = "cpu") -> Self:
        """The model of :meth:`checkpoint`, for codes; what was read from it is not kept there."""
        about, state = _read_state(data)
        model = cls(**about["settings"] | {"device": device})
        model._settings(len(about["levels"]))
        model._levels = []
        for number, (width, k) in enumerate(zip(model._widths, model._active, strict=True)):
            fields = (state[f"{number}.white.{name}"].to(device) for name in White._fields)
            model._levels.append(LevelTraining(White(*fields), width, k, 0, 0, (1, 1)))
        model._restore(about, state)
        model.n_features_in_ = tuple(len(level.white.mean) for level in model._levels)
        model.n_concepts_ = tuple(len(level.concepts) for level in model._levels)
        return model

    def _fit(
        self,
        source: RowSource,
        widths: Sequence[int],
        progress: Callable[[int, Sequence[Phase]], None] | None,
        checkpoint: Location | None,
    ) -> Self:
        self.n_features_in_ = tuple(widths)
        self.__dict__.pop("_sizes", None)
        device = torch.device(self.device)
        size = min(self.batch_rows, source.n_rows)
        per_pass = max(1, source.n_rows // size)
        most = max(self._widths)
        generation = max(_FEWEST_BATCHES, min(per_pass, -(-_ROWS_PER_CONCEPT * most // size)))
        # What changes is forgotten within a generation, in memory of a pass if that is less.
        memory = min(generation, per_pass), per_pass
        self._levels = [
            LevelTraining(
                white.to(device), width, k, source.n_rows, self.seed * 101 + number, memory
            )
            for number, (white, width, k) in enumerate(
                zip(source.white(), self._widths, self._active, strict=True)
            )
        ]
        self.steps_ = 0
        kept = None if checkpoint is None else SealedCheckpoints(checkpoint)
        if kept is not None:
            self._go_on(kept)
        held_out = [x.to(device) for x in source.held_out()]
        stream = source.batches(size, self.steps_)
        seen: list[list[Codes]] = [[] for _ in self._levels]
        due = 0.0
        while not all(level.done for level in self._levels):
            turn = self.steps_ % generation
            judged = turn >= generation // 2
            below: tuple[Tensor, Tensor] | None = None
            batch = [
                level.white.rows(x.to(device))
                for level, x in zip(self._levels, next(stream), strict=True)
            ]
            start_together([level.start for level in self._levels], batch)
            for own, level, x in zip(seen, self._levels, batch, strict=True):
                codes = level.see(x, below, turn == 0, judged)
                below = codes.dense(len(level.concepts)), level.concepts.mean
                own.append(codes)
            self.steps_ += 1
            if self.steps_ % generation:
                continue
            self._turn(seen, held_out)
            seen = [[] for _ in self._levels]
            if progress is not None:
                progress(self.steps_, [level.phase for level in self._levels])
            if kept is not None and time.monotonic() >= due:
                began = time.monotonic()
                kept.save(self.steps_, {_STATE_FILE: self.checkpoint()})
                due = time.monotonic() + _BETWEEN * (time.monotonic() - began)
        self._read(held_out, source)
        return self

    def _turn(self, seen: list[list[Codes]], held_out: list[Tensor]) -> None:
        """The end of a generation, for all levels from the lowest up."""
        parts: Tensor | None = None
        left_below, n_below = torch.zeros(0, dtype=torch.int64), 0
        recent = _recent(seen)
        for i, (level, own) in enumerate(zip(self._levels, seen, strict=True)):
            before = len(level.concepts)
            left = level.turn()
            codes = torch.cat([one.dense(before) for one in own[-recent:]])[:, left]
            if level.links is not None and parts is not None:
                level.links.keep_parts(left_below, n_below)
            under = self._levels[i - 1] if i else None
            grown = under is not None and "growing" not in (level.phase, under.phase)
            if self.coupled and grown and not level.done and parts is not None and parts.shape[1]:
                assert under is not None
                level.join(parts, codes, under.concepts.mean)
            parts, left_below, n_below = codes, left, before
        below: tuple[Tensor, Tensor] | None = None
        ready = True
        for level, x in zip(self._levels, held_out, strict=True):
            if below is not None and not below[0].shape[1]:
                # The level below has ended with nothing.
                level.links = None
            codes_held = level.judge(level.white.rows(x), below, ready)
            ready = level.done or not self.coupled
            below = codes_held.dense(len(level.concepts)), level.concepts.mean

    def _aligned(self, levels: Sequence[ArrayLike | Tensor]) -> list[Tensor]:
        """Rows (n, d_l) of all levels, as many of each."""
        device = self._fitted()[0].white.mean.device
        return aligned_rows(levels, self.n_features_in_, device)

    def _encoded(self, batch: Sequence[Tensor]) -> list[Codes]:
        """Codes of rows (n, d_l) of all levels, each informed by the one below."""
        found: list[Codes] = []
        below: tuple[Tensor, Tensor] | None = None
        for level, x in zip(self._levels, batch, strict=True):
            found.append(level.concepts.infer(level.white.rows(x), level.prior(below)))
            below = found[-1].dense(len(level.concepts)), level.concepts.mean
        return found

    def _read(self, held_out: list[Tensor], source: RowSource) -> None:
        """What is published: dictionaries, edges, and what the linear reading loses."""
        for number, level in enumerate(self._levels, start=1):
            if len(level.concepts) == 0:
                raise ValueError(
                    f"level {number} has no concept that is worth its description in "
                    f"{source.n_rows} rows; leave it out, or give more rows."
                )
        rows: list[list[Tensor]] = [[] for _ in self._levels]
        count = 0
        for batch in source.batches(min(_BLOCK_ROWS, source.n_rows), 0):
            for own, x in zip(rows, batch, strict=True):
                own.append(x)
            count += len(batch[0])
            if count >= min(_EDGE_ROWS, source.n_rows - len(held_out[0])):
                break
        shown = [torch.cat(own)[:_EDGE_ROWS] for own in rows]
        codes = self.transform(shown)
        self.n_concepts_ = tuple(len(level.concepts) for level in self._levels)
        self.active_ = tuple(float((z > 0).sum(1).mean()) for z in codes)
        self.dictionaries_ = self._readings(source)
        lost = []
        for dictionary, x, z in zip(self.dictionaries_, shown, codes, strict=True):
            read = dictionary.decode(dictionary.encode(x)) - x
            rest = dictionary.decode(z) - x
            total = (x - x.mean(0)).square().sum()
            lost.append(float((read.square().sum() - rest.square().sum()) / total))
        self.reading_loss_ = tuple(lost)
        found = [recover_edges(a, b, self.seed) for a, b in pairwise(codes)]
        self.edges_ = [_dense(edges.adjacency) for edges in found]
        self.strengths_ = [_dense(edges.strength) for edges in found]

    def _readings(self, source: RowSource) -> list[Dictionary]:
        """A dictionary of every level whose encoder is one linear layer."""
        found = []
        size = min(_READING_ROWS, source.n_rows)
        for number, (level, active) in enumerate(zip(self._levels, self.active_, strict=True)):
            white, concepts = level.white, level.concepts
            batches = (
                white.rows(batch[number].to(white.mean.device)) for batch in source.batches(size, 0)
            )
            written = concepts.directions * concepts.noise.sqrt()
            normalization = Normalization(
                white.mean, white.mean.new_ones(()), white.into, white.back
            )
            k = max(1, min(len(concepts), round(active)))
            found.append(
                train_reading(
                    written / torch.linalg.vector_norm(written, dim=1, keepdim=True),
                    concepts.bias, batches, k, normalization, _READING_STEPS,
                )
            )  # fmt: skip
        return found

    def _go_on(self, kept: SealedCheckpoints) -> None:
        for _, files in kept.load():
            about, state = _read_state(files[_STATE_FILE])
            if about["settings"] != self._described():
                raise ValueError(
                    f"the checkpoint is of a fit with {about['settings']}, not "
                    f"{self._described()}: give the settings that it began with, or another place."
                )
            self._restore(about, state)
            return

    def _restore(self, about: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        device = torch.device(self.device)
        for number, (level, values) in enumerate(zip(self._levels, about["levels"], strict=True)):
            start = f"{number}."
            own = {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
            level.restore({name: t.to(device) for name, t in own.items()}, values)
        self.steps_ = about["steps"]

    def _described(self) -> dict[str, Any]:
        about = self.get_params() | {"device": "any"}
        return json.loads(json.dumps(about, default=list))  # type: ignore[no-any-return]

    def _settings(self, n_levels: int) -> None:
        self._widths = [int(width) for width in self.n_concepts]
        if len(self._widths) != n_levels:
            raise ValueError(
                f"n_concepts has {len(self._widths)} entries for {n_levels} levels; give one each."
            )
        if min(self._widths) < 1:
            raise ValueError(f"n_concepts is {self.n_concepts}; give at least 1 for each level.")
        given = self.k
        if given is None or isinstance(given, int | float):
            self._active = [given] * n_levels
        else:
            self._active = [None if k is None else float(k) for k in given]
        if len(self._active) != n_levels:
            raise ValueError(
                f"k has {len(self._active)} entries for {n_levels} levels; give one each."
            )
        if any(k is not None and not (k > 0 and math.isfinite(k)) for k in self._active):
            raise ValueError(f"k is {self.k}; give more than 0, or leave it out to have it found.")
        if self.batch_rows < _FEWEST_ROWS:
            raise ValueError(f"batch_rows is {self.batch_rows}; give at least {_FEWEST_ROWS}.")

    def _fitted(self) -> list[LevelTraining]:
        if not hasattr(self, "_levels"):
            raise ValueError("the model is not fitted; call fit first.")
        return self._levels

    @cached_property
    def _sizes(self) -> list[Tensor]:
        """By what codes (K,) of each level have to be multiplied to be of unit directions."""
        return [_lengths(level) for level in self._fitted()]

    def _in_units(self, level: int, codes: Tensor) -> FloatArray:
        """Codes of unit directions among activations."""
        return (codes.cpu() * self._sizes[level - 1]).numpy()


def _read_state(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["about"]), load(data)


def _recent(seen: list[list[Codes]]) -> int:
    """How many of the last batches edges are chosen from."""
    rows = len(seen[0][-1].values)
    widest = max([1, *(int(own[-1].index.max()) + 1 for own in seen if own[-1].index.numel())])
    return max(1, min(_EDGE_ROWS // rows, _EDGE_CELLS // (rows * widest)))


def _lengths(level: LevelTraining) -> Tensor:
    """Lengths (K,) of a level's directions among activations."""
    concepts = level.concepts
    written = (concepts.directions * concepts.noise.sqrt()) @ level.white.back
    lengths: Tensor = torch.linalg.vector_norm(written.cpu(), dim=1)
    return lengths


def _checked(levels: Sequence[ArrayLike | Tensor]) -> list[Tensor]:
    if len(levels) < 1:
        raise ValueError("levels is empty; give at least one array (n, d).")
    rows = [torch.as_tensor(np.asarray(x)).detach().to(torch.float32) for x in levels]
    for number, x in enumerate(rows, start=1):
        if x.ndim != 2 or x.shape[0] != len(rows[0]) or x.shape[1] < 1:
            raise ValueError(
                f"level {number} has shape {tuple(x.shape)}; give (n, d) with the n of level 1, "
                f"{len(rows[0])}."
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"level {number} holds NaN or infinite values; drop those rows.")
    if len(rows[0]) < _FEWEST_ROWS:
        raise ValueError(f"levels have {len(rows[0])} rows; give {_FEWEST_ROWS} or more.")
    return rows


def _dense(matrix: Any) -> NDArray[Any]:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)
