"""From a block's feature map to rows: patches of one common grid, row-major."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional


class Grid(NamedTuple):
    """Number of patches from top to bottom and from left to right."""

    height: int
    width: int


def feature_map(features: torch.Tensor, name: str, aspect: float = 1.0) -> torch.Tensor:
    """Return ``features`` as ``(b, d, h, w)``; tokens ``(b, h·w, d)`` are laid out row-major.

    Parameters
    ----------
    aspect : height over width of the image, to lay tokens out.

    Raises
    ------
    ValueError : the tensor has no spatial positions.
    """
    if features.ndim == 4:
        return features
    if features.ndim == 3:
        n_tokens = features.shape[1]
        height = round(math.sqrt(n_tokens * aspect))
        if height and n_tokens % height == 0:
            return features.transpose(1, 2).reshape(
                features.shape[0], features.shape[2], height, n_tokens // height
            )
    raise ValueError(
        f"hookpoint {name!r} gives {tuple(features.shape)}, which has no patches of the image; "
        "choose a block, attention or feed-forward module"
    )


def align(maps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return ``(b, d, h, w)`` as rows ``(b·grid, d)`` on the common grid.

    A finer map is averaged over the cells of the grid; of a coarser one each patch takes the cell
    it lies in. On the grid's own resolution nothing is changed.
    """
    height, width = maps.shape[-2:]
    if (height, width) != grid:
        if height >= grid.height and width >= grid.width:
            maps = functional.adaptive_avg_pool2d(maps, (grid.height, grid.width))
        else:
            maps = functional.interpolate(maps, size=tuple(grid), mode="nearest")
    return maps.flatten(2).transpose(1, 2).reshape(-1, maps.shape[1])
