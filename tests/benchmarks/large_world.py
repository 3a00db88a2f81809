"""Directions of a large world from its activations: how well, how soon, and the same every time?

    python tests/benchmarks/large_world.py [--rows 200000] [--steps 1500] [--seeds 5]

A `vectors` world of 256 parts in 128 dimensions of which about 8 are active. Every method takes
the same number of steps of 1,024 rows. The seed of a method is changed, the world stays: a row of
``results/large_world.csv`` is one method and seed, with the MCC of its directions (mean |cosine|
under the best matching; what was not found counts 0) and its seconds on the clock; ``consistency``
is the mean pairwise MCC of a method's seeds.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from identifiability import METHODS as ALL
from identifiability import RESULTS, Problem, Scale, cpu

from compute.dictionaries.metrics import consistency, match_directions
from compute.worlds import SelectionWorld

METHODS = ("independent", "saelens topk", "saelens matryoshka", "random decoder")
FIELDS = ("method", "seed", "mcc", "seconds", "consistency")
PARTS, DIM, ACTIVE = 256, 128, 8


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parts", type=int, default=PARTS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    world = SelectionWorld.vectors(
        sizes=(options.parts, options.parts // 4), dim=DIM, density=ACTIVE / options.parts, seed=0
    )
    x = world.sample(options.rows, seed=1).activations[0]
    rows = []
    for method in options.methods:
        own, found = [], []
        for seed in range(options.seeds):
            problem = Problem([x], (options.parts,), [ACTIVE], seed, Scale(steps=options.steps))
            begun = time.perf_counter()
            found.append(ALL[method](problem).directions[0])
            seconds = time.perf_counter() - begun
            mcc = float(match_directions(found[-1], world.directions[0]).cosines.sum())
            own.append({"method": method, "seed": seed, "mcc": mcc / options.parts})
            own[-1]["seconds"] = seconds
        same = consistency(found) if len(found) > 1 else float("nan")
        own = [row | {"consistency": same} for row in own]
        rows += own
        told = [f"{np.mean([r[name] for r in own]):.4f}" for name in FIELDS[2:]]
        sys.stdout.write(f"{method:20} mcc {told[0]}  seconds {told[1]}  consistency {told[2]}\n")
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "large_world.csv").open("w", newline="") as file:
        file.write(f"# python {' '.join(sys.argv)}\n# {platform.platform()}, {cpu()}\n")
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in rows:
            told = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(told)
    return rows


if __name__ == "__main__":
    main()
