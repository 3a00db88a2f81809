"""Extraction, everything included, against a bare forward loop over the same inputs.

    python tests/benchmarks/extraction.py [--rows N] [--repeats R]

The bare loop calls the same layers of the same model (truncated after the last hook) on the same
batches with the same number of threads, without hooks, and throws the activations away; for a
diffusion model it is the pipeline itself, drawing the same prompts from the same noise. Extraction
is `compute.steps.extract.write_activations` on one Ray worker: hooks, conversion, staging,
shuffling, checksummed Zarr shards, sealing. The worker's start and the loading of the model, which
both sides pay once, are outside the clock of both: extraction is timed from its first block to its
seal. Writes ``results/extraction.csv``, ratios from one run, medians over the repeats.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "extraction.csv"
FIELDS = ("model", "rows", "threads", "bare_rows_s", "rows_s", "ratio", "machine", "command")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure and write; return the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="smollm2")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    settings = [*given.settings, f"extract.max_rows={given.rows}"]
    bare, ours, rows = [], [], 0
    for _ in range(given.repeats):
        rows, seconds = bare_loop(given.recipe, settings, given.threads)
        bare.append(rows / seconds)
        ours.append(rows / extraction(given.recipe, settings, given.threads))
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, bare, strict=True))
    row = {
        "model": given.recipe,
        "rows": rows,
        "threads": given.threads,
        "bare_rows_s": round(statistics.median(bare), 1),
        "rows_s": round(statistics.median(ours), 1),
        "ratio": round(ratio, 3),
        "machine": f"{platform.processor() or platform.machine()}, {platform.node()}",
        "command": " ".join(
            ["python tests/benchmarks/extraction.py", *(arguments or sys.argv[1:])]
        ),
    }
    others: list[dict[str, Any]] = []
    if given.results.is_file():
        with given.results.open(newline="") as stream:
            others = [old for old in csv.DictReader(stream) if old["model"] != given.recipe]
    given.results.parent.mkdir(exist_ok=True)
    with given.results.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        writer.writeheader()
        writer.writerows([*others, row])
    return [row]


def planned(recipe: str, settings: list[str]) -> tuple[Any, Any, Any]:
    """What reads the blocks of a recipe, what loads its model, and the plan of its rows."""
    from compute.inputs.sources import block_reader, model_loader
    from compute.steps.plan import activation_plan, prepare
    from flows.recipe import load_recipe

    chosen = load_recipe(recipe, settings)
    sources, found = prepare(chosen)
    samples = sources.arrange(chosen.extract)
    read = block_reader(samples, chosen.inputs, seed=chosen.extract.seed)
    load = model_loader(chosen.model, chosen.levels, chosen.extract, found.dtype)
    return read, load, activation_plan(chosen, found, samples, found.stored_dtype or "float16")


def bare_loop(recipe: str, settings: list[str], threads: int) -> tuple[int, float]:
    """Rows, and the seconds of a bare loop over them, in a process of its own."""
    import ray

    from compute.cluster import connect

    connect()
    task = ray.remote(num_cpus=threads, max_retries=0)(_bare)
    return ray.get(task.remote(recipe, settings, threads))


def _bare(recipe: str, settings: list[str], threads: int) -> tuple[int, float]:
    import torch

    torch.set_num_threads(threads)
    read, load, plan = planned(recipe, settings)
    adapter = load()
    blocks = [read(block) for block in range(plan.n_blocks)]
    run = _draw(adapter) if hasattr(adapter, "pipeline") else _read(adapter)
    run(blocks[0][: adapter.batch_size])
    begun = time.perf_counter()
    for block in blocks:
        for begin in range(0, len(block), adapter.batch_size):
            run(block[begin : begin + adapter.batch_size])
    return plan.n_rows, time.perf_counter() - begun


def _read(adapter: Any) -> Any:
    """The model's first layers on padded batches, as a plain loop would call them."""
    import torch

    decoder = adapter.model.base_model
    last = max(int(level.hookpoint.split(".")[1]) for level in adapter.levels)
    decoder.layers = decoder.layers[: last + 1]

    @torch.inference_mode()
    def run(batch: Any) -> None:
        longest = max(len(context.tokens) for context in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, context in enumerate(batch):
            ids[row, : len(context.tokens)] = torch.as_tensor(context.tokens)
        decoder(input_ids=ids, use_cache=False)

    return run


def _draw(adapter: Any) -> Any:
    """The pipeline itself."""
    import torch

    def run(batch: Any) -> None:
        adapter.pipeline(
            [prompt.text for prompt in batch],
            num_inference_steps=adapter.steps,
            guidance_scale=adapter.guidance,
            generator=[torch.Generator().manual_seed(prompt.seed) for prompt in batch],
            output_type="np",
        )

    return run


def extraction(recipe: str, settings: list[str], threads: int) -> float:
    """Seconds from the first block's end to the seal, and that block's share."""
    from compute.settings import ResourceSettings
    from compute.steps.extract import write_activations
    from storage.locations import Location

    read, load, plan = planned(recipe, settings)
    marks: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_activations(
            Location(folder),
            plan,
            read,
            load,
            resources=ResourceSettings(workers=1, cpus=threads),
            progress=lambda done, _: marks.append((time.perf_counter(), done)),
        )
        ended = time.perf_counter()
    (first, rows), total = marks[1], plan.n_rows
    return (ended - first) * total / (total - rows)


if __name__ == "__main__":
    for found in main():
        sys.stdout.write(f"{found['model']}: {found['ratio']} of a bare loop\n")
