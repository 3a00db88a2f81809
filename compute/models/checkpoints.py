"""Checkpoints of a training: one safetensors file, replaced at once or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save

from storage.locations import Location, NotFound

_FILE = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(
    location: Location,
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
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weights/{name}"] = parameter.detach()
        tensors[f"kept/{name}"] = kept[name]
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = optimiser.state[parameter][moment]
    metadata = {"step": str(step), "settings": json.dumps(dict(settings), sort_keys=True)}
    data = save({name: value.contiguous() for name, value in tensors.items()}, metadata)
    location.put(_FILE, data)


@torch.no_grad()
def load_checkpoint(
    location: Location,
    settings: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    kept: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
) -> int:
    """Restore the checkpoint at ``location`` and return the steps done; 0 where there is none.

    Raises
    ------
    ValueError : the checkpoint is of a training with other settings or another model.
    """
    try:
        data = location.get(_FILE)
    except NotFound:
        return 0
    metadata = _metadata(data)
    if json.loads(metadata["settings"]) != json.loads(json.dumps(dict(settings))):
        raise ValueError(
            f"the checkpoint in {location.url} is of a training with other settings; "
            "use those settings or another folder"
        )
    stored = load(data)
    if {name.split("/", 1)[1] for name in stored} != set(parameters):
        raise ValueError(
            f"the checkpoint in {location.url} is of another model; use another folder"
        )
    step = int(metadata["step"])
    for name, parameter in parameters.items():
        parameter.copy_(stored[f"weights/{name}"])
        kept[name].copy_(stored[f"kept/{name}"])
        optimiser.state[parameter] = {
            "step": torch.tensor(float(step)),
            **{moment: stored[f"{moment}/{name}"] for moment in _MOMENTS},
        }
    return step


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: its header is JSON, after 8 bytes that say how long."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found
