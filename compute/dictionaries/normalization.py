"""Centre, scale and covariance of activations, so that a few huge rows do not decide them."""

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
    ordinary = _ordinary(batch)
    mean = ordinary.mean(0)
    scale = (ordinary - mean).square().mean().sqrt()
    return Normalization(mean, torch.where(scale > 0, scale, torch.ones_like(scale)))


def estimate_whitening(batch: Tensor, shrinkage: float = 0.02) -> Normalization:
    """Coordinates in which the ordinary rows of ``batch`` (b, d) have a covariance near identity.

    The activations of trained models have a few directions that hold most of the variance. In
    whitened coordinates quiet concepts count as much as loud ones, directions that share a loud
    component are told apart, and isotropic noise is a fair account of what concepts leave (for
    dictionaries: Saraswatula and Klindt 2025, 2511.13981). The covariance is shrunk towards a
    sphere, the more the fewer rows there are: ``shrinkage`` + d / b of the mean eigenvalue is added
    to each, so that directions in which there is next to nothing are not blown up.
    """
    ordinary = _ordinary(batch).double()
    b, d = ordinary.shape
    mean = ordinary.mean(0)
    centred = ordinary - mean
    values, axes = torch.linalg.eigh(centred.T @ centred / b)
    values = values.clamp(min=0)
    # Where nothing varies at all, any scale is right.
    values = values + ((shrinkage + d / b) * values.mean()).clamp(min=1e-12)
    into, back = (((axes * values.pow(power)) @ axes.T).to(batch.dtype) for power in (-0.5, 0.5))
    return Normalization(mean.to(batch.dtype), batch.new_ones(()), into, back)


def _ordinary(batch: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(batch, dim=1)
    return batch[norms <= _MASSIVE * norms.median()]
