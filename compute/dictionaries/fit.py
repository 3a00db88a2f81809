"""The front door for activations that are in memory."""

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from compute.dictionaries.dictionary import Dictionary
from compute.dictionaries.dictionary_settings import ArchitectureName, DictionarySettings
from compute.dictionaries.normalization import estimate_whitening
from compute.dictionaries.trainer import DictionaryTrainer


def fit_dictionary(
    x: ArrayLike | Tensor,
    n_concepts: int = 4096,
    k: int = 32,
    steps: int = 1000,
    seed: int = 0,
    architecture: ArchitectureName = "topk",
    *,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Dictionary:
    """Learn a sparse dictionary of activations.

    Parameters
    ----------
    x
        Activations (..., d), numpy or torch; leading axes are rows.
    n_concepts, k, steps, seed, architecture
        See :class:`~compute.dictionaries.dictionary_settings.DictionarySettings`.
    device
        Where to train.
    **options
        Further fields of the settings.

    Returns
    -------
    Dictionary
        With ``directions`` (n_concepts, d) in the units of ``x``.

    Raises
    ------
    ValueError
        If ``x`` has no rows or values that are not finite, or a setting is out of bounds.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(1000, 16))
    >>> dictionary = fit_dictionary(x, n_concepts=32, k=4, steps=50)
    >>> dictionary.encode(x).shape
    torch.Size([1000, 32])
    """
    settings = DictionarySettings(
        n_concepts=n_concepts, k=k, steps=steps, seed=seed, architecture=architecture, **options
    )
    rows = torch.as_tensor(x).detach().to(torch.float32)
    if rows.ndim == 0 or rows.numel() == 0:
        raise ValueError(f"x has shape {tuple(rows.shape)}: pass (..., d) with at least one row")
    rows = rows.reshape(-1, rows.shape[-1])
    whitening = estimate_whitening(rows) if settings.whiten else None
    trainer = DictionaryTrainer(settings, normalization=whitening, device=device)
    for batch in shuffled_batches(rows, settings.batch_size, settings.steps, seed):
        trainer.step(batch)
    return trainer.dictionary


def shuffled_batches(rows: Tensor, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """``steps`` batches of rows (n, d), each epoch in a new order; no row twice in an epoch.

    Batches may span two epochs, so each has exactly ``batch_size`` rows, however few there are.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        yield rows[order[:batch_size]]
        order = order[batch_size:]
