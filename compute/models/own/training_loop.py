"""The optimiser's loop of a training stage: schedule, running average, checkpoints.

Everything random in step s follows from the seed and s, and a checkpoint holds all that training
changes: a run that is stopped and started again ends in the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from compute.models.own.checkpoints import load_checkpoint, save_checkpoint
from storage.locations import Location

Progress = Callable[[str, int, int, float], None]
_WARM_STEPS = 50


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a stage is saved, how often, and the settings that a later run must share."""

    location: Location
    settings: Mapping[str, Any]
    every: int = 250


class TrainingLoop:
    """AdamW over some modules; the learning rate rises first.

    Parameters
    ----------
    stage : what progress is told of.
    modules : prefix → module; all of their parameters are trained.
    steps, rate : number of steps and peak learning rate.
    seed : of everything random in the steps.
    average : decay of the running average of the weights, which is what is kept; 0 keeps the last.
    falls : whether the rate falls to zero along half a cosine. Where it stays, what is learnt up to
        a step does not depend on how many steps follow.
    """

    def __init__(
        self,
        stage: str,
        modules: Mapping[str, nn.Module],
        checkpoints: Checkpoints,
        *,
        steps: int,
        rate: float,
        seed: int,
        average: float = 0.0,
        falls: bool = True,
    ) -> None:
        self.stage = stage
        self.checkpoints = checkpoints
        self.steps = steps
        self.rate = rate
        self.seed = seed
        self.average = average
        self.falls = falls
        self.parameters = {
            f"{module}.{name}": parameter
            for module, owner in modules.items()
            for name, parameter in owner.named_parameters()
        }
        self.modules = modules
        self.kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4
        )

    def run(
        self, loss_of: Callable[[torch.Generator], torch.Tensor], progress: Progress | None
    ) -> None:
        """Run the steps that are left, and leave the averaged weights in the modules."""
        for module in self.modules.values():
            module.train()
        first = load_checkpoint(
            self.checkpoints.location,
            self.checkpoints.settings,
            self.parameters,
            self.kept,
            self.optimiser,
        )
        for step in range(first, self.steps):
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * self._share_of_rate(step)
            loss = loss_of(step_generator(self.seed, step))
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.optimiser.step()
            self._keep(step)
            done = step + 1
            if done % self.checkpoints.every == 0 or done == self.steps:
                save_checkpoint(
                    self.checkpoints.location,
                    done,
                    self.checkpoints.settings,
                    self.parameters,
                    self.kept,
                    self.optimiser,
                    last=done == self.steps,
                )
            if progress is not None:
                progress(self.stage, done, self.steps, float(loss.detach()))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.kept[name])
        for module in self.modules.values():
            module.eval()

    @torch.no_grad()
    def _keep(self, step: int) -> None:
        # Early on, the average follows more closely, or it would keep the first random weights.
        decay = min(self.average, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.kept[name].lerp_(parameter, 1 - decay)

    def _share_of_rate(self, step: int) -> float:
        warm = min(_WARM_STEPS, max(1, self.steps // 10))
        if step < warm:
            return (step + 1) / warm
        if not self.falls:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the source of everything random in one step."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))
