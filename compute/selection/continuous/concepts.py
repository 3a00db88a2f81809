"""Concepts of one level: the parameters of a positive spike-and-slab model, and their statistics.

``x = bias + Σ_j z_j w_j + noise`` in white coordinates, noise independent with one variance per
coordinate, ``z_j`` zero or normal. Statistics of codes forget, so that the estimates follow the
codes; directions are the least squares of what is remembered (online EM, Cappé and Moulines 2009).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import softplus

from compute.dictionaries.kernels import (
    Entries,
    decode_entries,
    sort_by_concept,
    sum_by_concept,
)
from compute.selection.continuous.ascent_on_candidates import add_products
from compute.selection.continuous.coding import SpikeAndSlab
from compute.selection.continuous.search import Codes, search

# Most concepts whose directions are solved for together; more take a step each by themselves.
EXACT = 2048
# Least variance of the noise, and least as a share of the geometric mean over coordinates. Where it
# is far below, concepts were fitted to that coordinate, and would be chosen by it alone.
_LEAST_NOISE = 0.01
_LEAST_NOISE_SHARE = 0.3
# Least spread of a slab as a share of its mean: none would forbid every other value for good.
_LEAST_SPREAD = 0.05
_RIDGE = 1e-6
# Active rows, among those remembered, before which a concept keeps what it has.
_LEAST_ACTIVE = 3.0


@dataclass
class Concepts:
    """K concepts of a level of r white coordinates.

    Attributes
    ----------
    directions : (K, r) unit rows in the metric of the noise
    bias, noise : (r,) mean of a row without concepts, and variances of the noise
    log_odds, mean, variance : (K,) of being active, and of the code when it is, in units of noise
    thrift : scalar added to all log odds, zero or less, if fewer are to be active
    """

    directions: Tensor
    bias: Tensor
    noise: Tensor
    log_odds: Tensor
    mean: Tensor
    variance: Tensor
    thrift: Tensor

    @classmethod
    def none(cls, r: int, device: torch.device) -> Concepts:
        """No concepts yet: all is noise, which is white."""
        zero = torch.zeros(0, device=device)
        return cls(
            zero.new_zeros(0, r), zero.new_zeros(r), zero.new_ones(r), zero, zero, zero,
            zero.new_zeros(()),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.directions)

    @property
    def slab(self) -> SpikeAndSlab:
        """The prior of every concept by itself."""
        return SpikeAndSlab(self.log_odds + self.thrift, self.mean, self.variance)

    def rows(self, x: Tensor) -> Tensor:
        """White rows (n, r), centred and in the metric of the noise."""
        return (x - self.bias) * self.noise.rsqrt()

    def infer(self, x: Tensor, prior: SpikeAndSlab | None = None, losses: bool = False) -> Codes:
        """Codes of white rows (n, r)."""
        return search(self.rows(x), self.directions, prior or self.slab, losses)

    def length(self, x: Tensor, codes: Codes, prior: SpikeAndSlab | None = None) -> Tensor:
        """What white rows (n, r) take to describe with their codes, in nats, (n,) float64."""
        odds = (prior or self.slab).log_odds.double()
        off = softplus(odds).sum(-1)
        squares = self.rows(x).double().square().sum(1)
        spread = (2 * torch.pi * self.noise.double()).log().sum()
        return off + 0.5 * (squares + spread) - codes.score

    def keep(self, kept: Tensor) -> None:
        """Keep some concepts only."""
        for name in ("directions", "log_odds", "mean", "variance"):
            setattr(self, name, getattr(self, name)[kept])

    def add(self, residuals: Tensor, odds: float) -> None:
        """Concepts that point to residuals (m, r) of rows, in the metric of the noise."""
        size = torch.linalg.vector_norm(residuals, dim=1)
        self.directions = torch.cat([self.directions, residuals / size[:, None]])
        self.log_odds = torch.cat([self.log_odds, torch.full_like(size, odds)])
        self.mean = torch.cat([self.mean, 0.5 * size])
        self.variance = torch.cat([self.variance, 0.25 * size.square()])

    def residuals(self, x: Tensor, codes: Codes) -> Tensor:
        """What codes leave of white rows (n, r), in the metric of the noise."""
        return self.rows(x) - decode_entries(entries_of(codes), self.directions)


@dataclass
class Statistics:
    """What is remembered of the codes of K concepts, as means over rows.

    Attributes
    ----------
    gram : (K + 1, K + 1) float64 second moments of codes and a constant; (0, 0) beyond ``EXACT``
    cross : (K + 1, r) float64 their products with white rows; (0, r) beyond ``EXACT``
    squares : (r,) float64 second moments of white rows
    sums : (3, K) float64 of being active, of the code and of its square
    weight : (K,) float64 how much of a full memory each concept has
    losses, loss_rows : (K,) and scalar, float64, sums since the last turn
    """

    gram: Tensor
    cross: Tensor
    squares: Tensor
    sums: Tensor
    weight: Tensor
    losses: Tensor
    loss_rows: Tensor

    @classmethod
    def none(cls, r: int, device: torch.device) -> Statistics:
        """Of no concepts."""
        zero = torch.zeros(0, dtype=torch.float64, device=device)
        return cls(
            zero.new_zeros(1, 1), zero.new_zeros(1, r), zero.new_zeros(r), zero.new_zeros(3, 0),
            zero, zero, zero.new_zeros(()),
        )  # fmt: skip

    def keep(self, kept: Tensor) -> None:
        """Keep some concepts only, and forget the losses."""
        if len(self.gram):
            last = kept.new_tensor([len(self.gram) - 1])
            both = torch.cat([kept, last])
            self.gram = self.gram[both][:, both].contiguous()
            self.cross = self.cross[both]
        self.sums = self.sums[:, kept].contiguous()
        self.weight = self.weight[kept]
        self.forget_losses()

    def add(self, count: int) -> None:
        """Room for new concepts, of which nothing is known."""
        k = self.sums.shape[1]
        total = k + count
        if total > EXACT:
            self.gram, self.cross = self.gram.new_zeros(0, 0), self.cross[:0]
        elif len(self.gram):
            old = torch.cat([torch.arange(k), torch.tensor([total])]).to(self.gram.device)
            gram = self.gram.new_zeros(total + 1, total + 1)
            gram[old[:, None], old[None]] = self.gram
            cross = self.cross.new_zeros(total + 1, self.cross.shape[1])
            cross[old] = self.cross
            self.gram, self.cross = gram, cross
        self.sums = torch.cat([self.sums, self.sums.new_zeros(3, count)], 1)
        self.weight = torch.cat([self.weight, self.weight.new_zeros(count)])
        self.forget_losses()

    def forget_losses(self) -> None:
        """Begin to measure anew what each concept is worth."""
        self.losses = torch.zeros_like(self.weight)
        self.loss_rows = torch.zeros_like(self.loss_rows)


def entries_of(codes: Codes) -> Entries:
    """The active entries of codes."""
    rows, slots = (codes.values > 0).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(codes.values))
    at = (rows, slots)
    return Entries(rows, codes.index[at], codes.values[at], counts.cumsum(0) - counts)


def learn(
    concepts: Concepts, statistics: Statistics, x: Tensor, codes: Codes, rate: float
) -> Tensor:
    """Remember white rows (n, r) and their codes, for a share ``rate``, and estimate anew.

    Returns by what (K,) the unit of each code has shrunk: codes found next are so many times those
    found before.
    """
    k, n = len(concepts), len(x)
    entries = entries_of(codes)
    own = statistics
    if len(own.gram):
        cross = torch.cat([_products(entries, x, k), x.sum(0, keepdim=True)]).double()
        gram, sums = _moments(codes, k)
        spread = concepts.variance.double() / (1 + concepts.variance.double())
        gram[:k, :k].diagonal().add_(sums[0] * spread)
        gram[:k, k] = gram[k, :k] = sums[1]
        gram[k, k] = n
        own.gram = torch.lerp(own.gram, gram / n, rate)
        own.cross = torch.lerp(own.cross, cross / n, rate)
        own.squares = torch.lerp(own.squares, x.double().square().mean(0), rate)
    else:
        sums = _sums(entries, k)
    own.sums = torch.lerp(own.sums, sums / n, rate)
    own.weight = torch.lerp(own.weight, torch.ones_like(own.weight), rate)
    if codes.losses is not None:
        own.losses = own.losses + codes.losses
        own.loss_rows = own.loss_rows + n
    known = own.sums[0] * n / rate >= _LEAST_ACTIVE
    before = concepts.directions * concepts.noise.sqrt()
    if len(own.gram):
        written = _solve(concepts, own)
    else:
        written = _step(concepts, own, x, entries, before, rate)
    written = torch.where(known[:, None], written, before)
    scaled = written * concepts.noise.rsqrt()
    size: Tensor = torch.linalg.vector_norm(scaled, dim=1).clamp(min=1e-6)
    concepts.directions = scaled / size[:, None]
    _rescale(own, size.double())
    _fit_slab(concepts, own, known, n / rate)
    return size


def turn_axes(concepts: Concepts, statistics: Statistics, axes: Tensor, noise: Tensor) -> Tensor:
    """Go over to coordinates with these ``axes`` (r, r), orthogonal columns, and this noise (r,).

    Returns by what (K,) the unit of each code has shrunk, as :func:`learn`.
    """
    written = (concepts.directions * concepts.noise.sqrt()) @ axes
    concepts.noise = bounded_noise(noise)
    concepts.bias = concepts.bias @ axes
    scaled = written * concepts.noise.rsqrt()
    size: Tensor = torch.linalg.vector_norm(scaled, dim=1).clamp(min=1e-6)
    concepts.directions = (scaled / size[:, None]).contiguous()
    concepts.mean = concepts.mean * size
    concepts.variance = concepts.variance * size.square()
    own = statistics
    own.cross = own.cross @ axes.double()
    own.squares = axes.double().square().T @ own.squares
    _rescale(own, size.double())
    return size


def _products(entries: Entries, x: Tensor, k: int) -> Tensor:
    """Sums of code times row, (k, r)."""
    if k == 0:
        return x.new_zeros(0, x.shape[1])
    by = sort_by_concept(entries.concepts, k)
    found: Tensor = sum_by_concept(by, entries.rows, entries.values, x)
    return found


def _sums(entries: Entries, k: int) -> Tensor:
    values = entries.values.double()
    out = values.new_zeros(3, k)
    for row, weights in zip(out, (torch.ones_like(values), values, values.square()), strict=True):
        row.index_add_(0, entries.concepts, weights)
    return out


def _moments(codes: Codes, k: int) -> tuple[Tensor, Tensor]:
    """Products of codes, (k + 1, k + 1) with the last row and column empty, and their sums."""
    device = codes.values.device
    gram = torch.zeros(k + 1, k + 1, dtype=torch.float64, device=device)
    sums = gram.new_zeros(3, k)
    if device.type == "cpu":
        add_products(codes.values.numpy(), codes.index.numpy(), gram.numpy(), sums.numpy())
    else:
        dense = codes.dense(k)
        gram[:k, :k] = (dense.T @ dense).double()
        powers = [(dense > 0).double(), dense.double(), dense.double().square()]
        sums = torch.stack([power.sum(0) for power in powers])
    return gram, sums


def _solve(concepts: Concepts, own: Statistics) -> Tensor:
    """Least squares of all that is remembered, for directions, bias and noise together."""
    k = len(concepts)
    ridge = _RIDGE * own.gram.diagonal().mean()
    eye = torch.eye(k + 1, dtype=torch.float64, device=own.gram.device)
    solution = torch.linalg.solve(own.gram + ridge * eye, own.cross)
    concepts.bias = solution[k].float()
    explained = 2 * (solution * own.cross).sum(0) - (solution * (own.gram @ solution)).sum(0)
    concepts.noise = bounded_noise(own.squares - explained).float().contiguous()
    # The solver's columns lie in one piece; sums over rows that do not end in other last bits.
    directions: Tensor = solution[:k].float().contiguous()
    return directions


def _step(
    concepts: Concepts, own: Statistics, x: Tensor, entries: Entries, before: Tensor, rate: float
) -> Tensor:
    """A step of every direction towards what its own rows leave, nothing of size K² beside."""
    left = x - concepts.bias - decode_entries(entries, before)
    slope = _products(entries, left, len(concepts)) / len(x)
    scale = own.sums[2].float().clamp(min=1e-12)
    concepts.bias = concepts.bias + rate * left.mean(0)
    noise = torch.lerp(concepts.noise, left.square().mean(0), rate)
    concepts.noise = bounded_noise(noise)
    return before + rate * slope / scale[:, None]


def bounded_noise(noise: Tensor) -> Tensor:
    """Variances (r,) that are no lower than concepts can be told by."""
    noise = noise.clamp(_LEAST_NOISE, 1.0)
    least = _LEAST_NOISE_SHARE * float(noise.double().log().mean().exp())
    return noise.clamp(min=least)


def _rescale(own: Statistics, size: Tensor) -> None:
    """Statistics of codes whose directions had the lengths ``size`` (K,), now 1."""
    if len(own.gram):
        both = torch.cat([size, size.new_ones(1)])
        own.gram = own.gram * both[:, None] * both
        own.cross = own.cross * both[:, None]
    own.sums = own.sums * torch.stack([torch.ones_like(size), size, size.square()])


def _fit_slab(concepts: Concepts, own: Statistics, known: Tensor, memory: float) -> None:
    count = own.sums[0].clamp(min=1e-12)
    mean = own.sums[1] / count
    spread = (own.sums[2] / count - mean.square()).clamp(min=0)
    spread = torch.maximum(spread, (_LEAST_SPREAD * mean).square() + 1e-6)
    share = own.sums[0] / own.weight.clamp(min=1e-12)
    share = ((share * memory + 0.5) / (memory + 1)).clamp(max=1 - 1e-6)
    concepts.log_odds = share.logit().float()
    concepts.mean = torch.where(known, mean.float(), concepts.mean)
    concepts.variance = torch.where(known, spread.float(), concepts.variance)


def tensors(*owners: Concepts | Statistics) -> dict[str, Tensor]:
    """All tensors of some owners by name."""
    return {f.name: getattr(owner, f.name) for owner in owners for f in fields(owner)}


def restored(owner: Concepts | Statistics, state: Mapping[str, Tensor]) -> None:
    """Put tensors of a state in their places."""
    for f in fields(owner):
        setattr(owner, f.name, state[f.name].clone())
