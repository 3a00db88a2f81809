"""Discrete hierarchies and non-negative rank on worlds with known answers, against baselines.

    python tests/benchmarks/discrete.py [--worlds 10] [--tables 100] [--trees 5] [--out FOLDER]
                                        [--causal-learn PYTHON]

Writes discrete_rank.csv, discrete_hierarchy.csv, discrete_trees.csv and discrete.json (command,
machine, summary).

Rank: every rule sees the same counts. ``held_out`` fits half of the samples, thinned
binomially, and scores the other half.
``reachable`` marks tables whose last state stands out of the noise at all: its population
likelihood ratio exceeds the detection limit sqrt((I - r)(J - r)) of a rank-one spike, twice over.

Hierarchy: ``latent_class`` is one whole over all parts, its states chosen by the same rule;
``oracle_structure`` is told which parts share a whole, and bounds what structure errors cost.
GIN and RLCD test linear relations of ordered variables; states have no order, so they are not run
there.

Trees: linear trees in which every latent has three children or more, with Gaussian noise at 2,000,
5,000 and 10,000 rows, the family of RLCD (Dong et al. 2024), and with exponential noise at 1,000
rows, that of GIN (Xie et al. 2020), whose kernel tests take minutes there and grow with the square
of the rows. ``strata`` sees the terciles of every part, the others the numbers, in an environment
of their own, whose interpreter ``--causal-learn`` names
(``pip install causal-learn==0.1.4.7 communities``). The F1 is that of the parts by their whole.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy

from compute.selection import DiscreteHierarchy, nonnegative_rank
from compute.selection.discrete.latent_class import LatentClass, choose_latent_class, distinct_rows
from compute.worlds.table_world import RankTable, TableWorld

SAMPLES = 20_000
RANKS = range(1, 7)
TREE_ROWS = {"gaussian": (2_000, 5_000, 10_000), "exponential": (1_000,)}
RLCD = "RLCD.RLCD_alg import RLCD; graph = RLCD(rows, stage1_method='all').G"
GIN = "GIN.GIN import GIN; graph = GIN(rows, 'hsic')[0]"
# What finds a graph of latents L1, L2, ... over parts X1, X2, ... in rows; by family.
CAUSAL_LEARN = {"gaussian": {"rlcd": RLCD}, "exponential": {"rlcd": RLCD, "gin": GIN}}
# Prints the latent of every part, -1 where it has none.
OWNERS = """
import json, sys
import numpy as np
rows = np.load(sys.argv[1])
from causallearn.search.HiddenCausal.{search}
latent = {{}}
for edge in graph.get_graph_edges():
    names = sorted((edge.get_node1().get_name(), edge.get_node2().get_name()))
    if names[0].startswith("L") and names[1].startswith("X"):
        latent[int(names[1][1:]) - 1] = int(names[0][1:]) - 1
