"""What orchestration costs: the wall-clock time of a run beside the seconds of its steps.

    python tests/benchmarks/overhead.py [sprites]

The recipe is run from its beginning by ``strata run``, in a store of its own. What the steps say
they took is their work, Ray's starts included; the rest is the check of the inputs before anything
starts, which tries the model on a few samples, and then the command line and Prefect (its
server and database, which start beside the check, task and flow runs, artifacts, assets, events).
The check and the starts inside steps are measured apart: connecting to Ray, and a new worker
process for each of the steps that use Ray, without and with the import of torch, which any process
of that kind must do. Rows:

- ``run``, ``steps``: the whole, and the sum over steps;
- ``check of inputs``: looking at model and inputs and trying the model, in a process of its own;
- ``Prefect and command line``: the rest of the run;
- ``connect to Ray``, ``start of workers``, ``import of torch``: once, and once per such step;
- ``orchestration``: Prefect and command line, connect, start of workers; with its share of the run.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "overhead.csv"
WITH_WORKERS = ("extract", "learn", "encode", "recover")
FIELDS = ("recipe", "what", "seconds", "share", "machine", "command")

CHECK = """
import sys, time
from flows.recipe import load_recipe
recipe = load_recipe(sys.argv[1], sys.argv[2:])
begun = time.perf_counter()
from compute.steps.plan import check
from compute.steps.proving import prove
prove(recipe, check(recipe), anew=True)
print(time.perf_counter() - begun)
"""

STARTS = """
import json, time
from compute.cluster import connect, disconnect
begun = time.perf_counter()
connect()
import ray
told = {"connect to Ray": time.perf_counter() - begun}
for name, text in (("bare", "pass"), ("torch", "import torch")):
    # An actor has a process of its own, as every step's workers have.
    @ray.remote(num_cpus=1)
    class Worker:
        def __init__(self): exec(text)
        def ready(self): return True
    begun = time.perf_counter()
    worker = Worker.remote()
    ray.get(worker.ready.remote())
    told[name] = time.perf_counter() - begun
    ray.kill(worker)
disconnect()
print(json.dumps(told))
"""


def timed_run(recipe, store, settings):
    """Wall-clock seconds of a run, and those of its steps by name."""
    command = [Path(sys.executable).with_name("strata"), "run", recipe, "--store", store]
    command += [part for setting in settings for part in ("--set", setting)]
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - begun
    references = Path(store).glob("*/*/reference.json")
    return wall, {r.parent.parent.name: json.loads(r.read_text())["seconds"] for r in references}


def starts():
    """Seconds of Ray's starts, each measured once in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-c", STARTS], check=True, capture_output=True, text=True
    ).stdout
    return json.loads(told.strip().splitlines()[-1])


def check(recipe, store, settings):
    """Seconds of the check that comes before a run."""
    command = [sys.executable, "-c", CHECK, recipe, f"store={store}", *settings]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(told.strip().splitlines()[-1])


def measure(recipe, settings=()):
    """Rows of the table: what, seconds, share of the run."""
    with tempfile.TemporaryDirectory() as store:
        wall, steps = timed_run(recipe, store, settings)
        checked = check(recipe, store, settings)
    ray = starts()
    n = len([step for step in steps if step in WITH_WORKERS])
    around = wall - sum(steps.values()) - checked
    rows = {
        "run": wall,
        "steps": sum(steps.values()),
        "check of inputs": checked,
        "Prefect and command line": around,
        "connect to Ray": ray["connect to Ray"],
        "start of workers": n * ray["bare"],
        "import of torch": n * max(0.0, ray["torch"] - ray["bare"]),
        "orchestration": around + ray["connect to Ray"] + n * ray["bare"],
    }
    return [
        {"what": what, "seconds": round(seconds, 2), "share": round(seconds / wall, 4)}
        for what, seconds in rows.items()
    ]


def main(arguments=None):
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="sprites")
    parser.add_argument("--set", action="append", default=[], help="as of `strata run`")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    run = {
        "recipe": options.recipe,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "command": " ".join(["python tests/benchmarks/overhead.py", *sys.argv[1:]]),
    }
    with options.results.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(run | row for row in measure(options.recipe, options.set))


if __name__ == "__main__":
    main()
