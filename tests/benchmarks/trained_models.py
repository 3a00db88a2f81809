"""Concepts of trained models whose world is known, scored against it.

    python tests/benchmarks/trained_models.py [--models grammar sprites] [--methods …] [--seeds 3]

- ``grammar``: a GPT-2 trained for every seed's world (`compute/models/own/grammar_model.py`);
  the residual stream after each block against the symbol that stands at a position, the phrase and
  the sentence that are complete there.
- ``sprites``: the project's own StableDiffusionPipeline; the place and moments of
  ``unlearning.py``, codes averaged over the patches of a slot, against its parts and colour at the
  lowest level, and its object and colour at the others. A seed draws other captions.

A score is the mean over a level's true variables of the |correlation| with the concept that is
matched to it, one to one. All methods get the same rows, the same number of concepts and the same
number of active ones; they and their settings are those of ``identifiability.py``. Fitted on one
half of the samples, scored on the other. Rows of ``results/trained_models.csv`` that are there are
not computed again.

``linear probe`` is no rival but a bound: least squares on the true variables themselves, which is
the most that any linear reading of the activations can be correlated with them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import identifiability
import numpy as np
import torch
from identifiability import RESULTS, Problem, Scale
from scipy.optimize import linear_sum_assignment

from compute.models.own.grammar_model import grammar_activations, grammar_world, train_grammar_model
from compute.models.own.training_settings import GrammarSettings
from compute.selection.continuous.level import least_squares
from storage.locations import Location

FIELDS = ("model", "method", "seed", "level_1", "level_2", "level_3", "cpu_seconds")
PROBE = "linear probe"
METHODS = (
    "hierarchical",
    "streamed",
    "uncoupled",
    "independent, whitened",
    "independent",
    "saelens topk",
    "random decoder",
    "ica",
    PROBE,
)
# Texts of a grammar, and captions of sprites.
TEXTS, CAPTIONS = 1000, 1000
GRAMMAR = {"n_concepts": (96, 96, 96), "k": [3, 4, 4]}
SPRITES = {"n_concepts": (96, 96, 96), "k": [4, 4, 4]}


class Recorded(NamedTuple):
    """Activations (n, d) and true variables (m, v) per level; n / m rows make one sample."""

    activations: list[np.ndarray]
    truth: list[np.ndarray]


@cache
def grammar(seed: int, steps: int, texts: int) -> Recorded:
    settings = GrammarSettings(seed=seed, steps=steps)
    world = grammar_world(settings)
    with tempfile.TemporaryDirectory() as folder:
        model = train_grammar_model(settings, Location(folder), checkpoint_every=steps)
    sample = world.sample(texts, settings.length, seed=1)
    activations = grammar_activations(model, sample.tokens)[1:]
    return Recorded([x.numpy() for x in activations], world.codes(sample))


@cache
def sprites(seed: int, captions: int) -> Recorded:
    import unlearning

    from compute.worlds.sprites import COLOURS, OBJECTS, SpriteWorld

    recorded = unlearning.record(unlearning.load(), captions, seed)
    levels = [
        torch.stack([recorded.activations[step] for step in steps]).mean(0).flatten(0, 2).numpy()
        for steps in unlearning.steps_of(recorded).values()
    ]
    # The same captions as those of the recording.
    parts = SpriteWorld(seed + 5).sample(captions, held_out=False).factors.parts
    objects = recorded.objects.reshape(-1, 1) == np.arange(len(OBJECTS))
    colours = recorded.colours.reshape(-1, 1) == np.arange(len(COLOURS))
    wholes = np.concatenate([objects, colours], axis=1).astype(np.float32)
    details = np.concatenate([parts.reshape(len(colours), -1), colours], axis=1)
    return Recorded(levels, [details.astype(np.float32), wholes, wholes])


def assign(codes: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The true variable (c,) int of every concept, −1 where it has none, and |correlation| (c,)."""
    place, strength = np.full(codes.shape[1], -1), np.zeros(codes.shape[1])
    concepts, variables = (np.flatnonzero(z.std(0) > 0) for z in (codes, truth))
    if len(concepts) and len(variables):
        a, b = ((z - z.mean(0)) / z.std(0) for z in (codes[:, concepts], truth[:, variables]))
        correlation = np.abs(a.T @ b) / len(a)
        rows, columns = linear_sum_assignment(-correlation)
        place[concepts[rows]] = variables[columns]
        strength[concepts[rows]] = correlation[rows, columns]
    return place, strength


def matched(codes: np.ndarray, truth: np.ndarray) -> float:
    """Mean |correlation| (n, c) against (n, v) under the best matching; what has none counts 0."""
    return mean_strength(assign(codes, truth)[1], truth)


def mean_strength(strength: np.ndarray, truth: np.ndarray) -> float:
    """Mean of the |correlations| (c,) of an assignment over the variables (n, v) that vary."""
    return float(strength.sum() / max(1, int((truth.std(0) > 0).sum())))


def probed(x: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Readings (r, v) of rows (r, d) by least squares on samples (m, d) and their truth (m, v)."""
    solution = least_squares(torch.from_numpy(x), torch.from_numpy(truth)).numpy()
    return rows @ solution[:-1] + solution[-1]


def run(recorded: Recorded, method: str, seed: int, options: dict, scale: Scale) -> dict:
    n, m = len(recorded.activations[0]), len(recorded.truth[0])
    size = n // m
    cut = m // 2
    started = time.process_time()
    shown, held_out = (
        [x[part] for x in recorded.activations]
        for part in (slice(cut * size), slice(cut * size, None))
    )
    if method == PROBE:
        read = [
            probed(x.reshape(cut, size, -1).mean(1), truth[:cut], rows)
            for x, truth, rows in zip(shown, recorded.truth, held_out)
        ]
    else:
        problem = Problem(
            shown, options["n_concepts"], options["k"], seed, scale, held_out=held_out
        )
        read = identifiability.METHODS[method](problem).held_out
    scores = {}
    for number, (codes, truth) in enumerate(zip(read, recorded.truth), start=1):
        pooled = codes.reshape(m - cut, size, -1).mean(1)
        scores[f"level_{number}"] = matched(pooled, truth[cut:])
    return {"method": method, "seed": seed, **scores, "cpu_seconds": time.process_time() - started}


def main(arguments: list[str] | None = None, scale: Scale | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=("grammar", "sprites"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--training-steps", type=int, default=600)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)

    def measure(model: str, method: str, seed: int) -> list[dict]:
        if model == "grammar":
            recorded = grammar(seed, options.training_steps, options.samples or TEXTS)
        else:
            recorded = sprites(seed, options.samples or CAPTIONS)
        sizes = GRAMMAR if model == "grammar" else SPRITES
        row = run(recorded, method, seed, sizes, scale or Scale(steps=1000))
        return [{"model": model, **row}]

    rows = identifiability.completed(
        options.out / "trained_models.csv",
        identifiability.by_seed(
            options.seeds, options.models or ("grammar", "sprites"), options.methods
        ),
        measure,
        FIELDS,
    )
    for model in dict.fromkeys(row["model"] for row in rows):
        for method in METHODS:
            own = [r for r in rows if (r["model"], r["method"]) == (model, method)]
            if own:
                values = [[r[name] for r in own] for name in FIELDS[3:6]]
                told = "  ".join(f"{np.mean(v):.3f} ± {np.std(v):.3f}" for v in values)
                sys.stdout.write(f"{model:8} {method:22} {len(own)}  {told}\n")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
