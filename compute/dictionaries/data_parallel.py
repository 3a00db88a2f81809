"""Training one dictionary on any number of Ray Train workers."""

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from compute.dictionaries.dictionary_settings import DictionarySettings
from compute.dictionaries.trainer import DictionaryTrainer
from compute.dictionaries.workers import ProcessGroup

_CHECKPOINT = "trainer.safetensors"


def train_parallel(
    shares: Callable[[int, int], Iterable[Tensor]],
    settings: DictionarySettings,
    *,
    n_workers: int,
    folder: str,
    use_gpu: bool = False,
    checkpoint: bytes | None = None,
) -> DictionaryTrainer:
    """Train a dictionary on ``n_workers`` processes that each see a share of every batch.

    Parameters
    ----------
    shares
        ``shares(rank, n_workers)`` yields that worker's rows (b, d) of batch after batch: all
        workers' shares of a batch have the same b, a multiple of 4 where results should not depend
        on the number of workers. Called in the worker, so it must be serialisable.
    settings
        How to train.
    n_workers
        Number of processes, at least 1.
    folder
        Where Ray Train keeps the run; a path or URL that all nodes reach.
    use_gpu
        Give each worker a GPU.
    checkpoint
        A trainer's checkpoint to go on from; ``shares`` must then start at the batch that follows.

    Returns
    -------
    DictionaryTrainer
        On the CPU, at the end of training; read ``.dictionary``.

    Raises
    ------
    ValueError
        If ``n_workers`` is below 1.
    RuntimeError
        If the run ended without a result.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if n_workers < 1:
        raise ValueError(f"n_workers = {n_workers} trains nothing: give at least 1")
    result = TorchTrainer(
        _work,
        train_loop_config={
            "shares": shares,
            "settings": settings.model_dump_json(),
            "checkpoint": checkpoint,
        },
        scaling_config=ScalingConfig(num_workers=n_workers, use_gpu=use_gpu),
        run_config=RunConfig(storage_path=folder),
    ).fit()
    if result.checkpoint is None:
        raise RuntimeError(f"the run in {folder} ended without a checkpoint: {result.error}")
    with result.checkpoint.as_directory() as made:
        return DictionaryTrainer.from_checkpoint(Path(made, _CHECKPOINT).read_bytes())


def _work(config: dict[str, Any]) -> None:
    from ray import train
    from ray.train.torch import get_device

    workers, device = ProcessGroup(), get_device()
    if config["checkpoint"] is None:
        settings = DictionarySettings.model_validate_json(config["settings"])
        trainer = DictionaryTrainer(settings, device=device, workers=workers)
    else:
        trainer = DictionaryTrainer.from_checkpoint(config["checkpoint"], device, workers)
    for batch in config["shares"](workers.rank, workers.size):
        if trainer.steps_done >= trainer.settings.steps:
            break
        trainer.step(batch)
    with TemporaryDirectory() as folder:
        kept = None
        if workers.rank == 0:
            Path(folder, _CHECKPOINT).write_bytes(trainer.checkpoint())
            kept = train.Checkpoint.from_directory(folder)
        train.report({"steps": trainer.steps_done}, checkpoint=kept)
