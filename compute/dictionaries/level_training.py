"""Many dictionaries, one per level, trained in one pass over an aligned stream."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from compute.dictionaries.architectures.architecture import Normalization
from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.dictionaries.trainer import DictionaryTrainer, StepMetrics


def train_levels(
    batches: Iterable[Mapping[str, Tensor]],
    settings: Mapping[str, DictionarySettings],
    *,
    trainers: Mapping[str, DictionaryTrainer] | None = None,
    after_step: Callable[[dict[str, StepMetrics], dict[str, DictionaryTrainer]], None]
    | None = None,
    normalizations: Mapping[str, Normalization] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, DictionaryTrainer]:
    """Train one dictionary per level until each has done its steps or the stream ends.

    Parameters
    ----------
    batches
        Aligned batches: level → (b, d). To go on with ``trainers``, start the stream at the batch
        that follows their last.
    settings
        Level → how to train its dictionary; the levels must be those of the batches.
    trainers
        Level → a trainer restored from a checkpoint.
    after_step
        Called after each batch with the metrics of that step and all trainers, for progress and
        checkpoints.
    normalizations
        Level → the map under which a new trainer sees rows; others estimate it from their first
        batch.
    device
        Where new trainers live.

    Returns
    -------
    dict of str to DictionaryTrainer
        Read ``.dictionary`` of each.

    Raises
    ------
    ValueError
        If there is nothing to train, a level is missing from a batch, or the stream is empty.
    """
    if not settings:
        raise ValueError("settings name no level: give at least one")
    running = {
        level: (trainers or {}).get(level)
        or DictionaryTrainer(chosen, normalization=(normalizations or {}).get(level), device=device)
        for level, chosen in settings.items()
    }
    for level, trainer in running.items():
        if trainer.settings != settings[level]:
            raise ValueError(
                f"the restored trainer of level {level!r} has other settings than those given:"
                " resume with the settings it was started with"
            )
    for batch in batches:
        if missing := set(running) - set(batch):
            raise ValueError(
                f"a batch lacks level {min(missing)!r}: every batch must hold all levels"
            )
        metrics = {
            level: trainer.step(batch[level])
            for level, trainer in running.items()
            if trainer.steps_done < trainer.settings.steps
        }
        if after_step is not None and metrics:
            after_step(metrics, running)
        if all(trainer.steps_done >= trainer.settings.steps for trainer in running.values()):
            break
    if any(trainer.steps_done == 0 for trainer in running.values()):
        raise ValueError("the stream of batches is empty: give at least one batch")
    return running
