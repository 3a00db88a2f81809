"""Training of one level: concepts begin, are fitted, and leave, until nothing is gained any more.

Batches come in generations. In each, concepts see enough rows to be judged; at its end those that
are not worth their price leave, edges from the level below are chosen anew, and rows held out say
whether training goes on. A level *starts* from what sparse dictionaries of several seeds share,
*grows* (places that are free are taken by new concepts), is *trimmed* (down to what it needs, and
to what it may have), and *settles*.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from compute.selection.continuous.coding import SpikeAndSlab
from compute.selection.continuous.concepts import (
    Concepts,
    Statistics,
    learn,
    restored,
    tensors,
    turn_axes,
)
from compute.selection.continuous.coordinates import White
from compute.selection.continuous.links import Links, fit_links
from compute.selection.continuous.population import begin, price, remove, unneeded
from compute.selection.continuous.search import Codes
from compute.selection.continuous.starts import Starts

Phase = Literal["starting", "growing", "trimming", "settling", "done"]
PHASES: tuple[Phase, ...] = get_args(Phase)
# Places that new concepts may take, as a multiple of those that the start left open, and for the
# whole level at the least: with no more than there are, some merge two and never part again.
_ROOM, _LEAST_ROOM = 2.0, 64
# A phase ends when so many generations in turn gain less than this share of all that was gained.
_PATIENCE, _LEAST_GAIN = 2, 0.004
# By how much more than the bound may be active when training ends.
_MOST_OVER = 1.1
# A bound on active concepts is approached by so much a generation, on so many rows, to a part in
# 2^8 of how much that lowers odds. Beyond the last, nothing could be active.
_GENTLY, _BOUND_ROWS, _HALVINGS, _LEAST_THRIFT = 0.75, 1024, 8, -1e6
# Fewest generations of growth, and most of any phase.
_FEWEST, _MOST = 6, 40

# What of a level is no tensor.
_PLAIN = (
    "phase",
    "steps",
    "generation",
    "in_phase",
    "misses",
    "best",
    "nothing",
    "_bounded",
    "_started",
)


class LevelTraining:
    """One level on its way.

    Parameters
    ----------
    white : coordinates of the level
    n_concepts : most concepts that may stay
    k : most active concepts a row on average, if there is a bound
    n_rows : rows that there are
    seed : of the rows at which concepts begin
    memory : batches that are remembered while the level changes, and once it settles
    """

    def __init__(
        self,
        white: White,
        n_concepts: int,
        k: float | None,
        n_rows: int,
        seed: int,
        memory: tuple[int, int],
    ) -> None:
        self.white, self.n_concepts, self.k = white, n_concepts, k
        self.n_rows, self.seed, self.memory = n_rows, seed, memory
        device = white.mean.device
        self.r = white.into.shape[1]
        self.concepts = Concepts.none(self.r, device)
        self.statistics = Statistics.none(self.r, device)
        self.links: Links | None = None
        self.phase: Phase = "starting"
        self.start: Starts | None = Starts(n_concepts, self.r, seed, device)
        self.steps = self.generation = self.in_phase = self.misses = 0
        self.best = self.nothing = float("inf")
        self._gone, self._started, self._bounded = 0, 0, k is None

    @property
    def done(self) -> bool:
        """Whether training is finished."""
        return self.phase == "done"

    def prior(self, below: tuple[Tensor, Tensor] | None) -> SpikeAndSlab:
        """The prior of rows, given codes (n, P) below and mean strengths (P,) of those, or none."""
        if self.links is None or below is None:
            return self.concepts.slab
        slab = self.links.prior(*below)
        return slab._replace(log_odds=slab.log_odds + self.concepts.thrift)

    def see(
        self, x: Tensor, below: tuple[Tensor, Tensor] | None, first: bool, judged: bool
    ) -> Codes:
        """Learn from white rows (b, r), which the start has seen; the ``first`` of a generation may
        begin concepts."""
        if self.done:
            return self.concepts.infer(x, self.prior(below))
        if self.start is not None:
            if not (first and self.start.done):
                return self.concepts.infer(x)
            self._adopt(x)
        if first and self.phase == "growing":
            self._begin(x)
        prior = self.prior(below)
        codes = self.concepts.infer(x, prior, losses=judged)
        self.steps += 1
        memory = self.memory[1] if self.phase == "settling" else self.memory[0]
        if self.phase == "growing":
            # The last of a generation tells where coordinates are turned to.
            self._seen = replace(self.concepts), x, codes
        size = learn(self.concepts, self.statistics, x, codes, max(1 / self.steps, 1 / memory))
        if self.links is not None:
            self.links.rescale(size)
        return codes

    def turn(self) -> Tensor:
        """The end of a generation: concepts leave; returns those that are left."""
        every = torch.arange(len(self.concepts), device=self.white.mean.device)
        if self.done or self.start is not None:
            return every
        most = None if self.phase == "growing" else self.n_concepts
        fixed = torch.zeros(len(every), dtype=torch.float64, device=every.device)
        if self.links is not None:
            n_parts = int(self.links.parts.max()) + 1 if len(self.links.parts) else 1
            fixed += self.links.costs(self.n_rows, n_parts)
        gone = unneeded(self.concepts, self.statistics, self.n_rows, most, fixed)
        left = remove(self.concepts, self.statistics, gone) if len(gone) else every
        self.statistics.forget_losses()
        if len(gone):
            self.links = None
        self._gone = len(gone)
        if self.phase == "growing":
            self._turn_axes()
        return left

    def _turn_axes(self) -> None:
        """Let coordinates be the principal ones of what concepts leave: noise is independent there,
        whatever its covariance."""
        concepts, x, codes = self._seen
        left = concepts.residuals(x, codes) * concepts.noise.sqrt()
        left = (left - left.mean(0)).double()
        values, axes = torch.linalg.eigh(left.T @ left / len(left))
        axes, values = axes.float().contiguous(), values.clamp(min=0).float()
        size = turn_axes(self.concepts, self.statistics, axes, values)
        self.white = self.white.turned(axes)
        if self.links is not None:
            self.links.rescale(size)

    def join(self, parts: Tensor, concepts: Tensor, part_means: Tensor) -> None:
        """Choose edges anew, from codes (n, P) below and (n, K) of the level in the same rows."""
        self.links = fit_links(
            parts, concepts, part_means, self.concepts.slab, self.n_rows,
            self.seed + self.generation,
        )  # fmt: skip

    def judge(self, held_out: Tensor, below: tuple[Tensor, Tensor] | None, ready: bool) -> Codes:
        """Go on, to the next phase, or end: by what white rows (n, r) held out take to describe.

        A level does not end before it is ``ready``, the one below being finished.
        """
        prior = self.prior(below)
        codes = self.concepts.infer(held_out, prior)
        if self.done or self.start is not None:
            return codes
        self.generation += 1
        self.in_phase += 1
        length = float(self.concepts.length(held_out, codes, prior).mean())
        length += len(self.concepts) * price(self.r, self.n_rows) / self.n_rows
        if self.generation == 1:
            empty = Concepts.none(self.r, held_out.device)
            self.nothing = float(empty.length(held_out, empty.infer(held_out)).mean())
        gained = min(self.nothing, self.best) - length
        if self.k is not None:
            self._bound_active(codes, held_out, below)
        if gained > _LEAST_GAIN * max(self.nothing - length, 0.0):
            self.misses = 0
        else:
            self.misses += 1
        self.best = min(self.best, length)
        self._next_phase(ready)
        return codes if len(self.concepts) else self.concepts.infer(held_out)

    def _adopt(self, x: Tensor) -> None:
        """Take over what the dictionaries share, as it is in white rows (n, r)."""
        assert self.start is not None
        self.start.begin(self.concepts, self.statistics, x)
        self.start = None
        self._started = len(self.concepts)
        self._enter("growing")

    def _begin(self, x: Tensor) -> None:
        left_open = max(0, self.n_concepts - self._started)
        places = max(self._started + round(_ROOM * left_open), _LEAST_ROOM)
        room = places - len(self.concepts)
        if room <= 0:
            return
        left = self.concepts.residuals(x, self.concepts.infer(x))
        generator = torch.Generator().manual_seed(self.seed * 10_007 + self.generation)
        if begin(self.concepts, self.statistics, left, room, generator):
            self.links = None

    def _bound_active(self, codes: Codes, x: Tensor, below: tuple[Tensor, Tensor] | None) -> None:
        """Set by how much all odds are lowered, so that on average k are active in white rows
        (n, r), of which ``codes`` are those so far; step by step where many more are."""
        assert self.k is not None
        active = float((codes.values > 0).sum()) / max(len(codes.values), 1)
        self._bounded = active <= _MOST_OVER * self.k
        wanted = max(self.k, _GENTLY * active)
        x = x[:_BOUND_ROWS]
        if below is not None:
            below = below[0][:_BOUND_ROWS], below[1]

        def too_many(thrift: float) -> bool:
            self.concepts.thrift = torch.full_like(self.concepts.thrift, thrift)
            found = self.concepts.infer(x, self.prior(below)).values
            return float((found > 0).sum()) > wanted * len(x)

        if not too_many(0.0):
            return
        high, low = 0.0, -1.0
        # Where strengths are far above noise, it takes much to make concepts give way.
        while too_many(low) and low > _LEAST_THRIFT:
            high, low = low, 2 * low
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if too_many(middle) else (middle, high)
        self.concepts.thrift = torch.full_like(self.concepts.thrift, low)

    def _next_phase(self, ready: bool) -> None:
        still = (self.misses >= _PATIENCE and self._bounded) or self.in_phase >= _MOST
        if self.phase == "growing" and still and self.in_phase >= _FEWEST:
            self._enter("trimming")
        elif self.phase == "trimming" and not self._gone and len(self.concepts) <= self.n_concepts:
            self._enter("settling")
        elif self.phase == "settling" and still and ready:
            if self.best >= self.nothing:
                # What rows that were seen gain by is not there in those held out.
                everything = torch.arange(len(self.concepts))
                remove(self.concepts, self.statistics, everything)
                self.links = None
            self._enter("done")

    def _enter(self, phase: Phase) -> None:
        self.phase, self.in_phase, self.misses, self.best = phase, 0, 0, float("inf")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that decides how training goes on: tensors by name, and plain values."""
        state = tensors(self.concepts, self.statistics)
        state |= {f"white.{name}": t for name, t in self.white._asdict().items()}
        if self.links is not None:
            state |= {f"links.{f.name}": getattr(self.links, f.name) for f in fields(Links)}
        if self.start is not None:
            state |= {f"start.{name}": t for name, t in self.start.state().items()}
        return state, {name: getattr(self, name) for name in _PLAIN}

    def restore(self, state: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` told."""
        restored(self.concepts, state)
        restored(self.statistics, state)
        self.white = White(*(state[f"white.{name}"].clone() for name in White._fields))
        self.links = None
        if "links.parts" in state:
            self.links = Links(*(state[f"links.{f.name}"].clone() for f in fields(Links)))
        begun = {n.removeprefix("start."): t for n, t in state.items() if n.startswith("start.")}
        if self.start is not None:
            self.start.restore(begun)
        for name, value in values.items():
            setattr(self, name, value)
        if self.phase != "starting":
            self.start = None


def plain(values: Mapping[str, Any]) -> str:
    """Plain values as JSON, which keeps every float to the bit."""
    return json.dumps(values, sort_keys=True)
