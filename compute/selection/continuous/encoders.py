"""The best encoder of one linear layer for a level whose codes are inferred."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from compute.dictionaries import Dictionary
from compute.dictionaries.architectures import Normalization, architecture_named
from compute.dictionaries.dictionary_settings import DictionarySettings
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


def train_reading(
    directions: Tensor,
    bias: Tensor,
    batches: Iterable[Tensor],
    k: int,
    normalization: Normalization,
    steps: int,
) -> Dictionary:
    """A JumpReLU dictionary that reads rows off by one linear layer, as well as training finds it.

    Only the encoder is trained, by what it leaves of the rows (as BatchTopK, 2412.06410); it starts
    as the transpose of the decoder.

    Parameters
    ----------
    directions : (K, r) unit rows in the coordinates that ``normalization`` leads to
    bias : (r,) mean of a row without concepts
    batches : of (b, r) rows, at least ``steps`` of them
    k : active concepts a row
    """
    settings = DictionarySettings(
        architecture="batchtopk", n_concepts=len(directions), k=k, steps=steps, aux_k=0
    )
    architecture = architecture_named("batchtopk")
    parameters = {
        "encoder": directions.clone(),
        "encoder_bias": directions.new_zeros(len(directions)),
        "decoder": directions,
        "decoder_bias": bias,
    }
    trained = ("encoder", "encoder_bias")
    optimizer = torch.optim.Adam([parameters[name] for name in trained], fused=True)
    buffers = architecture.buffers(parameters, directions, settings)
    none_dead = torch.zeros(len(directions), dtype=torch.bool, device=directions.device)
    for step, rows in enumerate(islice(batches, steps)):
        found = architecture.gradients(parameters, buffers, rows, none_dead, settings)
        for name in trained:
            parameters[name].grad = found.by_parameter[name]
        optimizer.param_groups[0]["lr"] = settings.learning_rate_at(step)
        optimizer.step()
    name, weights = architecture.publish(parameters, buffers, normalization)
    return Dictionary(name, {name: w.cpu() for name, w in weights.items()}, k=k)
