"""Which concepts stay, and where new ones begin: the description length decides.

A concept is described by its direction, frequency, strength and spread, half the logarithm of the
number of rows for each number (Schwarz 1978). It stays if rows and codes would take more without
it, others standing in for it, than that. New ones begin at what rows are left with.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import nnls
from torch import Tensor

from compute.selection.continuous.concepts import Concepts, Statistics

# Concepts whose directions are more alike may stand in for one another, so only one goes at a time.
_ALIKE = 0.3
# Directions more alike than this are of one concept. Codes that are not normal would make two
# of it, one for the weak and one for the strong, and both would pay.
_SAME = 0.95
# A sum of so many others is these: where wholes often meet, one for their meeting would pay too.
_SUMMANDS = 3
_LEAST_SUM = 0.3
# Share of the concepts that may go at once where none has to.
_MOST_AT_ONCE = 0.25
# Share that goes at once where there are too many, all worth their price.
_SURPLUS_AT_ONCE = 0.1
# A row's chance to start a concept grows with what it is left with, up to this many times the mean.
_MOST_CHANCE = 4.0
# Concepts that a row of new ones is thought to hold, and the most frequent that one may be.
_NEW_ACTIVE = 4.0
_NEW_SHARE = 0.05


def price(r: int, n_rows: int) -> float:
    """What a concept of r coordinates takes to describe, in nats."""
    return 0.5 * (r + 3) * math.log(n_rows)


def unneeded(
    concepts: Concepts, statistics: Statistics, n_rows: int, most: int | None, fixed: Tensor
) -> Tensor:
    """Concepts that go, those that are worth least first. Of two of one direction one always does,
    and so does a sum of others.

    Without ``most``, all that are not worth their price but those that others among them could
    have stood in for; with it, at most a quarter at once, and as many as it takes to come down to
    so many in the end. ``fixed`` (K,) is what each concept's edges take to describe.
    """
    k = len(concepts)
    if k == 0 or float(statistics.loss_rows) == 0:
        return torch.zeros(0, dtype=torch.int64)
    worth = statistics.losses * (n_rows / statistics.loss_rows) - fixed
    worth = worth - price(concepts.directions.shape[1], n_rows)
    order = worth.argsort(stable=True).tolist()
    poor = int((worth < 0).sum())
    surplus = 0 if most is None else max(0, k - most)
    count = poor
    if surplus > poor:
        count = min(surplus, max(poor, math.ceil(_SURPLUS_AT_ONCE * k)))
    if most is not None:
        count = min(count, math.ceil(_MOST_AT_ONCE * k))
    gone: list[int] = []
    left = torch.ones(k, dtype=torch.bool)
    spent = 0
    for place, j in enumerate(order):
        likeness = (concepts.directions @ concepts.directions[j]).abs().cpu()
        double = _is_sum(concepts.directions, j, left)
        poorest = place < max(poor, count) and spent < count
        if double or (poorest and _most(likeness[gone]) <= _ALIKE):
            gone.append(j)
            left[j] = False
            spent += not double
    return torch.tensor(gone, dtype=torch.int64)


def _is_sum(directions: Tensor, j: int, left: Tensor) -> bool:
    """Whether a direction is another one, or the sum of two or three others that are left."""
    likeness = (directions @ directions[j]).cpu()
    likeness[j] = -1.0
    likeness[~left] = -1.0
    count = min(_SUMMANDS, len(likeness))
    top = likeness.topk(count)
    # A quick way out: a sum has a part in each of its summands.
    if count == 0 or float(top.values.clamp(min=0).square().sum()) < _LEAST_SUM:
        return False
    others = directions[top.indices.to(directions.device)].double().cpu().numpy()
    rest = nnls(others.T, directions[j].double().cpu().numpy())[1]
    return bool(rest**2 < 1 - _SAME**2)


def _most(likeness: Tensor) -> float:
    return float(likeness.max()) if len(likeness) else 0.0


def remove(concepts: Concepts, statistics: Statistics, gone: Tensor) -> Tensor:
    """Take concepts out; returns those that are left."""
    kept = torch.ones(len(concepts), dtype=torch.bool, device=concepts.noise.device)
    kept[gone] = False
    left = kept.nonzero()[:, 0]
    concepts.keep(left)
    statistics.keep(left)
    return left


def begin(
    concepts: Concepts, statistics: Statistics, left: Tensor, count: int, generator: torch.Generator
) -> int:
    """Begin ``count`` concepts at what rows are left with, (n, r) in the metric of the noise.

    Rows that are left with more than noise are drawn, the more it is the likelier. Returns how
    many began.
    """
    excess = (left.square().sum(1) - left.shape[1]).clamp(min=0).double().cpu()
    excess = excess.clamp(max=_MOST_CHANCE * float(excess.mean()))
    count = min(count, int((excess > 0).sum()))
    if count == 0:
        return 0
    rows = torch.multinomial(excess, count, generator=generator)
    share = min(_NEW_SHARE, _NEW_ACTIVE / (len(concepts) + count))
    concepts.add(left[rows.to(left.device)], math.log(share / (1 - share)))
    statistics.add(count)
    return count
