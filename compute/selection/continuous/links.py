"""What the level below says of a level's concepts: a sparse gate over few parents each.

``p(s_j | parents) = σ(b_j + Σ_i a_ij s_i + a'_ij t_i)`` with ``s_i`` whether part i is active and
``t_i`` how much stronger than usual, and the strength of an active concept linear in the same.
ANDs, k-of-n gates, sums over a threshold and vetoes are all of this form. Parents are taken one by
one, the one with the largest score first, as long as rows and codes save more than an edge takes to
describe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from compute.selection.continuous.coding import SpikeAndSlab

# Parts whose association with a concept is strongest are looked at; and most parents of one.
_CANDIDATES = 24
_MOST_PARENTS = 8
# Inactive rows that are kept for each active one, weighted for those left out.
_IDLE_ROWS = 4
# Prior variance of a gate's coefficients: where parts tell all, odds would grow without end.
_VARIANCE = 16.0
_NEWTON_STEPS = 6
# Log odds beyond which nothing is certain.
_MOST_ODDS = 9.0
_MOST_STRENGTH = 3.0

Floats = NDArray[np.float64]


@dataclass
class Links:
    """Edges from P parts to K concepts, by concept and parent.

    Attributes
    ----------
    parts, concepts : (e,) int64, the two ends of each edge, concepts ascending
    on, above : (e,) log odds that a parent adds by being active, and by its strength
    strength_on, strength_above : (e,) what it adds to the strength of the concept, in its units
    bias, mean, variance : (K,) log odds and strength without parents, variance given them
    """

    parts: Tensor
    concepts: Tensor
    on: Tensor
    above: Tensor
    strength_on: Tensor
    strength_above: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor

    def prior(self, below: Tensor, part_means: Tensor) -> SpikeAndSlab:
        """The prior in each row of ``below`` (n, P), codes of parts of mean strength (P,)."""
        shape = (len(self.bias), below.shape[1])
        at = torch.stack([self.concepts, self.parts])

        def applied(on: Tensor, above: Tensor) -> Tensor:
            both = torch.cat([on, above])
            places = torch.cat([at, at + at.new_tensor([[0], [shape[1]]])], 1)
            weights = torch.sparse_coo_tensor(
                places, both, (shape[0], 2 * shape[1]), check_invariants=False
            )
            found: Tensor = torch.sparse.mm(weights, features).T
            return found

        active, more = features_of(below, part_means)
        features = torch.cat([active, more], 1).T.contiguous()
        odds = self.bias + applied(self.on, self.above)
        mean = self.mean + applied(self.strength_on, self.strength_above)
        return SpikeAndSlab(odds.clamp(-_MOST_ODDS, _MOST_ODDS), mean.clamp(min=0.0), self.variance)

    def rescale(self, size: Tensor) -> None:
        """Codes of the concepts are now ``size`` (K,) times what they were."""
        own = size[self.concepts]
        self.strength_on, self.strength_above = self.strength_on * own, self.strength_above * own
        self.mean, self.variance = self.mean * size, self.variance * size.square()

    def keep_parts(self, left: Tensor, n_parts: int) -> None:
        """Only the parts ``left`` of ``n_parts`` stay, under new numbers."""
        number = left.new_full((n_parts,), -1)
        number[left] = torch.arange(len(left), device=left.device)
        kept = number[self.parts] >= 0
        self.parts, self.concepts = number[self.parts][kept], self.concepts[kept]
        for name in ("on", "above", "strength_on", "strength_above"):
            setattr(self, name, getattr(self, name)[kept])

    def costs(self, n_rows: int, n_parts: int) -> Tensor:
        """(K,) what the edges of each concept take to describe, in nats."""
        count = torch.bincount(self.concepts, minlength=len(self.bias))
        return count * edge_price(n_rows, n_parts)


def edge_price(n_rows: int, n_parts: int) -> float:
    """What an edge takes to describe: its parent's name and two numbers, in nats."""
    return math.log(n_rows) + math.log(n_parts)


def features_of(below: Tensor, part_means: Tensor) -> tuple[Tensor, Tensor]:
    """Whether parts are active, and how much stronger than usual, (n, P) both."""
    active = (below > 0).float()
    above = (below / part_means.clamp(min=1e-6)).clamp(max=_MOST_STRENGTH) - active
    return active, above


def fit_links(
    parts: Tensor, concepts: Tensor, part_means: Tensor, slab: SpikeAndSlab, n_rows: int, seed: int
) -> Links:
    """Links between codes (n, P) of parts and (n, K) of the level above.

    ``slab`` is the prior of concepts that are never active, ``n_rows`` what the n rows stand for.
    """
    n, n_parts = parts.shape
    rng = np.random.default_rng(seed)
    on, above = (f.numpy().astype(np.float32) for f in features_of(parts.cpu(), part_means.cpu()))
    codes = concepts.cpu().numpy()
    active = codes > 0
    joint = (csr_matrix(on).T @ csr_matrix(active.astype(np.float32))).toarray().astype(np.float64)
    association = _association(joint, on.sum(0), active.sum(0), n)
    scale = n_rows / n
    price = edge_price(n_rows, n_parts)
    ends: list[tuple[int | float, ...]] = []
    bias, mean, variance = (field.cpu().double().numpy().copy() for field in slab)
    for j in range(codes.shape[1]):
        rows = active[:, j].nonzero()[0]
        if len(rows) < 2:
            continue
        idle = (~active[:, j]).nonzero()[0]
        kept = min(len(idle), max(_IDLE_ROWS * len(rows), 256))
        idle = rng.choice(idle, kept, replace=False)
        both = np.concatenate([rows, idle])
        weight = np.ones(len(both))
        weight[len(rows) :] = (n - len(rows)) / max(kept, 1)
        few = np.argsort(-association[:, j], kind="stable")[:_CANDIDATES]
        few = few[association[few, j] * scale > price]
        gate = _gate(on[both][:, few], above[both][:, few], active[both, j], weight, scale, price)
        strengths = _strengths(
            on[rows][:, few[gate.chosen]], above[rows][:, few[gate.chosen]], codes[rows, j]
        )
        bias[j], mean[j], variance[j] = gate.bias, strengths.mean, strengths.variance
        for m, c in enumerate(gate.chosen):
            own = (gate.on[m], gate.above[m], strengths.on[m], strengths.above[m])
            ends.append((int(few[c]), j, *map(float, own)))
    columns = list(zip(*ends, strict=True)) if ends else [()] * 6
    device = concepts.device
    indices = [torch.tensor(c, dtype=torch.int64, device=device) for c in columns[:2]]
    numbers = [torch.tensor(c, dtype=torch.float32, device=device) for c in columns[2:]]
    rest = [torch.from_numpy(f).float().to(device) for f in (bias, mean, variance)]
    return Links(*indices, *numbers, *rest)


