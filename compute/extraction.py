"""Extraction: Ray actors that hold a model stage blocks of rows, then whole shuffled shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compute.cluster import (
    Progress,
    actor_options,
    connect,
    run_on_actors,
    silent,
    worker_count,
)
from compute.gallery import save_pictures
from compute.pictures import png
from compute.settings import ResourceSettings
from storage.activations import ActivationPlan, ActivationSet, ActivationWriter, NotSealed
from storage.locations import Location

__all__ = ["write_activations"]


class _Extractor:
    """Holds a model for its lifetime and stages the blocks it is given."""

    def __init__(
        self, load: Callable[[], Any], url: str, plan: ActivationPlan, cpus: float
    ) -> None:
        import torch

        # The same number of threads everywhere gives the same bytes everywhere.
        torch.set_num_threads(max(1, int(cpus)))
        self.adapter = load()
        self.writer = ActivationWriter(Location(url), plan)

    def stage(self, task: tuple[int, Sequence[Any]]) -> int:
        """Run the model on a block's items and store the rows; return their number."""
        import torch

        block, items = task
        rows = self.adapter.extract(items)
        if rows.pictures:
            shown = {sample: png(picture) for sample, picture in rows.pictures.items()}
            save_pictures(self.writer.location, block, shown)
        activations = {
            # NumPy has no bfloat16: the store takes its bits.
            name: (
                values.view(torch.uint16)
                if values.dtype == torch.bfloat16 and self.writer.plan.dtype == "bfloat16"
                else values.float()
                if values.dtype == torch.bfloat16
                else values
            ).numpy()
            for name, values in rows.activations.items()
        }
        index = {"sample": rows.sample, "position": rows.position, "observed": rows.observed}
        return self.writer.stage(block, activations, index)


class _ShardWriter:
    """Writes the shards it is given."""

    def __init__(self, url: str, plan: ActivationPlan) -> None:
        self.writer = ActivationWriter(Location(url), plan)

    def write(self, shard: int) -> int:
        """Gather and write one shard; return its rows."""
        return self.writer.write_shard(shard)


def write_activations(
    location: Location,
    plan: ActivationPlan,
    items: Callable[[int], Sequence[Any]],
    load: Callable[[], Any],
    *,
    resources: ResourceSettings,
    progress: Progress = silent,
) -> ActivationSet:
    """Write an activation set, or what of it is missing, and return it sealed.

    Parameters
    ----------
    location : Location
        Where the set lies; every worker must reach it.
    plan : ActivationPlan
    items : callable
        The inputs of a block, by its number, as the adapter takes them.
    load : callable
        Loads the model adapter; called once in each worker, so it must travel there.
    resources : ResourceSettings
        What each worker holds; the bytes written do not depend on how many there are.
    progress : callable
        Told the canonical rows staged so far, and all rows.
    """
    try:
        return ActivationSet(location)
    except NotSealed:
        pass
    writer = ActivationWriter(location, plan)
    writer.prepare()
    blocks = writer.missing_blocks()
    shards = writer.missing_shards()
    sizes = {b: plan.blocks[b + 1] - plan.blocks[b] for b in range(plan.n_blocks)}
    done = plan.n_rows - sum(sizes[block] for block in blocks)
    progress(done, plan.n_rows)
    if blocks or shards:
        import ray

        options = actor_options(resources)
        connect()
        extractor = ray.remote(max_restarts=3, max_task_retries=3, **options)(_Extractor)
        staged = run_on_actors(
            lambda: extractor.remote(load, location.url, plan, resources.cpus),
            worker_count(resources, len(blocks)),
            "stage",
            ((block, items(block)) for block in blocks),
        )
        for _, rows in staged if blocks else ():
            done += rows
            progress(done, plan.n_rows)
        shard_writer = ray.remote(max_restarts=3, max_task_retries=3, num_cpus=1)(_ShardWriter)
        written = run_on_actors(
            lambda: shard_writer.remote(location.url, plan),
            worker_count(ResourceSettings(cpus=1), len(shards)),
            "write",
            shards,
        )
        for _ in written:
            pass
    writer.seal()
    return ActivationSet(location)
