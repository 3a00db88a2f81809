"""Centre, scale and covariance of activations, so that a few huge rows do not decide them."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compute.dictionaries.architectures.architecture import Normalization

# Attention sinks have norms hundreds of times the median; ordinary rows stay below a few medians.
_MASSIVE = 10.0
# Noise is told from the rest by this share of the coordinates or more.
_TOLD_BY = 0.1


def estimate_normalization(batch: Tensor) -> Normalization:
    """Mean and root mean square deviation per coordinate of the ordinary rows of ``batch`` (b, d).

    Rows whose norm exceeds ten medians ("massive activations", Sun et al. 2024, 2402.17762) are
    left out of both. A constant batch gets scale 1.
    """
    ordinary = _ordinary(batch)
    mean = ordinary.mean(0)
    scale = (ordinary - mean).square().mean().sqrt()
    return Normalization(mean, torch.where(scale > 0, scale, torch.ones_like(scale)))


def estimate_whitening(
    batch: Tensor, shrinkage: float = 0.02, without_noise: bool = False
) -> Normalization:
    """Coordinates in which the ordinary rows of ``batch`` (b, d) have a covariance near identity.

    The activations of trained models have a few directions that hold most of the variance. In
    whitened coordinates quiet concepts count as much as loud ones, directions that share a loud
    component are told apart, and isotropic noise is a fair account of what concepts leave (for
    dictionaries: Saraswatula and Klindt 2025, 2511.13981). The covariance is shrunk towards a
    sphere, the more the fewer rows there are: ``shrinkage`` + d / b of the mean eigenvalue is added
    to each, so that directions in which there is next to nothing are not blown up. Infinite
    ``shrinkage`` scales all coordinates alike, to a mean variance of 1.

    ``without_noise`` leaves out the principal coordinates that hold isotropic noise and nothing
    else, where :func:`signal_rank` tells them by a tenth of all or more.
    """
    ordinary = _ordinary(batch).double()
    mean = ordinary.mean(0)
    centred = ordinary - mean
    b, d = centred.shape
    signal: Tensor | None = None
    if without_noise:
        # What seldom varies makes rows that are not ordinary, so all of them have a say.
        values, axes = _principal(batch.double() - mean)
        rank = signal_rank(values.numpy(), len(batch))
        if rank <= (1 - _TOLD_BY) * d:
            signal = axes[:, -rank:]
    values, axes = _principal(centred if signal is None else centred @ signal)
    average = values.mean()
    # Where nothing varies at all, any scale is right.
    if math.isinf(shrinkage):
        values = average.clamp(min=1e-12).expand_as(values)
    else:
        values = values + ((shrinkage + d / b) * average).clamp(min=1e-12)
    into, back = ((axes * values.pow(power)) @ axes.T for power in (-0.5, 0.5))
    if signal is not None:
        into, back = signal @ into, back @ signal.T
    dtype = batch.dtype
    return Normalization(mean.to(dtype), batch.new_ones(()), into.to(dtype), back.to(dtype))


def signal_rank(variances: NDArray[np.float64], n_rows: int) -> int:
    """How many of the (d,) variances of principal coordinates are not those of isotropic noise.

    The fewest by the Bayesian information criterion of probabilistic principal components (Tipping
    and Bishop 1999; Minka 2000), at least 1; d if no noise can be told.
    """
    values = np.sort(variances)[::-1]
    values = values.clip(max(1e-12 * float(values[0]), 1e-300))
    d = len(values)
    signal, rest = np.cumsum(np.log(values)), np.cumsum(values[::-1])[::-1]
    ranks = np.arange(1, d)
    left = d - ranks
    numbers = d * ranks - ranks * (ranks - 1) / 2 + 1
    evidence = -0.5 * n_rows * (signal[:-1] + left * np.log(rest[1:] / left))
    evidence -= 0.5 * numbers * np.log(n_rows)
    # One coordinate by itself is no noise to speak of: as a model, that is the same as none.
    best = int(evidence.argmax()) + 1 if d > 1 else d
    return best if best < d - 1 else d


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (d,) of the principal coordinates of rows (n, d), the least first, and axes."""
    values, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    return values.clamp(min=0), axes


def _ordinary(batch: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(batch, dim=1)
    return batch[norms <= _MASSIVE * norms.median()]
