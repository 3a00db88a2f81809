"""Faithfulness of the graph: what its circuits carry of the model's own output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compute.verification.bench import Bench

__all__ = ["Faithfulness", "Interval", "faithfulness"]

_RESAMPLES = 2000


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval over samples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Faithfulness:
    """What a graph's circuits carry (Marks et al. 2024, 2403.19647).

    Attributes
    ----------
    faithfulness : ``(m(C) − m(∅)) / (m(M) − m(∅))``: 1 when the circuit does all the model does.
    completeness : the same of all that the circuit leaves out; 0 when it misses nothing.
    kept : share of the active codes that belong to the circuit.
    """

    faithfulness: Interval
    completeness: Interval
    kept: float


def faithfulness(
    bench: Bench, graphs: Mapping[str, Mapping[int, Any]], *, seed: int = 0
) -> dict[str, Faithfulness]:
    """Ablate what lies outside, and inside, the circuits of graphs.

    The circuit of a row consists of the concepts of the highest level that are active in it and
    of all their ancestors in the graph. At every level below the highest, codes outside the
    circuit are set to their mean over the pool; what a dictionary does not explain is left in
    place, so that m(∅), all codes at their means, is what it alone would do.

    Parameters
    ----------
    bench : model and samples.
    graphs : by name, for each level but the highest the sparse bool edges ``(n_l, n_{l+1})``.

    Returns
    -------
    One result per graph; all are measured on the same samples and passes.

    Raises
    ------
    ValueError : there is only one level.
    """
    numbers = [level.level for level in bench.levels]
    if len(numbers) < 2:
        raise ValueError("faithfulness needs two levels: there is no edge between concepts")
    pool, lower = bench.pool, numbers[:-1]
    means = {
        number: torch.from_numpy(
            np.asarray(pool.codes[number][pool.kept].mean(axis=0)).ravel().astype(np.float32)
        ).to(bench.target.device)
        for number in lower
    }
    circuits = {name: _circuits(pool.codes, numbers, edges) for name, edges in graphs.items()}
    scores: dict[str, list[NDArray[np.float64]]] = {"all": [], "none": []}
    for batch in bench.batches():
        rows = (batch[:, None] * pool.n_positions + np.arange(pool.n_positions)).ravel()
        scores["all"].append(bench.score(batch, None))
        scores["none"].append(bench.score(batch, {n: _MeanOutside(means[n], None) for n in lower}))
        for name, circuit in circuits.items():
            inside = {n: circuit[n][rows] for n in lower}
            for kind, flip in (("in", False), ("out", True)):
                change = {n: _MeanOutside(means[n], inside[n], flip=flip) for n in lower}
                scores.setdefault(f"{kind} {name}", []).append(bench.score(batch, change))
    found = {name: np.concatenate(parts) for name, parts in scores.items()}
    result = {}
    for name, circuit in circuits.items():
        active = sum(int((pool.codes[n] > 0).sum()) for n in lower)
        kept = sum(int((pool.codes[n] > 0).multiply(circuit[n]).sum()) for n in lower)
        result[name] = Faithfulness(
            _ratio(found[f"in {name}"], found, seed),
            _ratio(found[f"out {name}"], found, seed),
            kept / max(1, active),
        )
    return result


class _MeanOutside:
    """Sets codes outside (or inside) the circuits of the rows to their means."""

    def __init__(self, means: Tensor, inside: Any, *, flip: bool = False) -> None:
        self._means, self._flip = means, flip
        self._inside = inside

    def __call__(self, codes: Tensor) -> Tensor:
        if self._inside is None:
            return self._means.expand_as(codes)
        stays = torch.from_numpy(self._inside.toarray()).to(codes.device)
        return torch.where(stays ^ self._flip, codes, self._means)


def _circuits(
    codes: Mapping[int, Any], numbers: list[int], edges: Mapping[int, Any]
) -> dict[int, Any]:
    """Level → sparse bool ``(rows, n)``: which concepts belong to each row's circuit."""
    inside = {numbers[-1]: (codes[numbers[-1]] > 0).tocsr()}
    for number, above in zip(numbers[-2::-1], numbers[:0:-1], strict=True):
        reach = inside[above].astype(np.float32) @ edges[number].T.astype(np.float32)
        inside[number] = (reach > 0).tocsr()
    return inside


def _ratio(
    score: NDArray[np.float64], found: Mapping[str, NDArray[np.float64]], seed: int
) -> Interval:
    rng = np.random.default_rng(seed)
    n = len(score)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n

    def of(average: Any) -> Any:
        empty = average(found["none"])
        return (average(score) - empty) / (average(found["all"]) - empty)

    drawn = of(lambda values: weights @ values)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(float(of(np.mean)), float(low), float(high))