def _association(joint: Floats, parts: Floats, concepts: Floats, n: int) -> Floats:
    """(P, K) how much better activity is told with a part than without, in nats."""
    total = np.zeros_like(joint)
    own, other = parts[:, None], concepts[None]
    cells = (
        (joint, own, other),
        (own - joint, own, n - other),
        (other - joint, n - own, other),
        (n - own - other + joint, n - own, n - other),
    )
    for count, row, column in cells:
        expected = np.maximum(row * column / n, 1e-9)
        total += np.where(count > 0, count * np.log(np.maximum(count, 1e-9) / expected), 0.0)
    return total


class _Gate(NamedTuple):
    chosen: list[int]
    bias: float
    on: Floats
    above: Floats


def _gate(
    on: NDArray[np.float32],
    above: NDArray[np.float32],
    active: NDArray[np.bool_],
    weight: Floats,
    scale: float,
    price: float,
) -> _Gate:
    """Forward selection of parents among candidates (n, c) of a logistic gate."""
    y = active.astype(np.float64)
    chosen: list[int] = []
    design = np.ones((len(y), 1))
    rate = float(np.clip((weight * y).sum() / weight.sum(), 1e-6, 1 - 1e-6))
    beta = np.array([math.log(rate / (1 - rate))])
    value = _value(design, beta, y, weight)
    features = np.stack([on, above]).astype(np.float64)
    left = list(range(on.shape[1]))
    while left and len(chosen) < _MOST_PARENTS:
        expected = 1 / (1 + np.exp(-design @ beta))
        slope = weight * (y - expected)
        curve = weight * expected * (1 - expected)
        own = features[:, :, left]
        gradient = np.einsum("n,fnc->fc", slope, own)
        # What of a feature those chosen cannot say: its own curvature less theirs.
        inner = design.T @ (curve[:, None] * design) + np.eye(design.shape[1]) * 1e-9
        cross = np.einsum("np,n,fnc->fpc", design, curve, own)
        bent = np.einsum("n,fnc->fc", curve, own**2)
        bent -= np.einsum("fpc,fpc->fc", cross, np.linalg.solve(inner, cross))
        score = (gradient**2 / np.maximum(bent, 1e-9)).sum(0)
        best = left[int(score.argmax())]
        if 0.5 * float(score.max()) * scale < price:
            break
        wider = np.column_stack([design, features[0, :, best], features[1, :, best]])
        fitted = _newton(wider, np.append(beta, [0.0, 0.0]), y, weight)
        gained = _value(wider, fitted, y, weight)
        left.remove(best)
        if (gained - value) * scale < price:
            break
        chosen.append(best)
        design, beta, value = wider, fitted, gained
    return _Gate(chosen, float(beta[0]), beta[1::2], beta[2::2])


def _newton(design: Floats, beta: Floats, y: Floats, weight: Floats) -> Floats:
    ridge = np.eye(design.shape[1]) / _VARIANCE
    ridge[0, 0] = 1e-6
    for _ in range(_NEWTON_STEPS):
        expected = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        slope = design.T @ (weight * (y - expected)) - ridge @ beta
        bent = design.T @ ((weight * expected * (1 - expected))[:, None] * design) + ridge
        step = np.linalg.solve(bent, slope)
        beta = beta + step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
    return beta


def _value(design: Floats, beta: Floats, y: Floats, weight: Floats) -> float:
    odds = design @ beta
    return float((weight * (y * odds - np.logaddexp(0.0, odds))).sum())


class _Strengths(NamedTuple):
    on: Floats
    above: Floats
    mean: float
    variance: float


def _strengths(
    on: NDArray[np.float32], above: NDArray[np.float32], codes: NDArray[np.float32]
) -> _Strengths:
    """Ridge regression of the strengths (n,) of active codes on features (n, m) of parents."""
    z = codes.astype(np.float64)
    features = np.column_stack([on, above]).astype(np.float64)
    middle, average = features.mean(0), float(z.mean())
    centred = features - middle
    m = on.shape[1]
    ridge = float(z.var()) / max(average**2, 1e-12) + 1e-6
    gram = centred.T @ centred + ridge * np.eye(2 * m)
    slopes = np.linalg.solve(gram, centred.T @ (z - average)) if m else np.zeros(0)
    rest = z - average - centred @ slopes
    free = max(len(z) - 2 * m, 0.5 * len(z))
    variance = max(float(np.square(rest).sum()) / free, (0.05 * average) ** 2 + 1e-6)
    return _Strengths(slopes[:m], slopes[m:], average - float(middle @ slopes), variance)
