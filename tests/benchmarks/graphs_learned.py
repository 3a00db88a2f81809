"""What learning the concepts costs the graph: edges from true codes and from learned ones.

    OMP_NUM_THREADS=1 python tests/benchmarks/graphs_learned.py [--worlds …] [--seeds 3]

Worlds with known variables and edges: ``vectors`` (parts, wholes and a top level, mixed by a random
matrix), ``grammar`` and ``sprites`` (through the trained models of ``trained_models.py``: a GPT-2
and a StableDiffusionPipeline). Every row of ``results/graphs_learned.csv`` is the F1 of the edges
between two adjacent levels
(``level`` is the lower one), with codes that are

- ``true``: the variables themselves;
- ``read off``: each variable's least-squares reading from the activations of its level, fitted on
  the same rows: what a linear look at the activations can know at best;
- ``independent`` and ``independent, whitened``: of ``fit_dictionary``, every level by itself;
- ``hierarchical``: of ``HierarchicalSelectionModel``, which brings its own edges.

Learned concepts are matched with variables, one to one, by |correlation|, of which ``mcc_parts``
and ``mcc_wholes`` are the means. In ``f1`` an edge of a concept that has no variable counts as
false; in ``f1_matched`` only edges between concepts that have one count. What is lost from ``true``
to ``read off`` is lost by the model, from there on by the dictionaries. Sprites: parts and colours
of a slot → its object and colours, from the moments nearest to each.
Rows that are there are not computed again.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import identifiability
import numpy as np
import torch
import trained_models
from identifiability import RESULTS, Problem, Scale

from compute.graphs import recover_edges
from compute.worlds import SelectionWorld
from compute.worlds.sprites import COLOURS, part_edges

FIELDS = (
    "world",
    "codes",
    "seed",
    "level",
    "mcc_parts",
    "mcc_wholes",
    "f1",
    "f1_matched",
    "rows",
    "cpu_seconds",
)
CODES = ("true", "read off", "independent", "independent, whitened", "hierarchical")
VECTORS = {"sizes": (48, 16, 4), "dim": 64}


class Known(NamedTuple):
    """Activations (n, d) and variables (m, v) per level, edges (v, v') between, and sizes."""

    activations: list[np.ndarray]
    truth: list[np.ndarray]
    edges: list[np.ndarray]
    n_concepts: tuple[int, ...]
    k: list[int]


@cache
def vectors(seed: int, samples: int | None) -> Known:
    world = SelectionWorld.vectors(seed=300 + seed, **VECTORS)
    rows = world.sample(samples or 8000, seed=seed)
    k = [identifiability.mean_active(z) for z in rows.codes]
    truth = [z.astype(np.float32) for z in rows.codes]
    return Known(rows.activations, truth, world.edges, world.sizes, k)


@cache
def grammar(seed: int, samples: int | None) -> Known:
    settings = trained_models.GrammarSettings(seed=seed, steps=600)
    recorded = trained_models.grammar(seed, settings.steps, samples or trained_models.TEXTS)
    edges = trained_models.grammar_world(settings).edges
    return Known(*recorded, edges, **trained_models.GRAMMAR)


@cache
def sprites(seed: int, samples: int | None) -> Known:
    recorded = trained_models.sprites(seed, samples or trained_models.CAPTIONS)
    parts = part_edges()
    n_colours = len(COLOURS)
    # A colour is a part of its slot's look, and the whole that it alone makes.
    edges = np.zeros((len(parts) + n_colours, parts.shape[1] + n_colours), bool)
    edges[: len(parts), : parts.shape[1]] = parts
    edges[len(parts) :, parts.shape[1] :] = np.eye(n_colours, dtype=bool)
    sizes = {name: values[:2] for name, values in trained_models.SPRITES.items()}
    return Known(recorded.activations[:2], recorded.truth[:2], [edges], **sizes)


WORLDS = {"vectors": vectors, "grammar": grammar, "sprites": sprites}


def read_off(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Least-squares readings (n, v), a little shrunk, of variables from activations (n, d)."""
    centred = x - x.mean(0)
    gram = centred.T @ centred
    gram += 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram), dtype=gram.dtype)
    return centred @ np.linalg.solve(gram, centred.T @ truth)


def codes_of(known: Known, name: str, seed: int, scale: Scale) -> identifiability.Answer:
    """Codes (m, c) of every level, and edges where the method brings them."""
    size = len(known.activations[0]) // len(known.truth[0])
    if name == "true":
        return identifiability.Answer([], codes=known.truth)
    if name == "read off":
        long = [np.repeat(z, size, axis=0) for z in known.truth]
        answer = identifiability.Answer([], codes=list(map(read_off, known.activations, long)))
    else:
        problem = Problem(
            known.activations, known.n_concepts, known.k, seed, scale, known.activations
        )
        answer = identifiability.METHODS[name](problem)
        answer = answer._replace(codes=answer.held_out)
    pooled = [z.reshape(len(known.truth[0]), size, -1).mean(1) for z in answer.codes]
    return answer._replace(codes=pooled)


def run(world: str, name: str, seed: int, samples: int | None, scale: Scale) -> list[dict]:
    known = WORLDS[world](seed, samples)
    started = time.process_time()
    answer = codes_of(known, name, seed, scale)
    graphs = answer.edges or [recover_edges(a, b).adjacency for a, b in pairwise(answer.codes)]
    matches = [trained_models.assign(z, true) for z, true in zip(answer.codes, known.truth)]
    scores = [trained_models.mean_strength(s, true) for (_, s), true in zip(matches, known.truth)]
    seconds = time.process_time() - started
    rows = []
    for level, (graph, true) in enumerate(zip(graphs, known.edges)):
        parts, wholes = matches[level][0], matches[level + 1][0]
        part, whole = np.nonzero(graph)
        have = (parts[part] >= 0) & (wholes[whole] >= 0)
        hits, real = int(true[parts[part[have]], wholes[whole[have]]].sum()), int(true.sum())
        rows.append(
            {
                "world": world,
                "codes": name,
                "seed": seed,
                "level": level + 1,
                "mcc_parts": scores[level],
                "mcc_wholes": scores[level + 1],
                "f1": 2 * hits / max(1, len(part) + real),
                "f1_matched": 2 * hits / max(1, int(have.sum()) + real),
                "rows": len(known.truth[0]),
                "cpu_seconds": seconds,
            }
        )
    return rows


def main(arguments: list[str] | None = None, scale: Scale | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--codes", nargs="+", choices=CODES, default=list(CODES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows = identifiability.completed(
        options.out / "graphs_learned.csv",
        identifiability.by_seed(options.seeds, options.worlds, options.codes),
        lambda *place: run(*place, options.samples, scale or Scale(steps=1000)),
        FIELDS,
    )
    for world in options.worlds:
        for name in CODES:
            own = [r for r in rows if (r["world"], r["codes"]) == (world, name)]
            for level in sorted({int(r["level"]) for r in own}):
                rows_of = [r for r in own if r["level"] == level]
                told = [
                    f"{label} {np.mean(scores):.3f} ± {np.std(scores):.3f}"
                    for label in ("f1", "f1_matched")
                    if (scores := [r[label] for r in rows_of])
                ]
                sys.stdout.write(
                    f"{world:8} {name:22} from level {level}: {', '.join(told)} "
                    f"({len(rows_of)} seeds)\n"
                )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
