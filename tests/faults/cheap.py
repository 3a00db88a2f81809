"""An extraction whose model costs nothing, so that a fault test takes seconds.

Run as a script, it is a driver to be killed:

    python -m tests.faults.cheap URL FOLDER [BLOCKS [NODES]]

`FOLDER` keeps what happened: one file per run of the model on a block, one per shard written, and
the process ids of the workers. Faults are armed there by files that say what to do once.
"""

import functools
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from storage.locations import Location
from storage.tables.activations import ActivationPlan, ActivationWriter, LevelPlan

N_BLOCKS, BLOCK_ROWS, SHARD_ROWS = 12, 100, 128


def cheap_plan(n_blocks=N_BLOCKS):
    bounds = tuple(range(0, n_blocks * BLOCK_ROWS + 1, BLOCK_ROWS))
    return ActivationPlan(
        fingerprint="cheap",
        levels=(LevelPlan(name="low", width=8), LevelPlan(name="high", width=5)),
        dtype="float16",
        n_train=n_blocks * 3 // 4 * BLOCK_ROWS,
        n_rows=bounds[-1],
        blocks=bounds,
        shard_rows=SHARD_ROWS,
        chunk_rows=32,
        seed=2,
    )


def items(block):
    """Ten items a block, of ten rows each."""
    return [block * 10 + i for i in range(10)]


class CheapAdapter:
    """Rows from a random generator that is seeded by the item."""

    batch_size = 4

    def __init__(self, folder, pause):
        import ray

        self.folder, self.pause = Path(folder), pause
        (self.folder / f"worker-{os.getpid()}").write_text(ray.get_runtime_context().get_node_id())

    def rows_of(self, item):
        return 10

    def extract(self, items):
        import torch

        (self.folder / f"ran-{items[0]}-{len(items)}-{uuid.uuid4().hex}").touch()
        time.sleep(self.pause)
        if armed(self.folder, "kill-in-extract"):
            os.kill(os.getpid(), signal.SIGKILL)
        rows = [np.random.default_rng(item).normal(size=(10, 13)) for item in items]
        values = torch.from_numpy(np.concatenate(rows).astype(np.float32))
        number = np.arange(10 * len(items))
        return SimpleNamespace(
            activations={"low": values[:, :8], "high": values[:, 8:]},
            sample=np.repeat(items, 10),
            position=number % 10,
            observed=np.repeat(items, 10) * 10 + number % 10,
            pictures={},
        )


def armed(folder, fault):
    """Whether this fault is to happen now; it happens once."""
    try:
        (folder / fault).unlink()
    except FileNotFoundError:
        return False
    return True


def load(folder, pause=0.0):
    """Load the adapter, and watch this worker's writing of shards."""
    folder = Path(folder)
    store = ActivationWriter._store

    def watched(self, shard, arrays):
        (folder / f"wrote-{shard}-{uuid.uuid4().hex}").touch()
        if armed(folder, "kill-in-shard"):
            store(self, shard, dict(list(arrays.items())[:2]))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)
        store(self, shard, arrays)

    ActivationWriter._store = watched
    return CheapAdapter(folder, pause)


def write(url, folder, *, workers=1, pause=0.0, n_blocks=N_BLOCKS):
    from compute.settings import ResourceSettings
    from compute.steps.extract import write_activations

    return write_activations(
        Location(url),
        cheap_plan(n_blocks),
        items,
        functools.partial(load, str(folder), pause),
        resources=ResourceSettings(workers=workers, cpus=1),
    )


def undisturbed(url, n_blocks=N_BLOCKS):
    """Write the set here and now, by no worker, with nothing that could go wrong."""
    writer = ActivationWriter(Location(url), cheap_plan(n_blocks))
    writer.prepare()
    for block in range(n_blocks):
        rows = np.concatenate(
            [np.random.default_rng(item).normal(size=(10, 13)) for item in items(block)]
        ).astype(np.float32)
        sample = np.repeat(items(block), 10)
        position = np.arange(BLOCK_ROWS) % 10
        index = {"sample": sample, "position": position, "observed": sample * 10 + position}
        writer.stage(block, {"low": rows[:, :8], "high": rows[:, 8:]}, index)
    for shard in writer.plan.shards:
        writer.write_shard(shard)
    writer.seal()
    return everything(url)


def everything(url):
    """All bytes of a store; on a disk, also of files that no store would list."""
    location = Location(url)
    root = location.local_path
    if root is None:
        return {path: location.get(path) for path in location.walk()}
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def happened(folder, what):
    """How often each block was run, or each shard written, by number."""
    counts = {}
    for path in Path(folder).glob(f"{what}-*"):
        number = int(path.name.split("-")[1])
        counts[number] = counts.get(number, 0) + 1
    return counts


def main(url, folder, n_blocks=N_BLOCKS, nodes=0):
    """Write the set; on a cluster of this many nodes of one CPU, if any are asked for."""
    if nodes:
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        for _ in range(int(nodes) - 1):
            cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
    try:
        write(url, folder, workers=max(1, int(nodes)), pause=0.03, n_blocks=int(n_blocks))
    finally:
        if nodes:
            ray.shutdown()
            cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
