"""Reading shuffled batches: the loader against a raw memory map and SAELens' activation cache.

    python tests/benchmarks/loader_speed.py

All contenders give batches of 4,096 rows of 256 float16 numbers, from the page cache, and read
every row once; they take turns, so that a busy machine slows all of them alike.

- ``memmap``: the same bytes as one raw file, copied batch by batch in file order by NumPy. It
  neither shuffles nor checks anything; it is the most that a machine can give.
- ``strata``: ``ActivationLoader``: shuffled, every byte checked.
- ``strata, no prefetch``: the store's rows shard by shard, in order, on one thread.
- ``zarr`` and ``zarr + zarrs``: the same arrays, shard by shard, through Zarr's own codec pipeline
  and the Rust one.
- ``saelens``: its reader of a cached activation dataset (``ActivationsStore`` with
  ``use_cached_activations``) with its mixing buffer on, at several buffer sizes; the best counts.
"""

import argparse
import csv
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from storage.locations import Location
from storage.tables.activations import ActivationPlan, ActivationSet, ActivationWriter, LevelPlan
from storage.tables.loader import ActivationLoader

RESULTS = Path(__file__).parent / "results" / "loader_speed.csv"
WIDTH, BATCH, SHARD, CONTEXT = 256, 4096, 16_384, 128


def write_set(folder: Path, n_rows: int) -> ActivationSet:
    plan = ActivationPlan(
        fingerprint="benchmark",
        levels=(LevelPlan(name="a", width=WIDTH),),
        dtype="float16",
        n_train=n_rows,
        n_rows=n_rows,
        blocks=tuple(range(0, n_rows + 1, SHARD)),
        shard_rows=SHARD,
        chunk_rows=1024,
        seed=0,
    )
    writer = ActivationWriter(Location(str(folder)), plan)
    writer.prepare()
    for block in range(plan.n_blocks):
        number = np.arange(SHARD)
        x = np.random.default_rng(block).normal(size=(SHARD, WIDTH)).astype(np.float16)
        writer.stage(block, {"a": x}, {"sample": number, "position": number, "observed": number})
    for shard in plan.shards:
        writer.write_shard(shard)
    writer.seal()
    return ActivationSet(writer.location)


def raw_file(stored: ActivationSet, path: Path) -> None:
    with path.open("wb") as file:
        for start, stop in stored.plan.shard_bounds(stored.plan.split("all")):
            file.write(stored.rows("levels/a", start, stop).tobytes())


def memmap(path: Path, n_rows: int):
    mapped = np.memmap(path, mode="r", dtype="<f2", shape=(n_rows, WIDTH))

    def read() -> int:
        rows = 0
        for start in range(0, n_rows, BATCH):
            rows += len(np.array(mapped[start : start + BATCH]))
        return rows

    return read


def strata(stored: ActivationSet):
    epoch = itertools.count()

    def read() -> int:
        loader = ActivationLoader(stored, batch_size=BATCH, seed=next(epoch))
        batches = itertools.islice(iter(loader), len(stored) // BATCH)
        return sum(len(batch["a"]) for batch in batches)

    return read


def in_order(stored: ActivationSet):
    def read() -> int:
        bounds = stored.plan.shard_bounds(stored.plan.split("all"))
        return sum(len(stored.rows("levels/a", start, stop)) for start, stop in bounds)

    return read


def through_zarr(stored: ActivationSet, pipeline: str | None):
    import zarr

    store = (stored.location / "rows" / "levels/a").zarr_store(read_only=True)
    with zarr.config.set({"codec_pipeline.path": pipeline} if pipeline else {}):
        array = zarr.open_array(store, mode="r")

    def read() -> int:
        bounds = stored.plan.shard_bounds(stored.plan.split("all"))
        return sum(len(array[start:stop]) for start, stop in bounds)

    return read


def saelens(stored: ActivationSet, folder: Path, n_buffer: int):
    """SAELens' own reader of its own format, holding the same numbers."""
    import datasets
    import torch
    from sae_lens.training.activations_store import ActivationsStore

    hook, n_rows = "blocks.0.hook_resid_post", len(stored)
    if not folder.exists():
        features = datasets.Features(
            {
                hook: datasets.Array2D(shape=(CONTEXT, WIDTH), dtype="float16"),
                "token_ids": datasets.Sequence(datasets.Value("int32"), length=CONTEXT),
            }
        )

        def rows():
            for start, stop in stored.plan.shard_bounds(stored.plan.split("all")):
                contexts = stored.read("a", start, stop).reshape(-1, CONTEXT, WIDTH)
                for context in contexts:
                    yield {hook: context, "token_ids": np.zeros(CONTEXT, dtype=np.int32)}

        cache = str(folder) + "-cache"
        made = datasets.Dataset.from_generator(rows, features=features, cache_dir=cache)
        made.save_to_disk(str(folder))

    def read() -> int:
        store = ActivationsStore(
            model=None,
            dataset=datasets.Dataset.from_dict({"tokens": [[0] * CONTEXT] * 8}),
            streaming=False,
            hook_name=hook,
            hook_head_index=None,
            context_size=CONTEXT,
            d_in=WIDTH,
            n_batches_in_buffer=n_buffer,
            total_training_tokens=n_rows,
            store_batch_size_prompts=BATCH // CONTEXT,
            train_batch_size_tokens=BATCH,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device("cpu"),
            dtype="float16",
            cached_activations_path=str(folder),
        )
        seen = 0
        for batch in itertools.islice(iter(store), n_rows // BATCH):
            seen += len(batch)
        return seen

    return read


def main(n_rows: int = 32 * SHARD, repeats: int = 7, results: Path = RESULTS) -> list[dict]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stored = write_set(folder / "set", n_rows)
        raw_file(stored, folder / "raw")
        contenders = {
            "memmap": memmap(folder / "raw", n_rows),
            "strata": strata(stored),
            "strata, no prefetch": in_order(stored),
            "zarr": through_zarr(stored, None),
            "zarr + zarrs": through_zarr(stored, "zarrs.ZarrsCodecPipeline"),
            **{
                f"saelens, buffer {n}": saelens(stored, folder / "saelens", n)
                for n in (64, 256, 1024)
            },
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, read in contenders.items():
                begun = time.perf_counter()
                # A mixing buffer may keep a last few rows to itself.
                rows = read()
                seconds[name].append((time.perf_counter() - begun) * n_rows / rows)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best = min(time for name, time in medians.items() if name.startswith("saelens"))
    rows_out = [
        {
            "contender": name,
            "rows": n_rows,
            "seconds": round(time, 4),
            "gb_per_s": round(n_rows * WIDTH * 2 / time / 1e9, 3),
            "of_memmap": round(medians["memmap"] / time, 3),
            "times_saelens": round(best / time, 2),
        }
        for name, time in medians.items()
    ]
    results.parent.mkdir(exist_ok=True)
    with results.open("w", newline="") as file:
        file.write(
            f"# python tests/benchmarks/loader_speed.py; medians of {repeats}, taking turns\n"
        )
        file.write(f"# {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, ")
        file.write(f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, ")
        file.write(f"NumPy {np.__version__}\n")
        table = csv.DictWriter(file, list(rows_out[0]))
        table.writeheader()
        table.writerows(rows_out)
    return rows_out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32 * SHARD)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    for row in main(options.rows, options.repeats):
        sys.stdout.write(f"{row}\n")
