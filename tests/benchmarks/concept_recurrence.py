"""Do concepts of a trained model come again from another seed, and at what price?

    python tests/benchmarks/concept_recurrence.py --store .strata/extract/RUN [--levels layer-15] \\
        [--concepts 512] [--methods …] [--k 4 8 16 32] [--steps 1000 2000] [--seeds 2]

Takes the activations that a run has recorded. Every method is fitted with independent seeds, each
to all rows for training whose norms are ordinary. ``agreement`` is the mean |cosine| of concepts
of pairs of seeds under the best matching, one without a match counting 0, and ``share`` the part of
them above .9: both in coordinates whitened on all rows, since plain ones share what all activations
share; ``plain`` is the mean in plain ones. ``l0`` and ``explained_variance`` (of plain activations)
are of held-out rows, ``cpu_seconds`` of one fit. "random rows" and "random directions" are what
agreement is without a method. Dictionaries are trained at every k and number of steps that is
asked for, SAELens' at its best of three learning rates, by explained variance at the first seed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import identifiability
import numpy as np
import pandas as pd
import torch
from identifiability import RESULTS

from compute.dictionaries import fit_dictionary
from compute.dictionaries.evaluation import recurrence
from compute.selection import StreamedSelectionModel
from compute.selection.continuous.coordinates import White
from compute.settings import LearnSettings
from compute.steps.learn import norm_bounds
from storage.locations import Location
from storage.tables.loader import kept_rows
from storage.tables.opening import open_table

FIELDS = (
    "level", "method", "concepts", "k", "steps", "seeds", "found", "l0", "explained_variance",
    "agreement", "share", "plain", "cpu_seconds",
)  # fmt: skip
DICTIONARIES = ("batchtopk", "topk", "saelens topk")
NULLS = ("random directions", "random rows")
METHODS = ("hierarchical", *DICTIONARIES, *NULLS)
RATES = (3e-4, 1e-3, 3e-3)
BATCH = 2048


class Rows(NamedTuple):
    """Rows for training and held out of a level, plain and white, and its white coordinates."""

    train: torch.Tensor
    held_out: torch.Tensor
    white: White


class Fit(NamedTuple):
    """Directions among plain activations, and what held-out rows are written as."""

    directions: np.ndarray
    l0: float
    written: torch.Tensor | None


def recorded(store: str, level: str, most_rows: int) -> Rows:
    table = open_table(Location(store))
    bounds = norm_bounds(table, LearnSettings().outlier_norm)
    n = table.plan.n_train
    parts = []
    for start, stop in ((0, min(n, most_rows)), (n, len(table))):
        kept = kept_rows(table, bounds, start, stop)
        parts.append(torch.from_numpy(table.read(level, start, stop)[kept].astype(np.float32)))
    return Rows(*parts, White.of_blocks(torch.split(parts[0], 8192)))


def hierarchical(rows: Rows, concepts: int, k: int, steps: int, seed: int) -> Fit:
    """One level by itself; it chooses its own number of active concepts."""
    model = StreamedSelectionModel((concepts,), seed=seed).fit([rows.train])
    dictionary = model.dictionaries_[0]
    codes = torch.from_numpy(model.encode(1, rows.held_out))
    active = float((codes > 0).sum(1).double().mean())
    return Fit(dictionary.directions.numpy(), active, dictionary.decode(codes))


def trained(architecture: str) -> Callable[[Rows, int, int, int, int], Fit]:
    """A dictionary of white rows."""

    def fit(rows: Rows, concepts: int, k: int, steps: int, seed: int) -> Fit:
        white = rows.white
        dictionary = fit_dictionary(
            white.rows(rows.train), architecture=architecture, n_concepts=concepts, k=k,
            steps=steps, seed=seed, batch_size=BATCH,
        )  # fmt: skip
        codes = dictionary.encode(white.rows(rows.held_out))
        written = dictionary.decode(codes) @ white.back + white.mean
        directions = (dictionary.directions @ white.back).numpy()
        return Fit(directions, float((codes > 0).sum(1).double().mean()), written)

    return fit


def saelens(rows: Rows, concepts: int, k: int, steps: int, seed: int, rate: float) -> Fit:
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    mean = rows.train.mean(0)
    scale = float((rows.train - mean).square().mean().sqrt())
    x = (rows.train - mean) / scale
    torch.manual_seed(seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=concepts, k=k))
    optimiser = torch.optim.Adam(sae.parameters(), lr=rate)
    idle = torch.zeros(concepts)
    for step in range(steps):
        batch = x[torch.randint(len(x), (BATCH,))]
        optimiser.param_groups[0]["lr"] = rate * min(1.0, 5 * (1 - step / steps))
        out = sae.training_forward_pass(TrainStepInput(batch, {}, idle > 200, step, False))
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        idle = torch.where((out.feature_acts > 0).any(0), 0.0, idle + 1)
    with torch.no_grad():
        codes = sae.encode((rows.held_out - mean) / scale)
        written = sae.decode(codes) * scale + mean
    active = float((codes > 0).sum(1).double().mean())
    return Fit(sae.W_dec.detach().numpy(), active, written)


def null(method: str) -> Callable[[Rows, int, int, int, int], Fit]:
    """Directions that no method has chosen, random in white coordinates."""

    def fit(rows: Rows, concepts: int, k: int, steps: int, seed: int) -> Fit:
        generator = torch.Generator().manual_seed(seed)
        if method == "random rows":
            chosen = torch.randperm(len(rows.train), generator=generator)[:concepts]
            directions = rows.train[chosen] - rows.white.mean
        else:
            white = torch.randn(concepts, rows.white.into.shape[1], generator=generator)
            directions = white @ rows.white.back
        return Fit(directions.numpy(), float("nan"), None)

    return fit


def explained(rows: Rows, written: torch.Tensor | None) -> float:
    if written is None:
        return float("nan")
    x = rows.held_out
    return float(1 - (x - written).square().sum() / (x - x.mean(0)).square().sum())


def measured(rows: Rows, method: str, concepts: int, k: int, steps: int, seeds: int) -> dict:
    """A method's row of the table, without the columns that name it."""
    if method == "hierarchical":
        fit = hierarchical
    elif method == "saelens topk":
        first = [saelens(rows, concepts, k, steps, 0, rate) for rate in RATES]
        best = max(range(len(RATES)), key=lambda i: explained(rows, first[i].written))

        def fit(rows: Rows, concepts: int, k: int, steps: int, seed: int) -> Fit:
            return saelens(rows, concepts, k, steps, seed, RATES[best])
    else:
        fit = null(method) if method in NULLS else trained(method)
    began = time.process_time()
    fits = [fit(rows, concepts, k, steps, seed) for seed in range(seeds)]
    seconds = (time.process_time() - began) / seeds
    into = rows.white.into.numpy()
    white, plain = [], []
    for a, b in combinations([own.directions for own in fits], 2):
        larger, smaller = sorted((a, b), key=len, reverse=True)
        white.append(recurrence(larger @ into, [smaller @ into]))
        plain.append(recurrence(larger, [smaller]))
    return {
        "found": float(np.mean([len(own.directions) for own in fits])),
        "l0": float(np.mean([own.l0 for own in fits])),
        "explained_variance": float(np.mean([explained(rows, own.written) for own in fits])),
        "agreement": float(np.concatenate(white).mean()),
        "share": float((np.concatenate(white) > 0.9).mean()),
        "plain": float(np.concatenate(plain).mean()),
        "cpu_seconds": seconds,
    }


