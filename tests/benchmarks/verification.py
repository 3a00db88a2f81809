"""Edges between concepts of the sprite model, tested by intervention, and the graph's faithfulness.

    python tests/benchmarks/verification.py [--prompts 1000] [--max-parts 64] [--seeds 0 1 2]

Dictionaries of three levels are learnt on drawings of training captions, and the edges between them
recovered. The levels are ``blocks``, three places through which one pass at timestep 500 goes one
after another, or ``timesteps``, three moments at the last place where the text enters. On drawings
of held-out captions, which no dictionary has seen, ``verify_edges`` then judges, by one rule, the
edges with a confidence of .9 or more, the same graph with its ends permuted, and pairs that are
no edges. Between blocks the part is set and the whole read in the same pass; between timesteps both
directions are tried: the whole set and the part read further down the drawing, and the part set and
the whole read in the finished picture. ``faithfulness`` compares the recovered graph with a
shuffled one and one of the strongest correlations, of as many edges into every whole, among all
edges and among the surer ones. Intervals are 95 % bootstraps over samples.
"""

import argparse
import csv
import os
import platform
import sys
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix

from compute.dictionaries import fit_dictionary
from compute.graphs import recover_edges
from compute.models import load_adapter
from compute.models.adapter import ModelLevel
from compute.models.diffusion import Prompt
from compute.steering import ConceptLevel
from compute.verification import (
    correlation_edges,
    faithfulness,
    open_bench,
    shuffled_edges,
    verify_edges,
)
from compute.verification.effects import edge_matrix
from compute.worlds.sprites import SpriteWorld
from storage.graph.concept_graph import ConceptGraph

RESULTS = Path(__file__).parent / "results" / "verification.csv"
SOURCE = "package:compute.pretrained.sprites"
LEVELS = {
    "blocks": tuple((at, 500) for at in ("down_blocks.0", "down_blocks.1", "mid_block")),
    "timesteps": tuple(("up_blocks.0.attentions.1", t) for t in (100, 500, 899)),
}
DIRECTIONS = {"blocks": ("up",), "timesteps": ("down", "up")}
CONFIDENCE = 0.9
FIELDS = ("levels", "measure", "confidence", "pairs", "n", "value", "low", "high", "refuted")
FIELDS += ("effect", "seed", "machine", "command")


def adapter_of(places, steps):
    """The project's own sprite model, read at three levels."""
    levels = [ModelLevel(f"{at}-t{t}", at, t) for at, t in places]
    options = {"dtype": "float32", "device": "cpu", "steps": steps, "guidance": 2.0, "grid": 4}
    return load_adapter("diffusion", SOURCE, levels=levels, **options)


def prompts(n, seed, *, held_out):
    """Captions to draw, each from a noise of its own."""
    captions = SpriteWorld(seed + 5).sample(n, stream=1, held_out=held_out)[1]
    return [Prompt(i, caption, 10_000 * held_out + i) for i, caption in enumerate(captions)]


def learn(adapter, places, seed, options):
    """Levels with their dictionaries, and the graph of their concepts."""
    rows = adapter.extract(prompts(options.prompts, seed, held_out=False)).activations
    fitted = {"n_concepts": options.concepts, "k": options.k, "steps": options.learn_steps}
    levels, codes = [], []
    for number, (at, t) in enumerate(places, 1):
        x = rows[f"{at}-t{t}"].float()
        found = fit_dictionary(x, batch_size=1024, seed=seed, **fitted)
        levels.append(ConceptLevel(number, f"{at}-t{t}", at, found, timestep=t))
        codes.append(found.encode(x).numpy())
    return levels, graph_of(codes)


