"""Selection worlds of vectors: every variable known, data seen only where the top selects.

Level 1 holds correlated parts; each whole of level ``l + 1`` is an effect of 2–5 variables of level
``l`` (see :mod:`compute.worlds.structure`); rows are kept by rejection on the top level, so that
``codes`` follow ``P(V_1, …, V_L | S = 1)``. Activations are noisy mixtures of the codes along unit
directions, overcomplete when a level has more variables than dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from compute.worlds.structure import GATES, Gate, Kind, Whole, adjacency, draw_whole

CodeStyle = Literal["zero-inflated", "binary", "continuous"]
Correlations = Literal["clusters", "chain", "factors"]
Mixing = Literal["linear", "nonlinear"]

_PILOT_ROWS = 4096
_MOST_BLOCK_ROWS = 16384
_DRAWS_PER_WHOLE = 200
# A world whose selection keeps fewer than one row in this many is refused rather than waited for.
_MOST_REJECTIONS = 2000
# How often a part of a common-cause whole follows its active cause.
_FOLLOW = 0.85


@dataclass(frozen=True, slots=True)
class VectorSample:
    """Rows of a :class:`VectorWorld`; row r is the same sample in every array.

    Attributes
    ----------
    activations
        One (n, dim) float32 array per level, lowest first.
    codes
        One (n, size_l) float32 array of true, non-negative values per level.
    edges
        One (size_l, size_{l+1}) bool array of true edges per pair of adjacent levels.
    environment
        (n,) int array: the environment of each row (all 0 in a world of one environment).
    """

    activations: list[NDArray[np.float32]]
    codes: list[NDArray[np.float32]]
    edges: list[NDArray[np.bool_]]
    environment: NDArray[np.int64]


@dataclass(frozen=True)
class VectorWorld:
    """A selection world of continuous variables; make one with :meth:`SelectionWorld.vectors`.

    Parameters
    ----------
    sizes
        Variables per level, lowest first; at least two levels.
    dim
        Dimension of the activations of every level.
    seed
        Fixes the structure and the directions, and with them the world.
    parts_per_whole
        Fewest and most parts of a whole (inclusive), at least 2.
    gates
        Which functions wholes are drawn from.
    density
        Mean probability that a part is active, in (0, 0.5].
    correlation
        Strength of the dependence among parts, in [0, 1): the squared loading on shared factors.
    correlations
        ``clusters``: one factor per eight parts; ``chain``: neighbours are alike, as in AR(1);
        ``factors``: five factors with random signs reach all parts.
    codes
        ``zero-inflated``: absent (0) or present with a log-normal strength of mean 1; ``binary``:
        0 or 1; ``continuous``: always present, soft-plus of a normal variable.
    noise
        Standard deviation of the noise on a whole's drive, where one part more or less moves the
        drive by about 1.
    selection
        Strength of selection in [0, 1]: 0 keeps every row, 1 only the selected ones; in between an
        unselected row is kept with probability ``1 - selection``.
    selected_fraction
        Share of all rows that the top level selects, in (0, 1].
    common_cause
        Share of level-2 wholes that *cause* their parts, in [0, 1].
    environments
        Number of environments; the rates of the parts shift from one to the next.
    variant_edges
        Share of level-2 selection wholes one of whose edges is severed in half the environments.
    mixing
        ``linear``: codes times unit directions; ``nonlinear``: that, warped by a fixed tanh layer.
    activation_noise
        Standard deviation of isotropic noise per activation coordinate.
    """

    sizes: tuple[int, ...] = (64, 24, 6)
    dim: int = 128
    seed: int = 0
    parts_per_whole: tuple[int, int] = (2, 5)
    gates: tuple[Gate, ...] = GATES
    density: float = 0.15
    correlation: float = 0.3
    correlations: Correlations = "clusters"
    code_style: CodeStyle = "zero-inflated"
    noise: float = 0.1
    selection: float = 1.0
    selected_fraction: float = 0.5
    common_cause: float = 0.0
    environments: int = 1
    variant_edges: float = 0.0
    mixing: Mixing = "linear"
    activation_noise: float = 0.02
    _loadings: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _rates: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _wholes: tuple[tuple[Whole, ...], ...] = field(init=False, repr=False, compare=False)
    _scales: tuple[NDArray[np.float64], ...] = field(init=False, repr=False, compare=False)
    _severed: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    _threshold: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        rng = np.random.default_rng([self.seed, 0])
        put = object.__setattr__
        put(self, "_loadings", _draw_loadings(rng, self.sizes[0], self.correlations))
        shifts = rng.lognormal(0.0, 0.4, (self.environments, self.sizes[0]))
        base = self.density * rng.uniform(0.5, 1.5, self.sizes[0])
        shifts[0] = 1.0
        put(self, "_rates", np.clip(base * shifts, 0.005, 0.6))
        self._draw_structure(rng)

    # -- what is true ------------------------------------------------------------------------

    @property
    def n_levels(self) -> int:
        """Number of levels."""
        return len(self.sizes)

    @property
    def wholes(self) -> tuple[tuple[Whole, ...], ...]:
        """The wholes of levels 2, 3, …, each with its parts, gate and kind."""
        return self._wholes

    @cached_property
    def edges(self) -> list[NDArray[np.bool_]]:
        """True edges, one (size_l, size_{l+1}) bool array per pair of adjacent levels."""
        return [adjacency(wholes, n) for wholes, n in zip(self._wholes, self.sizes)]

    @property
    def kinds(self) -> list[list[Kind]]:
        """``selection`` or ``common_cause`` for every whole of levels 2, 3, …."""
        return [[whole.kind for whole in level] for level in self._wholes]

    @cached_property
    def variant(self) -> NDArray[np.bool_]:
        """(size_1, size_2) bool array of the edges that differ between environments."""
        out = np.zeros(self.sizes[:2], dtype=np.bool_)
        for part, whole in self._severed:
            out[part, whole] = True
        return out

    @cached_property
    def directions(self) -> list[NDArray[np.float32]]:
        """Unit directions, one (size_l, dim) float32 array per level."""
        rng = np.random.default_rng([self.seed, 1])
        raw = [rng.standard_normal((size, self.dim)) for size in self.sizes]
        return [(r / np.linalg.norm(r, axis=1, keepdims=True)).astype(np.float32) for r in raw]

    # -- sampling ----------------------------------------------------------------------------

    def sample(self, n: int, seed: int = 0) -> VectorSample:
        """Draw ``n`` selected rows; the same ``n`` and ``seed`` give the same rows, bit for bit."""
        if n < 1:
            raise ValueError(f"n={n} asks for no rows; give a positive number of rows.")
        rng = np.random.default_rng([self.seed, 2, seed])
        kept: list[list[NDArray[np.float32]]] = []
        environments: list[NDArray[np.int64]] = []
        have = drawn = 0
        block = min(_MOST_BLOCK_ROWS, 256 + int(1.2 * n / self.selected_fraction))
        while have < n:
            environment = rng.integers(0, self.environments, block)
            levels = self._forward(rng, environment)
            keep = self._selected(rng, levels[-1])
            kept.append([level[keep].astype(np.float32) for level in levels])
            environments.append(environment[keep])
            have += int(keep.sum())
            drawn += block
            if drawn > _MOST_REJECTIONS * (have + block):
                raise ValueError(
                    f"selection={self.selection} with selected_fraction={self.selected_fraction} "
                    f"kept {have} of {drawn} rows; lower one or raise the other."
                )
        codes = [np.concatenate(blocks)[:n] for blocks in zip(*kept)]
        activations = [self._mix(rng, level, code) for level, code in enumerate(codes)]
        return VectorSample(activations, codes, self.edges, np.concatenate(environments)[:n])

    def _check(self) -> None:
        low, high = self.parts_per_whole
        if len(self.sizes) < 2 or min(self.sizes) < 2:
            raise ValueError(f"sizes={self.sizes} needs two or more levels of two or more each.")
        if not 2 <= low <= high <= min(self.sizes[:-1]):
            raise ValueError(
                f"parts_per_whole={self.parts_per_whole} must satisfy 2 <= fewest <= most <= "
                f"{min(self.sizes[:-1])}, the smallest level that has wholes above it."
            )
        for name, low_ok, high_ok in (
            ("density", 0.005, 0.5),
            ("correlation", 0.0, 0.99),
            ("selection", 0.0, 1.0),
            ("selected_fraction", 0.001, 1.0),
            ("common_cause", 0.0, 1.0),
            ("variant_edges", 0.0, 1.0),
            ("noise", 0.0, np.inf),
            ("activation_noise", 0.0, np.inf),
        ):
            value = getattr(self, name)
            if not low_ok <= value <= high_ok:
                raise ValueError(f"{name}={value} must lie between {low_ok} and {high_ok}.")
        for name, value, allowed in (
            ("code_style", self.code_style, get_args(CodeStyle)),
            ("correlations", self.correlations, get_args(Correlations)),
            ("mixing", self.mixing, get_args(Mixing)),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {allowed}.")
        unknown = set(self.gates) - set(GATES)
        if unknown or not self.gates:
            raise ValueError(f"gates={self.gates} must name one or more of {GATES}.")
        if self.environments < 1 or self.dim < 1:
            raise ValueError(
                f"environments={self.environments} and dim={self.dim} must both be positive."
            )
        if self.variant_edges > 0 and self.environments < 2:
            raise ValueError(
                f"variant_edges={self.variant_edges} needs environments >= 2 to vary across."
            )

    def _draw_structure(self, rng: np.random.Generator) -> None:
        """Draw wholes level by level, each checked on pilot rows to be neither idle nor constant.

        A part that never decides its whole is no cause one could find, so a draw in which some
        part matters in fewer than one in fifty of the whole's active rows is drawn again.
        """
        put = object.__setattr__
        put(self, "_severed", ())
        put(self, "_threshold", -np.inf)
        n_causes = round(self.common_cause * self.sizes[1])
        causes = self._draw_causes(rng, n_causes)
        put(self, "_wholes", (causes,))
        put(self, "_scales", (np.ones(n_causes),))
        environment = np.zeros(_PILOT_ROWS, dtype=np.int64)
        below = self._forward(rng, environment)[0]
        done: list[tuple[Whole, ...]] = []
        scales: list[NDArray[np.float64]] = []
        for level in range(1, self.n_levels):
            wholes = list(causes) if level == 1 else []
            scale = [1.0] * len(wholes)
            for j in range(len(wholes), self.sizes[level]):
                whole, typical = self._draw_selection(rng, below, self.gates[j % len(self.gates)])
                wholes.append(whole)
                scale.append(typical)
            done.append(tuple(wholes))
            scales.append(np.asarray(scale))
            put(self, "_wholes", tuple(done))
            put(self, "_scales", tuple(scales))
            below = self._forward(rng, environment)[level]
        put(self, "_threshold", float(np.quantile(_score(below), 1.0 - self.selected_fraction)))
        chosen = [j for j in range(n_causes, self.sizes[1]) if rng.random() < self.variant_edges]
        put(self, "_severed", tuple((int(rng.choice(done[0][j].parts)), j) for j in chosen))

    def _draw_causes(self, rng: np.random.Generator, count: int) -> tuple[Whole, ...]:
        low, high = self.parts_per_whole
        low = min(max(low, 3), high)
        free = rng.permutation(self.sizes[0])
        causes = []
        for _ in range(count):
            size = int(rng.integers(low, high + 1))
            if len(free) < size:
                raise ValueError(
                    f"common_cause={self.common_cause} needs more than the {self.sizes[0]} parts "
                    "there are, as such wholes share none; lower it or raise sizes[0]."
                )
            causes.append(draw_whole(rng, free[:size], "or", "common_cause"))
            free = free[size:]
        return tuple(causes)

    def _draw_selection(
        self, rng: np.random.Generator, below: NDArray[np.float64], gate: Gate
    ) -> tuple[Whole, float]:
        low, high = self.parts_per_whole
        n_parts = below.shape[1]
        least_rate = min(0.02, 0.25 * self.density)
        best: tuple[float, Whole, float] | None = None
        for _ in range(_DRAWS_PER_WHOLE):
            size = int(rng.integers(low, high + 1))
            whole = draw_whole(rng, _draw_neighbours(rng, n_parts, size), gate, "selection")
            values = below[:, list(whole.parts)]
            drive = whole.drive(values)
            on = drive > 0
            if not on.any():
                continue
            typical = float(drive[on].mean())
            rate = float(on.mean())
            matters = []
            for k in range(size):
                toggled = values.copy()
                toggled[:, k] = np.where(values[:, k] > 0.35, 0.0, 1.0)
                matters.append(np.mean((whole.drive(toggled) > 0) != on) / max(rate, 1e-9))
            # Rare wholes have too few active rows to learn from, common ones too few idle ones.
            quality = min(rate / least_rate, (1.0 - rate) / 0.3, min(matters) / 0.05)
            if best is None or quality > best[0]:
                best = (quality, whole, typical)
            if quality >= 1.0:
                break
        if best is None:
            raise ValueError(
                f"density={self.density} is too low: no drawn {gate!r} whole was ever active; "
                "raise density or correlation, or lower parts_per_whole."
            )
        return best[1], best[2]

    def _forward(
        self, rng: np.random.Generator, environment: NDArray[np.int64]
    ) -> list[NDArray[np.float64]]:
        """Draw every level for rows of the given environments, before selection."""
        n = len(environment)
        causes = {j: w for j, w in enumerate(self._wholes[0]) if w.kind == "common_cause"}
        parts = self._draw_parts(rng, environment)
        cause_values = {j: self._draw_cause(rng, n) for j in causes}
        for j, whole in causes.items():
            follow = rng.random((n, len(whole.parts))) < _FOLLOW
            effect = cause_values[j][:, None] * follow
            if self.code_style != "binary":
                effect = effect * rng.lognormal(-0.02, 0.2, effect.shape)
            columns = list(whole.parts)
            parts[:, columns] = np.maximum(parts[:, columns], effect)
        levels = [parts]
        for level, (wholes, scales) in enumerate(zip(self._wholes, self._scales)):
            out = np.empty((n, len(wholes)))
            for j, whole in enumerate(wholes):
                if whole.kind == "common_cause":
                    out[:, j] = cause_values[j]
                    continue
                seen = levels[-1][:, list(whole.parts)]
                if level == 0:
                    self._sever(rng, seen, j, whole, environment)
                drive = whole.drive(seen) + self.noise * rng.standard_normal(n)
                out[:, j] = self._respond(drive, scales[j])
            levels.append(out)
        return levels

    def _respond(self, drive: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
        if self.code_style == "binary":
            return (drive > 0).astype(np.float64)
        if self.code_style == "continuous":
            return np.asarray(np.logaddexp(0.0, 4.0 * drive) / (4.0 * scale))
        return np.asarray(np.maximum(drive, 0.0) / scale)

    def _draw_parts(
        self, rng: np.random.Generator, environment: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        n = len(environment)
        shared = rng.standard_normal((n, self._loadings.shape[1])) @ self._loadings.T
        own = rng.standard_normal((n, self.sizes[0]))
        latent = np.sqrt(self.correlation) * shared + np.sqrt(1.0 - self.correlation) * own
        threshold = ndtri(1.0 - self._rates)[environment]
        if self.code_style == "continuous":
            return np.asarray(np.logaddexp(0.0, 4.0 * (latent - threshold)) / 4.0)
        active = latent > threshold
        if self.code_style == "binary":
            return np.asarray(active, dtype=np.float64)
        return np.asarray(np.where(active, rng.lognormal(-0.045, 0.3, latent.shape), 0.0))

    def _draw_cause(self, rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        active = rng.random(n) < max(self.density, 0.1)
        if self.code_style == "binary":
            return active.astype(np.float64)
        return np.asarray(np.where(active, rng.lognormal(-0.045, 0.3, n), 0.0))

    def _sever(
        self,
        rng: np.random.Generator,
        seen: NDArray[np.float64],
        j: int,
        whole: Whole,
        environment: NDArray[np.int64],
    ) -> None:
        for part, severed_whole in self._severed:
            if severed_whole == j:
                column = whole.parts.index(part)
                rows = np.flatnonzero(environment >= (self.environments + 1) // 2)
                seen[rows, column] = seen[rng.permutation(rows), column]

    def _selected(self, rng: np.random.Generator, top: NDArray[np.float64]) -> NDArray[np.bool_]:
        spared = rng.random(len(top)) >= self.selection
        return (_score(top) >= self._threshold) | spared

    def _mix(
        self, rng: np.random.Generator, level: int, codes: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        x = codes @ self.directions[level]
        if self.mixing == "nonlinear":
            warp = np.random.default_rng([self.seed, 3, level]).standard_normal(
                (self.dim, self.dim), dtype=np.float32
            )
            x = x + 0.5 * np.tanh(x @ (2.0 * warp / np.sqrt(np.float32(self.dim))))
        noise = rng.standard_normal(x.shape, dtype=np.float32)
        return np.asarray(x + np.float32(self.activation_noise) * noise, dtype=np.float32)


def _score(top: NDArray[np.float64]) -> NDArray[np.float64]:
    # The tie-break keeps the selected share near its target when the top level is binary.
    capped = np.minimum(top, 2.0)
    return np.asarray(capped.sum(axis=1) + 1e-6 * capped[:, 0])


def _draw_loadings(
    rng: np.random.Generator, n_parts: int, correlations: Correlations
) -> NDArray[np.float64]:
    """Return (n_parts, n_factors) loadings with unit rows."""
    if correlations == "clusters":
        raw = np.zeros((n_parts, -(-n_parts // 8)))
        raw[np.arange(n_parts), np.arange(n_parts) // 8] = 1.0
    elif correlations == "chain":
        raw = np.zeros((n_parts, n_parts + 2))
        for offset in range(3):
            raw[np.arange(n_parts), np.arange(n_parts) + offset] = 1.0
    else:
        raw = rng.standard_normal((n_parts, 5))
    return np.asarray(raw / np.linalg.norm(raw, axis=1, keepdims=True))


def _draw_neighbours(rng: np.random.Generator, n_parts: int, size: int) -> NDArray[np.intp]:
    """Draw ``size`` distinct parts: half the time near one another, else from anywhere."""
    if rng.random() < 0.5:
        return np.asarray(rng.choice(n_parts, size, replace=False), dtype=np.intp)
    span = min(n_parts, 12)
    start = int(rng.integers(0, n_parts - span + 1))
    return np.asarray(start + rng.choice(span, size, replace=False), dtype=np.intp)