def settings_of(options: argparse.Namespace) -> Iterator[tuple[str, str, int, int, int]]:
    """(level, method, concepts, k, steps) of every row that is asked for."""
    for level in options.levels:
        for method in options.methods:
            several = method in DICTIONARIES
            for k in options.k if several else (0,):
                for steps in options.steps if several else (0,):
                    yield level, method, options.concepts, k, steps


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True, help="a sealed activation set")
    parser.add_argument("--levels", nargs="+", default=["layer-15"])
    parser.add_argument("--concepts", type=int, default=512)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--k", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--steps", nargs="+", type=int, default=[1000, 2000])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2_000_000, help="most rows for training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "concept_recurrence.csv")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recorded_of: dict[str, Rows] = {}

    def measure(level: str, method: str, concepts: int, k: int, steps: int) -> dict:
        if level not in recorded_of:
            recorded_of[level] = recorded(options.store, level, options.rows)
        row = dict(zip(FIELDS[:5], (level, method, concepts, k, steps), strict=True))
        row |= {"seeds": options.seeds}
        row |= measured(recorded_of[level], method, concepts, k, steps, options.seeds)
        told = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()]
        sys.stdout.write(" ".join(told) + "\n")
        sys.stdout.flush()
        return row

    rows = pd.read_csv(options.out, comment="#").to_dict("records") if options.out.is_file() else []
    done = {tuple(row[name] for name in FIELDS[:5]) for row in rows}
    for asked in settings_of(options):
        if asked not in done:
            rows.append(measure(*asked))
            identifiability.write(options.out, rows, FIELDS)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
