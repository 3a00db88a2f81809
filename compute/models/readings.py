"""How two readings of the same rows are held together."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["alike", "refuse_apart", "tolerance"]


def tolerance(dtype: torch.dtype) -> float:
    """Return how far apart two readings of a row may lie, as a share of its norm.

    What is read wrongly is off by its own size; rounding is off by a few units of the last place
    in each layer.
    """
    return max(1e-3, 16 * torch.finfo(dtype).eps)


def refuse_apart(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Return the largest distance between two readings of the same rows, as a share of the norm.

    Parameters
    ----------
    found, expected : level → ``(n, d)``. A row shorter than the level's median counts as that long.

    Raises
    ------
    ValueError : they lie further apart than rounding explains; the level is named.
    """
    worst = 0.0
    for name, other in expected.items():
        if not len(other):
            continue
        norms = other.float().norm(dim=1)
        long = norms.clamp_min(norms.median()).clamp_min(torch.finfo(torch.float32).tiny)
        share = (found[name].float() - other.float()).norm(dim=1) / long
        most = float(share.nan_to_num(nan=torch.inf).max())
        if most > tolerance(other.dtype):
            raise ValueError(f"rows of level {name!r} differ by {most:.1%} of their norm")
        worst = max(worst, most)
    return worst


def alike(share: float, whose: str = "a row's") -> str:
    """Say how alike two readings are that lie apart by at most this share of their norm."""
    return f"alike within {share:.1e} of {whose} norm" if share else "alike to the last bit"