def graph_of(codes):
    """The graph between neighbouring levels."""
    edges = {"source": [], "target": [], "strength": [], "confidence": [], "sign": []}
    for number in range(1, len(codes)):
        found = recover_edges(codes[number - 1], codes[number])
        part, whole = found.adjacency.nonzero()
        edges["source"] += [f"{number}:{i}" for i in part]
        edges["target"] += [f"{number + 1}:{j}" for j in whole]
        edges["strength"] += found.strength[part, whole].tolist()
        edges["confidence"] += found.confidence[part, whole].tolist()
        edges["sign"] += found.sign[part, whole].astype(int).tolist()
    n = codes[0].shape[1]
    numbers = range(1, len(codes) + 1)
    nodes = {"level": np.repeat(numbers, n).tolist(), "index": [*range(n)] * len(codes)}
    return ConceptGraph.from_columns(nodes, edges)


def share_interval(share, n, rng):
    """95 % bootstrap of a share of ``n``."""
    return np.quantile(rng.binomial(n, share, 2000) / n, (0.025, 0.975)) if n else (np.nan, np.nan)


def verified(bench, graph, directions, seed, options):
    """Rows of the verdicts, for each direction."""
    rng = np.random.default_rng(seed)
    for direction in directions:
        found = verify_edges(
            bench,
            graph,
            min_confidence=CONFIDENCE,
            samples=options.samples,
            max_parts=options.max_parts,
            direction=direction,
            seed=seed,
        )
        for pairs in ("edges", "shuffled", "random"):
            score = getattr(found, pairs)
            low, high = share_interval(score.confirmed, score.n, rng)
            yield {
                "measure": f"confirmed, {direction}",
                "confidence": CONFIDENCE,
                "pairs": pairs,
                "n": score.n,
                "value": round(score.confirmed, 4),
                "low": round(float(low), 4),
                "high": round(float(high), 4),
                "refuted": round(score.refuted, 4),
                "effect": round(score.effect, 5),
            }


def compared(bench, graph, confidence, seed):
    """Rows of faithfulness and completeness of the surer edges and two graphs of their size."""
    rng = np.random.default_rng(seed)
    pool = bench.pool
    numbers = [level.level for level in bench.levels]
    graphs = {"edges": {}, "shuffled": {}, "correlation": {}}
    for part, whole in pairwise(numbers):
        edges = edge_matrix(graph, part, bench, min_confidence=confidence)
        graphs["edges"][part] = edges
        graphs["shuffled"][part] = shuffled_edges(edges, rng)
        low, high = (csr_matrix(pool.codes[n][pool.kept]) for n in (part, whole))
        graphs["correlation"][part] = correlation_edges(edges, low, high)
    for pairs, score in faithfulness(bench, graphs, seed=seed).items():
        size = sum(edges.nnz for edges in graphs[pairs].values())
        for measure in ("faithfulness", "completeness"):
            interval = getattr(score, measure)
            names = ("value", "low", "high")
            numbers = {n: round(v, 4) for n, v in zip(names, interval, strict=True)}
            head = {"measure": measure, "confidence": confidence, "pairs": pairs, "n": size}
            yield head | numbers


def rows_of(kind, seed, options):
    """Rows of the table of one kind of levels and one seed."""
    adapter = adapter_of(LEVELS[kind], options.steps)
    levels, graph = learn(adapter, LEVELS[kind], seed, options)
    bench = open_bench(adapter, levels, prompts(options.held_out, seed, held_out=True))
    for confidence in (0, 0.5, CONFIDENCE):
        yield from compared(bench, graph, confidence, seed)
    yield from verified(bench, graph, DIRECTIONS[kind], seed, options)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=[*LEVELS])
    parser.add_argument("--prompts", type=int, default=1000, help="captions to learn on")
    parser.add_argument("--held-out", type=int, default=96, help="captions to verify on")
    parser.add_argument("--steps", type=int, default=10, help="of a drawing")
    parser.add_argument("--concepts", type=int, default=256)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--learn-steps", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--max-parts", type=int, default=64, help="causes per level")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    command = " ".join(["python tests/benchmarks/verification.py", *sys.argv[1:]])
    with options.results.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for kind, seed in product(options.levels, options.seeds):
            run = {"levels": kind, "seed": seed, "machine": machine, "command": command}
            for row in rows_of(kind, seed, options):
                writer.writerow(row | run)
            file.flush()


if __name__ == "__main__":
    main()
