"""Many nightly runs in a row on one stack: what grows?

    python tests/benchmarks/soak.py --runs 30

Starts a stack by `strata up` in a temporary folder and submits one run after the other through the
API, each with another seed of learning, so that each publishes a version. After every run it notes
the memory of the services (unique set size, so that shared pages count nowhere), their processes,
the files below the folder of temporary files that they were given and below Ray's, and how many
concepts of the version before were found again.

A series is called flat if the median of its last third is at most a tenth above that of its first
third, the first run left out, in which everything is loaded.
"""

import argparse
import csv
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from storage.artifacts import Registry
from tests.live import LiveStack, wait_until
from tests.tiny import make_model, make_texts, tiny_values

RESULTS = Path(__file__).parent / "results" / "soak.csv"
SERVICES = ("server", "worker", "ray")
GROWING = ("server_mb", "worker_mb", "ray_mb", "processes", "temporary_files", "ray_files")


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def megabytes(processes: list[psutil.Process]) -> float:
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().uss
        except psutil.NoSuchProcess:
            continue
    return round(total / 2**20, 1)


def files_below(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def soak(stack: LiveStack, temporary: Path, ray_folder: Path, n_runs: int) -> list[dict]:
    registry = Registry(f"{stack.store}/artifacts")
    rows = []
    for number in range(1, n_runs + 1):
        begun = time.monotonic()
        run = stack.submit(f"learn.seed={number}")
        state = stack.wait(run, seconds=1200)
        seconds = time.monotonic() - begun
        # The processes of a run that has ended need a moment to end themselves.
        wait_until(lambda: not stack.service("worker").children(), 120)
        time.sleep(2)
        families = {name: family(stack.service(name)) for name in SERVICES}
        versions = registry.versions("tiny")
        continuity = registry.load("tiny").manifest.metrics["continuity"]
        rows.append(
            {"run": number, "state": state, "seconds": round(seconds, 1)}
            | {f"{name}_mb": megabytes(found) for name, found in families.items()}
            | {
                "processes": sum(map(len, families.values())),
                "temporary_files": files_below(temporary),
                "ray_files": files_below(ray_folder),
                "versions": len(versions),
                "kept_share": continuity.get("kept_share", ""),
            }
        )
    return rows


def growth(rows: list[dict], column: str) -> float:
    """The median of the last third, of that of the first, the first run left out."""
    values = [row[column] for row in rows[1:]]
    third = max(1, len(values) // 3)
    first = statistics.median(values[:third])
    return statistics.median(values[-third:]) / first if first else float(values[-1] == 0)


def main(n_runs: int = 30, results: Path = RESULTS) -> list[dict]:
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    # Ray's sockets lie below it, whose paths must be short.
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-"))
    temporary = folder / "tmp"
    temporary.mkdir()
    try:
        values = tiny_values(make_model(folder / "model"), make_texts(folder / "texts"))
        environment = {"TMPDIR": str(temporary), "RAY_TMPDIR": str(ray_folder)}
        stack = LiveStack(folder, values, environment=environment)
        with stack.running():
            stack.pause_schedules()
            rows = soak(stack, temporary, ray_folder, n_runs)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(ray_folder, ignore_errors=True)
    results.parent.mkdir(exist_ok=True)
    with results.open("w", newline="") as stream:
        told = ", ".join(f"{column} {growth(rows, column):.3f}" for column in GROWING)
        stream.write(f"# python tests/benchmarks/soak.py --runs {n_runs}; of the first: {told}\n")
        stream.write(f"# {platform.machine()}, {psutil.cpu_count()} CPUs, busy with other work\n")
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    main(arguments.runs, arguments.results)
