"""Checkpoints of a training: each a sealed folder, replaced at once or not at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save

from storage.locations import Location, NotFound
from storage.sealing.damage import CorruptFile
from storage.sealing.seals import SealedFolder, seal_files

_FILE = "checkpoint.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")
# A damaged one is not used, and training goes on from the one before it.
_KEPT = 2
_log = logging.getLogger(__name__)


def save_checkpoint(
    location: Location,
    step: int,
    settings: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    kept: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
    *,
    last: bool,
) -> None:
    """Write all that training changes: weights, their average, and Adam's moments.

    Parameters
    ----------
    step : steps done.
    settings : JSON-ready settings, which a later run must share.
    parameters, kept : name → weights as trained, and as averaged.
    last : whether training ends here, so that earlier ones are of no use.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weights/{name}"] = parameter.detach()
        tensors[f"kept/{name}"] = kept[name]
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = optimiser.state[parameter][moment]
    metadata = {"step": str(step), "settings": json.dumps(dict(settings), sort_keys=True)}
    data = save({name: value.contiguous() for name, value in tensors.items()}, metadata)
    folder = location / str(step)
    folder.put(_FILE, data)
    seal_files(folder, [_FILE])
    for earlier in _steps(location)[1 if last else _KEPT :]:
        location.delete_folder(str(earlier))


@torch.no_grad()
def load_checkpoint(
    location: Location,
    settings: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    kept: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
) -> int:
    """Restore the latest whole checkpoint at ``location`` and return the steps done; 0 without one.

    Raises
    ------
    ValueError : the checkpoint is of a training with other settings or another model.
    """
    data = _latest(location)
    if data is None:
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


def _latest(location: Location) -> bytes | None:
    for step in _steps(location):
        try:
            return SealedFolder.open(location / str(step)).get(_FILE)
        except NotFound:
            # A killed run had not ended it.
            continue
        except CorruptFile as error:
            _log.warning("the checkpoint of step %d is not used: %s", step, error)
    try:
        # As earlier versions wrote it.
        return location.get(_FILE)
    except NotFound:
        return None


def _steps(location: Location) -> list[int]:
    """Steps of which there is something, latest first."""
    return sorted(map(int, filter(str.isdigit, location.children())), reverse=True)


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: its header is JSON, after 8 bytes that say how long."""
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found
