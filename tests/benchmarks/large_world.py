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
import sys
import time
from pathlib import Path

import identifiability
import numpy as np
import torch
from identifiability import METHODS as ALL
from identifiability import RESULTS, Problem, Scale

from compute.dictionaries.evaluation import consistency, match_directions
from compute.worlds import SelectionWorld

METHODS = ("independent", "saelens topk", "saelens matryoshka", "random decoder")
FIELDS = ("method", "seed", "mcc", "seconds", "consistency")
PARTS, DIM, ACTIVE = 256, 128, 8


def drawn(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """True directions (parts, d) of a world, and activations (rows, d) drawn from it."""
    world = SelectionWorld.vectors(
        sizes=(options.parts, options.parts // 4),
        dim=DIM,
        density=options.active / options.parts,
        seed=0,
    )
    return world.directions[0], world.sample(options.rows, seed=1).activations[0]


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--parts", type=int, default=PARTS)
    parser.add_argument("--active", type=int, default=ACTIVE)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    truth, x = drawn(options)
    rows = []
    for method in options.methods:
        own, found = [], []
        for seed in range(options.seeds):
            problem = Problem(
                [x], (options.parts,), [options.active], seed, Scale(steps=options.steps)
            )
            begun = time.perf_counter()
            found.append(ALL[method](problem).directions[0])
            seconds = time.perf_counter() - begun
            mcc = float(match_directions(found[-1], truth).cosines.sum()) / options.parts
            own.append({"method": method, "seed": seed, "mcc": mcc, "seconds": seconds})
        same = consistency(found) if len(found) > 1 else float("nan")
        own = [row | {"consistency": same} for row in own]
        rows += own
        told = [f"{np.mean([r[name] for r in own]):.4f}" for name in FIELDS[2:]]
        sys.stdout.write(f"{method:20} mcc {told[0]}  seconds {told[1]}  consistency {told[2]}\n")
    identifiability.write(options.out / "large_world.csv", rows, FIELDS)
    return rows


if __name__ == "__main__":
    main()
