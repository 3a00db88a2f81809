"""How good a dictionary is: streaming evaluation, and agreement of directions."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from compute.dictionaries.dictionary import Dictionary


@dataclass(frozen=True)
class Evaluation:
    """What a dictionary does on rows it may not have seen.

    Attributes
    ----------
    n_rows
        Rows evaluated.
    explained_variance
        ``1 - sum ||x - x̂||² / sum ||x - mean||²`` with the mean of all rows; the two sums are
        accumulated apart, so the value does not depend on how the rows were batched.
    l0
        Active concepts per row, on average.
    dead_share
        Share of concepts that were never active.
    frequencies, maxima
        (n_concepts,) share of rows in which each concept is active, and its largest code.
    """

    n_rows: int
    explained_variance: float
    l0: float
    dead_share: float
    frequencies: NDArray[np.float64]
    maxima: NDArray[np.float32]

    def summary(self) -> dict[str, float]:
        """The scalars, for a report."""
        return {
            "n_rows": self.n_rows,
            "explained_variance": self.explained_variance,
            "l0": self.l0,
            "dead_share": self.dead_share,
        }


class Evaluator:
    """Accumulates an :class:`Evaluation` over batches; its memory does not grow with the rows."""

    def __init__(self, dictionary: Dictionary) -> None:
        n, d = dictionary.n_concepts, dictionary.d
        self._dictionary = dictionary
        self._n_rows = 0
        self._error = 0.0
        # Sums around the decoder bias, which is close to the mean: raw second moments of
        # activations far from zero would cancel to nothing.
        self._sum = torch.zeros(d, dtype=torch.float64)
        self._squares = 0.0
        self._fired = torch.zeros(n, dtype=torch.int64)
        self._maxima = torch.zeros(n)

    @torch.no_grad()
    def update(self, batch: ArrayLike | Tensor, codes: ArrayLike | Tensor | None = None) -> None:
        """Add rows (..., d), with codes (..., n_concepts) if others than its own are evaluated."""
        dictionary = self._dictionary
        rows = torch.as_tensor(batch, dtype=torch.float32, device=dictionary.device)
        rows = rows.reshape(-1, rows.shape[-1])
        if codes is None:
            codes = dictionary.encode(rows)
        codes = torch.as_tensor(codes, device=dictionary.device).reshape(len(rows), -1)
        centred = rows - dictionary.b_dec
        self._error += float((dictionary.decode(codes) - rows).double().square().sum())
        self._sum += centred.double().sum(0).cpu()
        self._squares += float(centred.double().square().sum())
        self._fired += (codes > 0).sum(0).cpu()
        self._maxima = torch.maximum(self._maxima, codes.amax(0).cpu())
        self._n_rows += len(rows)

    def result(self) -> Evaluation:
        """The evaluation of all rows so far.

        Raises
        ------
        ValueError
            If there was none.
        """
        if self._n_rows == 0:
            raise ValueError("no row was evaluated: give at least one batch")
        total = self._squares - float(self._sum.square().sum()) / self._n_rows
        return Evaluation(
            n_rows=self._n_rows,
            explained_variance=1 - self._error / total if total > 0 else float("nan"),
            l0=float(self._fired.sum()) / self._n_rows,
            dead_share=float((self._fired == 0).double().mean()),
            frequencies=(self._fired.double() / self._n_rows).numpy(),
            maxima=self._maxima.numpy(),
        )


def evaluate(dictionary: Dictionary, batches: Iterable[ArrayLike | Tensor]) -> Evaluation:
    """Evaluate a dictionary on a stream of batches (..., d).

    Raises
    ------
    ValueError
        If the stream is empty.
    """
    evaluator = Evaluator(dictionary)
    for batch in batches:
        evaluator.update(batch)
    return evaluator.result()


@dataclass(frozen=True)
class Matching:
    """A one-to-one assignment between two sets of directions.

    ``first`` and ``second`` (m,) are the matched indices, ``cosines`` (m,) their absolute cosines;
    m is the size of the smaller set.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cosines: NDArray[np.float64]

    @property
    def mcc(self) -> float:
        """Mean absolute cosine of the matched pairs."""
        return float(self.cosines.mean())


def match_directions(first: ArrayLike | Tensor, second: ArrayLike | Tensor) -> Matching:
    """Match rows of (n, d) with rows of (m, d) so that the sum of |cosine| is largest.

    Solved exactly (Hungarian method). Rows need not have unit norm; a zero row has cosine 0.

    Raises
    ------
    ValueError
        If the two do not have the same dimension.
    """
    a, b = _unit(first), _unit(second)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"directions have shapes {a.shape} and {b.shape}: pass (n, d) and (m, d) of one d"
        )
    cosines = np.abs(a @ b.T)
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return Matching(rows, columns, cosines[rows, columns])


def mean_correlation(first: ArrayLike | Tensor, second: ArrayLike | Tensor) -> float:
    """MCC: mean |cosine| of directions (n, d) and (m, d) under the best one-to-one matching."""
    return match_directions(first, second).mcc


def recurrence(
    directions: ArrayLike | Tensor, others: Iterable[ArrayLike | Tensor]
) -> NDArray[np.float64]:
    """Mean |cosine| (n,) of each of the directions (n, d) with its match in each other set.

    One that is left without a match, since another set is smaller, counts 0 there.
    """
    first = _unit(directions)
    found = np.zeros((0, len(first)))
    for other in others:
        matching = match_directions(first, other)
        own = np.zeros(len(first))
        own[matching.first] = matching.cosines
        found = np.vstack([found, own])
    again: NDArray[np.float64] = found.mean(0)
    return again


def consistency(dictionaries: Iterable[Dictionary | ArrayLike | Tensor]) -> float:
    """Mean pairwise MCC of dictionaries, or of their directions (n, d).

    Raises
    ------
    ValueError
        If there are fewer than two.
    """
    directions = [d.directions if isinstance(d, Dictionary) else d for d in dictionaries]
    if len(directions) < 2:
        raise ValueError(f"{len(directions)} dictionaries have no pair: give at least two")
    pairs = [(a, b) for i, a in enumerate(directions) for b in directions[:i]]
    return float(np.mean([mean_correlation(a, b) for a, b in pairs]))


def _unit(directions: ArrayLike | Tensor) -> NDArray[np.float64]:
    array = directions.detach().cpu().numpy() if isinstance(directions, Tensor) else directions
    rows = np.asarray(array, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
