"""The samples that a run's graph is verified on: those its dictionaries have not been fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compute.inputs.corpus import Corpus
from compute.inputs.sources import Samples

__all__ = ["held_out_items"]


def held_out_items(
    samples: Samples, read: Callable[[int], Sequence[Any]], count: int, seed: int
) -> list[Any]:
    """Return at most ``count`` held-out samples, drawn without replacement, in a fixed order.

    Parameters
    ----------
    samples : corpus or gallery of the run.
    read : gives the samples of a block, as `compute.inputs.sources.Sources.items` does.
    """
    corpus = isinstance(samples, Corpus)
    border = samples.n_train_windows if isinstance(samples, Corpus) else samples.n_train_samples
    held_out = [b for b, first in enumerate(samples.blocks[:-1]) if first >= border]
    found = [item for block in held_out for item in read(block)]
    if corpus:
        # Short windows would be mostly padding.
        longest = max(len(item.tokens) for item in found)
        found = [item for item in found if 2 * len(item.tokens) >= longest]
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[i] for i in sorted(order)]
