"""Extraction: Ray actors that hold a model stage blocks of rows, then whole shuffled shards.

A finished set with condemned shards (``storage/sealing/condemned.py``) is mended here too: the
model runs again, on those batches only whose rows lie in such a shard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compute.cluster import (
    Progress,
    actor_options,
    actor_pool,
    connect,
    count_rows,
    silent,
    worker_count,
    worker_log,
)
from compute.inputs.gallery import missing_pictures, save_pictures
from compute.inputs.images import png
from compute.settings import ResourceSettings
from storage.locations import Location
from storage.sealing.condemned import read_condemned
from storage.tables.activations import ActivationPlan, ActivationSet, ActivationWriter, NotSealed

if TYPE_CHECKING:
    from compute.models.adapter import ActivationRows

__all__ = ["write_activations"]

_Array = npt.NDArray[Any]
_Columns = dict[str, _Array]


class _Extractor:
    """Holds a model for its lifetime, stages the blocks and writes the shards it is given."""

    def __init__(
        self, load: Callable[[], Any], url: str, plan: ActivationPlan, cpus: float
    ) -> None:
        self._load = load
        self._adapter: Any = None
        self._threads = max(1, int(cpus))
        self.writer = ActivationWriter(Location(url), plan)
        self._count = count_rows("extract")

    def stage(self, task: tuple[int, Sequence[Any]]) -> int:
        """Run the model on a block's items and store the rows; return their number."""
        block, items = task
        rows = self._show(block, items)
        count = self.writer.stage(block, *self._arrays(rows))
        self._count(count)
        return count

    def show(self, task: tuple[int, Sequence[Any]]) -> None:
        """Run the model on a block's items for their pictures alone."""
        self._show(*task)

    def write(self, shard: int) -> int:
        """Gather and write one shard; return its rows."""
        return self.writer.write_shard(shard)

    def rows(self, task: tuple[int, Sequence[Any], Sequence[int]]) -> tuple[_Array, _Columns]:
        """Run the model again on what yields some of a block's rows, and return these.

        The task is the block's number, its items, and the canonical numbers of the rows, counted
        from the block's beginning; the numbers of all rows that came out are returned with them.
        """
        _, items, wanted = task
        adapter = self._loaded()
        sizes = [adapter.rows_of(item) for item in items]
        ends = np.cumsum(sizes)
        found: list[tuple[_Array, _Columns]] = []
        # Batches are cut as they were at first: another batch may round another way.
        for begin in range(0, len(items), adapter.batch_size):
            batch = items[begin : begin + adapter.batch_size]
            first = int(ends[begin] - sizes[begin])
            numbers = np.arange(first, int(ends[begin + len(batch) - 1]))
            chosen = np.isin(numbers, wanted)
            if chosen.any():
                columns = self.writer.to_columns(
                    len(numbers), *self._arrays(adapter.extract(batch))
                )
                found.append((numbers[chosen], {p: a[chosen] for p, a in columns.items()}))
        return (
            np.concatenate([numbers for numbers, _ in found]),
            {
                column.path: np.concatenate([columns[column.path] for _, columns in found])
                for column in self.writer.plan.columns
            },
        )

    def _show(self, block: int, items: Sequence[Any]) -> ActivationRows:
        rows: ActivationRows = self._loaded().extract(items)
        if rows.pictures:
            shown = {sample: png(picture) for sample, picture in rows.pictures.items()}
            save_pictures(self.writer.location, block, shown)
        return rows

    def _loaded(self) -> Any:
        if self._adapter is None:
            import torch

            # The same number of threads everywhere gives the same bytes everywhere.
            torch.set_num_threads(self._threads)
            worker_log().info("loads the model")
            begun = time.monotonic()
            self._adapter = self._load()
            worker_log().info(
                "model loaded in %.1f s, %d threads", time.monotonic() - begun, self._threads
            )
        return self._adapter

    def _arrays(self, rows: ActivationRows) -> tuple[dict[str, _Array], dict[str, _Array]]:
        """Activations and index of rows as the writer takes them."""
        activations = {
            name: _to_numpy(values, keep_bits=self.writer.plan.dtype == "bfloat16")
            for name, values in rows.activations.items()
        }
        return activations, {
            "sample": rows.sample,
            "position": rows.position,
            "observed": rows.observed,
        }


