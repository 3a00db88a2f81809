"""Peak memory of extraction and of reading, at 20,000 and at 400,000 rows.

    python tests/benchmarks/memory.py

Each measurement is a process of its own whose peak resident size the kernel reports. The worker of
an extraction is run here without Ray, so that it is the only thing in its process: blocks are
staged, shards are written, the set is sealed. The driver of a real run holds no rows at all.

- ``extraction``: write 3 levels of 576 numbers a row from an adapter that costs nothing.
- ``loader``: two epochs of shuffled batches of one level.
- ``statistics``: mean and covariance of one level with Dask.
- ``doctor``: every byte checked.
"""

import argparse
import csv
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from storage.locations import Location
from storage.tables.activations import ActivationPlan, ActivationSet, ActivationWriter, LevelPlan

RESULTS = Path(__file__).parent / "results" / "memory.csv"
SIZES = (20_000, 400_000)
TASKS = ("extraction", "loader", "statistics", "doctor")
LEVELS, WIDTH, BLOCK, SHARD = ("low", "middle", "high"), 576, 4096, 8192


def plan_of(n_rows: int) -> ActivationPlan:
    return ActivationPlan(
        fingerprint="benchmark",
        levels=tuple(LevelPlan(name=name, width=WIDTH) for name in LEVELS),
        dtype="bfloat16",
        n_train=n_rows,
        n_rows=n_rows,
        blocks=(*range(0, n_rows, BLOCK), n_rows),
        shard_rows=SHARD,
        chunk_rows=1024,
        seed=0,
    )


def extraction(url: str, n_rows: int) -> None:
    plan = plan_of(n_rows)
    writer = ActivationWriter(Location(url), plan)
    writer.prepare()
    for block in writer.missing_blocks():
        number = np.arange(plan.blocks[block], plan.blocks[block + 1])
        rng = np.random.default_rng(block)
        rows = {
            name: rng.normal(size=(len(number), WIDTH)).astype(np.float32).view("<u4") >> 16
            for name in LEVELS
        }
        rows = {name: bits.astype("<u2") for name, bits in rows.items()}
        writer.stage(block, rows, {"sample": number, "position": number, "observed": number})
    for shard in writer.missing_shards():
        writer.write_shard(shard)
    writer.seal()


def loader(url: str, n_rows: int) -> None:
    from storage.tables.loader import ActivationLoader

    batches = iter(
        ActivationLoader(ActivationSet(Location(url)), levels=["low"], batch_size=4096, seed=0)
    )
    for _ in range(max(1, 2 * n_rows // 4096)):
        next(batches)


def statistics(url: str, n_rows: int) -> None:
    from storage.tables.statistics import moments

    moments(ActivationSet(Location(url)), "low")


def doctor(url: str, n_rows: int) -> None:
    from storage.care.doctor import find_damage

    damage = find_damage(ActivationSet(Location(url)))
    if damage:
        raise SystemExit(str(damage))


def measured(task: str, url: str, n_rows: int) -> int:
    """Peak resident bytes of a process that does this and nothing else."""
    command = [sys.executable, __file__, "--task", task, "--url", url, "--sizes", str(n_rows)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def main(sizes: tuple[int, ...] = SIZES, results: Path = RESULTS) -> list[dict]:
    peaks: dict[str, list[int]] = {task: [] for task in TASKS}
    for n_rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for task in TASKS:
                peaks[task].append(measured(task, folder + "/set", n_rows))
    rows = [
        {
            "task": task,
            "rows": n_rows,
            "peak_mb": round(peak / 1e6, 1),
            "of_first": round(peak / peaks[task][0], 3),
        }
        for task in TASKS
        for n_rows, peak in zip(sizes, peaks[task], strict=True)
    ]
    results.parent.mkdir(exist_ok=True)
    with results.open("w", newline="") as file:
        file.write("# python tests/benchmarks/memory.py; peak resident size of a process each\n")
        file.write(f"# {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, ")
        file.write(f"Python {platform.python_version()}, NumPy {np.__version__}\n")
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--url")
    options = parser.parse_args()
    if options.task:
        globals()[options.task](options.url, options.sizes[0])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sys.stdout.write(f"{peak}\n")
    else:
        for row in main(tuple(options.sizes)):
            sys.stdout.write(f"{row}\n")
