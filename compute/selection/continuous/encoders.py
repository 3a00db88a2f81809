"""The best encoder of one linear layer for a level whose codes are inferred."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compute.dictionaries import Dictionary
from compute.selection.continuous.level import least_squares
from compute.selection.continuous.logic_gates import FloatArray


def read_out(
    directions: Tensor, bias: Tensor, noise: float, x: Tensor, codes: FloatArray
) -> Dictionary:
    """A JumpReLU dictionary that reads ``codes`` (n, c) off ``x`` (n, d) as closely as it can.

    The encoder is the least-squares map from activations to codes; each threshold lies where
    active and inactive rows are told apart with fewest mistakes. ``directions`` (c, d) and ``bias``
    (d,) are those that decode, ``noise`` the standard deviation of what they leave.
    """
    centred = x - bias
    # The noise that shrinks the map is the level's own.
    solution = least_squares(centred, torch.from_numpy(codes), max(noise**2, 1e-8))
    weights, constant = solution[:-1], solution[-1]
    reading = (centred @ weights + constant).numpy()
    threshold = np.zeros(len(directions), np.float32)
    for j, column in enumerate(reading.T):
        order = np.argsort(-column, kind="stable")
        # Reading the first m rows as active leaves out the other active ones.
        right = np.cumsum(np.where(codes[order, j] > 0, 1, -1))
        best = int(right.argmax())
        bounds = column[order[best : best + 2]] if right[best] > 0 else column[order[:1]] + 1.0
        threshold[j] = max(float(bounds.mean()), 0.0)
    parameters = {
        "W_enc": weights,
        "b_enc": constant,
        "W_dec": directions,
        "b_dec": bias,
        "threshold": torch.from_numpy(threshold),
    }
    k = max(1, min(len(directions), round(float((codes > 0).sum(1).mean()))))
    return Dictionary("jumprelu", parameters, k=k)
