"""How far edits push activations away from the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compute.dictionaries import Dictionary

__all__ = ["Distance", "DistanceMeter"]


@dataclass(frozen=True, slots=True)
class Distance:
    """The edited activations of one level against what they were.

    Attributes
    ----------
    rows : rows that went by while an edit was due.
    touched : rows that were changed.
    shift : mean over touched rows of ‖change‖ / ‖x − b_dec‖; 0.1 is a tenth of the activation.
    largest_shift : the largest of them.
    norm_ratio : mean of ‖x + change‖ / ‖x‖; 1 on the shell where the data lie.
    beyond : share of the changed codes that exceed the concept's largest observed code, or are
        negative; NaN where no range is known.
    unexplained_before, unexplained_after : share of the variance about ``b_dec`` that the
        dictionary leaves unexplained, summed over touched rows; an edit that leaves the data raises
        it. NaN unless asked for: it takes a full encoding.
    """

    rows: int = 0
    touched: int = 0
    shift: float = 0.0
    largest_shift: float = 0.0
    norm_ratio: float = 1.0
    beyond: float = float("nan")
    unexplained_before: float = float("nan")
    unexplained_after: float = float("nan")


class DistanceMeter:
    """Sums up `Distance` over forward passes.

    Parameters
    ----------
    dictionary : of the level.
    largest : ``(m,)`` largest observed codes of the edited concepts, NaN where unknown.
    residual : measure the unexplained share, too.
    """

    def __init__(self, dictionary: Dictionary, largest: Tensor, *, residual: bool) -> None:
        self._dictionary = dictionary
        self._largest = largest
        self._residual = residual
        self._rows = self._touched = self._changed = 0
        self._sums = torch.zeros(7, dtype=torch.float64)
        self._top = 0.0

    def saw(self, rows: int) -> None:
        """Count rows that went by."""
        self._rows += rows

    def took(self, x: Tensor, delta: Tensor, edited: Tensor, codes: Tensor) -> None:
        """Add touched rows: ``x`` and ``delta (r, d)``, codes after and before ``(r, m)``."""
        norm = torch.linalg.vector_norm
        centre = self._dictionary.b_dec
        shift = norm(delta, dim=1) / norm(x - centre, dim=1).clamp_min(1e-12)
        after = x + delta
        ratio = norm(after, dim=1) / norm(x, dim=1).clamp_min(1e-12)
        changed = edited != codes
        beyond = changed & ((edited > self._largest * (1 + 1e-6)) | (edited < 0))
        self._touched += len(x)
        self._changed += int((changed & self._largest.isfinite()).sum())
        sums = [shift.sum(), ratio.sum(), beyond.sum()]
        if self._residual:
            for rows in (x, after):
                sums += [self._left(rows), (rows - centre).square().sum()]
        else:
            sums += [torch.zeros(())] * 4
        self._sums += torch.stack([s.double().cpu() for s in sums])
        self._top = max(self._top, float(shift.max()))

    @property
    def distance(self) -> Distance:
        """What was measured so far."""
        if not self._touched:
            return Distance(rows=self._rows)
        shift, ratio, beyond, left, variance, left_after, variance_after = self._sums.tolist()
        nan = float("nan")
        return Distance(
            rows=self._rows,
            touched=self._touched,
            shift=shift / self._touched,
            largest_shift=self._top,
            norm_ratio=ratio / self._touched,
            beyond=beyond / self._changed if self._changed else nan,
            unexplained_before=left / variance if self._residual and variance else nan,
            unexplained_after=left_after / variance_after
            if self._residual and variance_after
            else nan,
        )

    def _left(self, rows: Tensor) -> Tensor:
        return (rows - self._dictionary(rows)).square().sum()