print(json.dumps([latent.get(i, -1) for i in range(rows.shape[1])]))
"""


def kl_fit(counts: np.ndarray, rank: int, rng: np.random.Generator) -> np.ndarray:
    """Best of several non-negative fits of a table by multiplicative updates, as probabilities."""
    best, best_score = np.empty(0), -np.inf
    for _ in range(4):
        a = rng.dirichlet(np.ones(counts.shape[0]), size=rank).T * counts.sum() / rank
        b = rng.dirichlet(np.ones(counts.shape[1]), size=rank)
        for _ in range(400):
            a *= (counts / np.maximum(a @ b, 1e-12)) @ b.T / b.sum(axis=1)
            b *= a.T @ (counts / np.maximum(a @ b, 1e-12)) / a.sum(axis=0)[:, None]
        fit = a @ b / (a @ b).sum()
        score = log_likelihood(counts, fit)
        if score > best_score:
            best, best_score = fit, score
    return best


def log_likelihood(counts: np.ndarray, probabilities: np.ndarray) -> float:
    return float((counts * np.log(np.maximum(probabilities, 1e-12))).sum())


def rank_rules(counts: np.ndarray, rng: np.random.Generator) -> dict[str, int]:
    """Ranks by information criteria and held-out likelihood, among 1 to 8."""
    n, (rows, columns) = counts.sum(), counts.shape
    ranks = range(1, min(8, rows, columns) + 1)
    scores = np.array([log_likelihood(counts, kl_fit(counts, r, rng)) for r in ranks])
    free = np.array([r * (rows + columns - 1) - 1 for r in ranks])
    train = rng.binomial(counts, 0.5)
    held_out = [log_likelihood(counts - train, kl_fit(train, r, rng)) for r in ranks]
    return {
        "aic": 1 + int(np.argmax(scores - free)),
        "bic": 1 + int(np.argmax(scores - 0.5 * np.log(n) * free)),
        "held_out": 1 + int(np.argmax(held_out)),
    }


def reachable(table: RankTable, rng: np.random.Generator) -> bool:
    if table.rank == 1:
        return True
    rows, columns = table.probabilities.shape
    nearest = kl_fit(table.probabilities, table.rank - 1, rng)
    signal = 2 * SAMPLES * entropy(table.probabilities.ravel(), nearest.ravel())
    spare = (rows - table.rank + 1) * (columns - table.rank + 1)
    return bool(signal > 2 * np.sqrt(spare))


def rank_benchmark(n_tables: int) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    for seed in range(n_tables):
        rng = np.random.default_rng(10_000 + seed)
        rank = 1 + seed % 6
        rows, columns = (int(size) for size in rng.integers(max(rank + 2, 8), 41, size=2))
        concentration = (0.3, 1.0)[(seed // 6) % 2]
        table = RankTable.random(
            rank, (rows, columns), concentration=concentration, seed=10_000 + seed
        )
        counts = table.sample(SAMPLES, seed=seed)
        started = time.process_time()
        found = {"strata": nonnegative_rank(counts)}
        seconds = time.process_time() - started
        kept = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
        found |= rank_rules(kept, rng)
        records.append(
            {
                "seed": seed,
                "rows": rows,
                "columns": columns,
                "concentration": concentration,
                "rank": rank,
                "reachable": reachable(table, rng),
                "seconds": round(seconds, 2),
                **found,
            }
        )
    return records


def structure(
    truth: np.ndarray, owner: np.ndarray
) -> tuple[float, np.ndarray, list[tuple[int, int]]]:
    """F1 of the parts by their whole, shared parts (K, J), and which whole is matched with which.

    Owners (p,) are numbered from 0, -1 is none.
    """
    wholes, found = int(truth.max()) + 1, max(1, int(owner.max()) + 1)
    overlap = np.array(
        [[((truth == k) & (owner == j)).sum() for j in range(found)] for k in range(wholes)]
    )
    matched = list(zip(*linear_sum_assignment(-overlap)))
    hits = sum(int(overlap[k, j]) for k, j in matched)
    return 2 * hits / max(1, (truth >= 0).sum() + (owner >= 0).sum()), overlap, matched


def agreement(
    world: TableWorld, owner: np.ndarray, states: np.ndarray, tables: list[np.ndarray]
) -> dict[str, float]:
    """Edge F1, right cardinalities, total variation of tables; wholes and states are matched."""
    truth, wholes = world.parents[0], len(world.cardinalities[0])
    f1, overlap, matched = structure(truth, owner)
    right, distances, weighted = 0, [], []
    for k, j in matched:
        if not overlap[k, j] or states[j] != world.cardinalities[0][k]:
            continue
        right += 1
        shared = np.flatnonzero((truth == k) & (owner == j))
        apart = np.stack(
            [
                0.5 * np.abs(world.conditionals[0][i][:, None] - tables[i][None]).sum(axis=2)
                for i in shared
            ]
        )
        a, b = linear_sum_assignment(apart.sum(axis=0))
        distances.extend(apart[:, a, b].ravel())
        weighted.extend(apart[:, a, b].mean(axis=1))
    return {
        "f1": f1,
        "cardinalities": right / wholes,
        "tv_mean": float(np.mean(distances)) if distances else np.nan,
        "tv_worst_table": float(np.max(weighted)) if weighted else np.nan,
        "tv_worst_row": float(np.max(distances)) if distances else np.nan,
    }


def by_strata(world: TableWorld, parts: np.ndarray) -> dict[str, float]:
    model = DiscreteHierarchy().fit(parts)
    return agreement(
        world, model.parents_[0], model.cardinalities_[0], list(model.conditionals_[0])
    )


def separate_fits(parts: np.ndarray, groups: list[np.ndarray]) -> list[LatentClass]:
    cards = parts.max(axis=0) + 1
    rng = np.random.default_rng(0)
    return [
        choose_latent_class(*distinct_rows(parts[:, g])[:2], cards[g], rng, max_states=8)
        for g in groups
    ]


def by_oracle_structure(world: TableWorld, parts: np.ndarray) -> dict[str, float]:
    truth = world.parents[0]
    groups = [np.flatnonzero(truth == k) for k in range(len(world.cardinalities[0]))]
    models = separate_fits(parts, groups)
    tables = [np.ones((1, 1))] * len(truth)
    for group, model in zip(groups, models):
        for i, table in zip(group, model.tables):
            tables[i] = table
    return agreement(world, truth, np.array([m.n_states for m in models]), tables)


def by_latent_class(world: TableWorld, parts: np.ndarray) -> dict[str, float]:
    everything = np.arange(parts.shape[1])
    (model,) = separate_fits(parts, [everything])
    return agreement(
        world, np.zeros_like(everything), np.array([model.n_states]), list(model.tables)
    )


METHODS: dict[str, Callable[[TableWorld, np.ndarray], dict[str, float]]] = {
    "strata": by_strata,
    "oracle_structure": by_oracle_structure,
    "latent_class": by_latent_class,
}


def hierarchy_benchmark(n_worlds: int, methods: list[str]) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    for seed in range(n_worlds):
        rng = np.random.default_rng(seed)
        wholes = int(rng.integers(4, 9))
        upper = seed % 2 == 1
        world = TableWorld.hierarchy(
            (wholes, 2) if upper else wholes, n_loners=seed % 3, seed=50_000 + seed
        )
        parts = world.sample(SAMPLES, seed=seed).parts
        for method in methods:
            started = time.process_time()
            scores = METHODS[method](world, parts)
            records.append(
                {
                    "method": method,
                    "seed": seed,
                    "wholes": wholes,
                    "dependence": "upper" if upper else "pairwise",
                    **{name: round(value, 4) for name, value in scores.items()},
                    "cpu_seconds": round(time.process_time() - started, 2),
                }
            )
    return records


def linear_tree(seed: int, n: int, family: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, p) of a linear tree with a root and four latents; owners (p,)."""
    rng = np.random.default_rng(90_000 + seed)
    draw = {
        "gaussian": rng.standard_normal,
        "exponential": lambda size: rng.standard_exponential(size) - 1.0,
    }[family]

    def noisy(cause: np.ndarray) -> np.ndarray:
        slope = rng.uniform(0.5, 2.0) * rng.choice([-1.0, 1.0])
        return slope * cause + rng.uniform(1.0, 2.0) ** 0.5 * draw(n)

    root = draw(n)
    parts, owner = [], []
    for k in range(4):
        latent = noisy(root)
        for _ in range(rng.integers(3, 5)):
            parts.append(noisy(latent))
            owner.append(k)
    return np.stack(parts, axis=1), np.array(owner)


