"""Activations as they are given to a fitted model, checked against what it was fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["aligned_rows", "checked_rows"]


def checked_rows(
    level: int, x: ArrayLike | Tensor, width: int, device: torch.device | None = None
) -> Tensor:
    """Activations of one level as a float32 tensor (n, ``width``), on a device if one is given.

    Raises
    ------
    ValueError
        If they are not of that shape.
    """
    rows = torch.as_tensor(x).detach().to(device, torch.float32)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"x has shape {tuple(rows.shape)}; level {level} needs (n, {width}).")
    return rows


def aligned_rows(
    levels: Sequence[ArrayLike | Tensor],
    widths: Sequence[int],
    device: torch.device | None = None,
) -> list[Tensor]:
    """Activations of all levels, lowest first, as many rows of each.

    Raises
    ------
    ValueError
        If there are more or fewer levels than ``widths``, one is of another width, or rows differ
        in number.
    """
    if len(levels) != len(widths):
        raise ValueError(f"levels holds {len(levels)} arrays; give one for each {len(widths)}.")
    rows = [
        checked_rows(number, x, width, device)
        for number, (x, width) in enumerate(zip(levels, widths, strict=True), start=1)
    ]
    if len({len(x) for x in rows}) > 1:
        raise ValueError(f"levels hold {[len(x) for x in rows]} rows; give aligned rows.")
    return rows
