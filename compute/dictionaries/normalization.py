"""Centre and scale of activations, estimated so that a few huge rows do not decide them."""

import torch
from torch import Tensor

from compute.dictionaries.architectures.base import Normalization

# Attention sinks have norms hundreds of times the median; ordinary rows stay below a few medians.
_MASSIVE = 10.0


def estimate_normalization(batch: Tensor) -> Normalization:
    """Mean and root mean square deviation per coordinate of the ordinary rows of ``batch`` (b, d).

    Rows whose norm exceeds ten medians ("massive activations", Sun et al. 2024, 2402.17762) are
    left out of both. A constant batch gets scale 1.
    """
    norms = torch.linalg.vector_norm(batch, dim=1)
    ordinary = batch[norms <= _MASSIVE * norms.median()]
    mean = ordinary.mean(0)
    scale = (ordinary - mean).square().mean().sqrt()
    return Normalization(mean, torch.where(scale > 0, scale, torch.ones_like(scale)))
