"""What workers that train one dictionary together tell each other at every step."""

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from compute.dictionaries.architectures import Gradients


class Workers:
    """One worker alone: nothing to tell."""

    rank = 0
    size = 1

    def combine(self, gradients: Gradients) -> Gradients:
        """Gradients of the whole batch from those of each worker's equal share of it."""
        return gradients

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the workers."""

    def gather(self, batch: Tensor) -> Tensor:
        """All workers' rows (b, d), in the order of ranks; (size · b, d)."""
        return batch


ALONE = Workers()


class ProcessGroup(Workers):
    """The workers of torch's default process group, each with an equal share of every batch.

    Architectures that select within a batch (batchtopk, matryoshka) select within each share.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def combine(self, gradients: Gradients) -> Gradients:
        """Means of gradients and losses, sums of counts."""
        means = [*gradients.by_parameter.values(), gradients.loss, gradients.aux_loss]
        self.average(means)
        for tensor in (gradients.fired, gradients.usefulness):
            dist.all_reduce(tensor)
        return replace(gradients, loss=means[-2], aux_loss=means[-1])

    def average(self, tensors: Iterable[Tensor]) -> None:
        """One message for each tensor; a mean is a sum first, which every backend has."""
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(self.size)

    def gather(self, batch: Tensor) -> Tensor:
        """All workers' rows."""
        shares = [torch.empty_like(batch) for _ in range(self.size)]
        dist.all_gather(shares, batch)
        return torch.cat(shares)