def tree_benchmark(n_trees: int, python: Path | None) -> list[dict[str, object]]:
    records: list[dict[str, object]] = []
    places = [(family, n) for family, sizes in TREE_ROWS.items() for n in sizes]
    for seed in range(n_trees):
        for family, n in places:
            rows, truth = linear_tree(seed, n, family)
            methods = {"strata": by_terciles}
            if python is not None:
                for name, search in CAUSAL_LEARN[family].items():
                    methods[name] = partial(by_causal_learn, python, search)
            for method, find in methods.items():
                started = time.monotonic()
                owner = find(rows)
                records.append(
                    {
                        "method": method,
                        "family": family,
                        "seed": seed,
                        "rows": n,
                        "f1": round(structure(truth, owner)[0], 4),
                        "seconds": round(time.monotonic() - started, 1),
                    }
                )
    return records


def by_terciles(rows: np.ndarray) -> np.ndarray:
    """Owners (p,) that a discrete hierarchy finds in the terciles of rows (n, p)."""
    terciles = (rows[None] > np.quantile(rows, (1 / 3, 2 / 3), axis=0)[:, None]).sum(axis=0)
    found = DiscreteHierarchy().fit(terciles).parents_
    return found[0] if found else np.full(rows.shape[1], -1)


def by_causal_learn(python: Path, search: str, rows: np.ndarray) -> np.ndarray:
    """Owners (p,) that a search of causal-learn finds, in the environment of an interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "rows.npy", rows)
        done = subprocess.run(
            [python, "-c", OWNERS.format(search=search), Path(folder) / "rows.npy"],
            capture_output=True,
            text=True,
            check=True,
        )
    return np.array(json.loads(done.stdout.splitlines()[-1]))


def mean_of(records: list[dict[str, object]], column: str) -> float | None:
    """Mean of a column, without its gaps; nothing if it has nothing else."""
    values = np.array([float(str(r[column])) for r in records])
    values = values[~np.isnan(values)]
    return round(float(values.mean()), 4) if len(values) else None


def summarise(
    ranks: list[dict[str, object]],
    hierarchies: list[dict[str, object]],
    trees: list[dict[str, object]],
) -> dict[str, object]:
    rules = ("strata", "aic", "bic", "held_out")
    summary: dict[str, object] = {}
    for name, rows in (
        ("rank_right", ranks),
        ("rank_right_where_reachable", [r for r in ranks if r["reachable"]]),
    ):
        summary[name] = {
            "tables": len(rows),
            **{
                rule: round(float(np.mean([r[rule] == r["rank"] for r in rows])), 3)
                for rule in rules
            },
        }
    for method in dict.fromkeys(str(r["method"]) for r in hierarchies):
        own = [r for r in hierarchies if r["method"] == method]
        summary[method] = {
            column: mean_of(own, column)
            for column in (
                "f1",
                "cardinalities",
                "tv_mean",
                "tv_worst_table",
                "tv_worst_row",
                "cpu_seconds",
            )
        }
    for method, family in dict.fromkeys((str(r["method"]), str(r["family"])) for r in trees):
        own = [r for r in trees if (r["method"], r["family"]) == (method, family)]
        summary[f"{family}_trees_{method}"] = {
            f"{column}_at_{n}": mean_of([r for r in own if r["rows"] == n], column)
            for n in TREE_ROWS[family]
            for column in ("f1", "seconds")
        }
    return summary


def write_csv(path: Path, records: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def main(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=10)
    parser.add_argument("--tables", type=int, default=100)
    parser.add_argument("--trees", type=int, default=5)
    parser.add_argument(
        "--causal-learn", type=Path, help="interpreter of an environment with RLCD and GIN"
    )
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    ranks = rank_benchmark(options.tables)
    write_csv(options.out / "discrete_rank.csv", ranks)
    hierarchies = hierarchy_benchmark(options.worlds, options.methods)
    write_csv(options.out / "discrete_hierarchy.csv", hierarchies)
    trees = tree_benchmark(options.trees, options.causal_learn)
    write_csv(options.out / "discrete_trees.csv", trees)
    summary = summarise(ranks, hierarchies, trees)
    record = {
        "command": "python tests/benchmarks/discrete.py "
        + " ".join(sys.argv[1:] if arguments is None else arguments),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "samples": SAMPLES,
        "summary": summary,
    }
    (options.out / "discrete.json").write_text(json.dumps(record, indent=2) + "\n")
    return summary


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(), indent=2) + "\n")
