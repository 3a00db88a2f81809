"""White coordinates of a level, from one pass over all its rows.

Coordinates are the principal ones, each scaled to variance 1. Noise that is isotropic among the
activations, whatever its strength, is then independent noise of one variance per coordinate: what
the model estimates (:mod:`.concepts`). Coordinates that hold nothing else say nothing, and no rank
has to be chosen. Coordinates quieter than a share of the mean variance stay quiet: activations of
trained models are exact functions of their inputs, down to variances of a ten-thousandth, and what
bends there would take concepts of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Principal coordinates with less than this share of the mean variance are rounding.
_LEAST_SHARE = 1e-5
# Share of the mean variance that is added to each, as in ``estimate_whitening``: how exactly
# activations are described.
_PRECISION = 0.02


class White(NamedTuple):
    """White coordinates: ``(x - mean) @ into``, and back by ``@ back + mean``.

    ``mean`` is (d,), ``into`` (d, r) and ``back`` (r, d), r the number of coordinates that vary.
    """

    mean: Tensor
    into: Tensor
    back: Tensor

    @classmethod
    def of(cls, mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> White:
        """From a mean (d,) and a covariance (d, d)."""
        values, axes = np.linalg.eigh(covariance)
        varies = values > max(_LEAST_SHARE * float(values.mean()), 1e-12)
        if not varies.any():
            # Where nothing varies, any coordinate is as good.
            varies[-1], values = True, np.maximum(values, 1.0)
        root = np.sqrt(values[varies] + _PRECISION * float(values.mean()))
        axes = axes[:, varies]
        # The sign of an axis is the solver's accident: its largest entry is made positive.
        axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
        fields = (mean, axes / root, (axes * root).T)
        # Torch's own memory is aligned, on which the last bits of its products depend.
        return cls(*(torch.tensor(np.ascontiguousarray(f, np.float32)) for f in fields))

    @classmethod
    def of_blocks(cls, blocks: Iterable[Tensor]) -> White:
        """From blocks of rows (n, d), one pass, in memory that does not grow with the rows."""
        rows, mean, scatter = 0, np.zeros(()), np.zeros(())
        for block in blocks:
            x = block.double().numpy()
            own = x.mean(0)
            x = x - own
            n = len(x)
            # Chan, Golub and LeVeque 1979: sums around means lose no digits.
            shift = own - mean
            mean = mean + shift * (n / (rows + n))
            scatter = scatter + x.T @ x + np.outer(shift, shift) * (rows * n / (rows + n))
            rows += n
        return cls.of(mean, scatter / max(rows - 1, 1))

    def rows(self, x: Tensor) -> Tensor:
        """Rows (n, d) in white coordinates (n, r)."""
        return (x - self.mean) @ self.into

    def turned(self, axes: Tensor) -> White:
        """White coordinates with these ``axes`` (r, r), orthogonal columns."""
        return White(self.mean, (self.into @ axes).contiguous(), (axes.T @ self.back).contiguous())

    def to(self, device: torch.device) -> White:
        """The same on another device."""
        return White(*(tensor.to(device) for tensor in self))