def _to_numpy(values: Any, *, keep_bits: bool) -> _Array:
    """A tensor as NumPy has it, which has no bfloat16: its bits, or the same numbers wider."""
    import torch

    if values.dtype != torch.bfloat16:
        array: _Array = values.numpy()
        return array
    bits: _Array = (values.view(torch.uint16) if keep_bits else values.float()).numpy()
    return bits


def write_activations(
    location: Location,
    plan: ActivationPlan,
    items: Callable[[int], Sequence[Any]],
    load: Callable[[], Any],
    *,
    pictures: bool = False,
    resources: ResourceSettings,
    progress: Progress = silent,
) -> ActivationSet:
    """Write an activation set, or what of it is missing or condemned, and return it sealed.

    Parameters
    ----------
    location : Location
        Where the set lies; every worker must reach it.
    plan : ActivationPlan
    items : callable
        The inputs of a block, by its number, as the adapter takes them.
    load : callable
        Loads the model adapter; called once in each worker, so it must travel there.
    pictures : bool
        Whether every block leaves pictures; those that a finished set lacks are made again.
    resources : ResourceSettings
        What each worker holds; the bytes written do not depend on how many there are.
    progress : callable
        Told the canonical rows staged so far, and all rows.

    Raises
    ------
    ValueError
        If a row is not finite, or a condemned shard does not come out as it was written.
    """
    try:
        found = ActivationSet(location)
    except NotSealed:
        pass
    else:
        _mend(found, items, load, resources, pictures=pictures)
        return found
    writer = ActivationWriter(location, plan)
    writer.prepare()
    blocks = writer.missing_blocks()
    shards = writer.missing_shards()
    sizes = {b: plan.blocks[b + 1] - plan.blocks[b] for b in range(plan.n_blocks)}
    done = plan.n_rows - sum(sizes[block] for block in blocks)
    progress(done, plan.n_rows)
    if shards:
        connect()
        with _extractors(location, plan, load, resources, max(len(blocks), 1)) as extractors:
            tasks = ((block, items(block)) for block in blocks)
            for _, rows in extractors.run("stage", tasks):
                done += rows
                progress(done, plan.n_rows)
            spare = ResourceSettings(cpus=resources.cpus)
            if worker_count(spare, len(shards)) <= len(extractors):
                # Who holds the model writes the shards too, so that nobody need be started.
                for _ in extractors.run("write", shards):
                    pass
                shards = []
        if shards:
            with _extractors(location, plan, load, spare, len(shards)) as writers:
                for _ in writers.run("write", shards):
                    pass
    writer.seal()
    return ActivationSet(location)


def _mend(
    activations: ActivationSet,
    items: Callable[[int], Sequence[Any]],
    load: Callable[[], Any],
    resources: ResourceSettings,
    *,
    pictures: bool,
) -> None:
    """Compute the condemned shards of a finished set again, and pictures that are not there.

    A shard's rows come from all over the inputs, so the model runs on each batch of inputs that
    has a row in it. Memory holds one shard at a time.
    """
    plan, location = activations.plan, activations.location
    condemned = read_condemned(location).shards
    unseen = missing_pictures(location, plan.n_blocks) if pictures else []
    if not condemned and not unseen:
        return
    writer = ActivationWriter(location, plan)
    connect()
    with _extractors(location, plan, load, resources, plan.n_blocks) as extractors:
        for _ in extractors.run("show", ((block, items(block)) for block in unseen)):
            pass
        for shard, paths in condemned.items():
            columns = {path: plan.column(path).empty(plan.shard_size(shard)) for path in paths}
            tasks = ((block, items(block), rows) for block, rows in _origins(plan, shard))
            for (block, *_), (numbers, found) in extractors.run("rows", tasks):
                within = plan.destinations(block)[numbers] - shard * plan.shard_rows
                for path, values in columns.items():
                    values[within] = found[path]
            writer.remake(shard, columns)


def _origins(plan: ActivationPlan, shard: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Blocks with rows in the shard, and these rows, counted from the block's beginning."""
    for block in range(plan.n_blocks):
        rows = np.flatnonzero(plan.destinations(block) // plan.shard_rows == shard)
        if len(rows):
            yield block, rows


def _extractors(
    location: Location,
    plan: ActivationPlan,
    load: Callable[[], Any],
    resources: ResourceSettings,
    tasks: int,
) -> Any:
    import ray

    extractor = ray.remote(**actor_options(resources))(_Extractor)
    return actor_pool(
        lambda: extractor.remote(load, location.url, plan, resources.cpus),
        worker_count(resources, tasks),
    )
