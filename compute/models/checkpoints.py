"""Checkpoints of a training: one safetensors file, replaced at once or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_FILE = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(
    folder: Path,
    step: int,
    settings: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    kept: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write all that training changes: weights, their average, and Adam's moments.

    Parameters
    ----------
    step : steps done.
    settings : JSON-ready settings, which a later run must share.
    parameters, kept : name → weights as trained, and as averaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weights/{name}"] = parameter.detach()
        tensors[f"kept/{name}"] = kept[name]
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = optimiser.state[parameter][moment]
    metadata = {"step": str(step), "settings": json.dumps(dict(settings), sort_keys=True)}
    temporary = folder / f".{_FILE}.{os.getpid()}"
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
    temporary.replace(folder / _FILE)


@torch.no_grad()
def load_checkpoint(
    folder: Path,
    settings: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    kept: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
) -> int:
    """Restore the checkpoint in ``folder`` and return the steps done; 0 where there is none.

    Raises
    ------
    ValueError : the checkpoint is of a training with other settings or another model.
    """
    path = folder / _FILE
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
        if json.loads(metadata["settings"]) != json.loads(json.dumps(dict(settings))):
            raise ValueError(
                f"the checkpoint in {folder} is of a training with other settings; "
                "use those settings or another folder"
            )
        names = {key.split("/", 1)[1] for key in stored.keys()}  # noqa: SIM118 - no mapping
        if names != set(parameters):
            raise ValueError(f"the checkpoint in {folder} is of another model; use another folder")
        step = int(metadata["step"])
        for name, parameter in parameters.items():
            parameter.copy_(stored.get_tensor(f"weights/{name}"))
            kept[name].copy_(stored.get_tensor(f"kept/{name}"))
            optimiser.state[parameter] = {
                "step": torch.tensor(float(step)),
                **{moment: stored.get_tensor(f"{moment}/{name}") for moment in _MOMENTS},
            }
    return step
