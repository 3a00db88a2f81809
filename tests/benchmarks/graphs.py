"""Edge recovery against its rivals, on the same worlds in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/graphs.py [--quick] [--only decisions rivals scale]

Writes to ``tests/benchmarks/results/``:

- ``graphs_decisions.csv``: F1 of parts → wholes and wholes → top level by world, n and seed, with
  kinds;
- ``graphs_reliability.csv``: how often edges of a confidence were right, and null worlds; drawn as
  ``graphs_reliability.png`` where matplotlib is installed;
- ``graphs_rivals.csv``: F1 and processor seconds of every method at 66 and 260 variables;
- ``graphs_scale.csv``: seconds and memory by rows at 16,384 × 16,384 concepts.

Every file starts with the command, the machine and the date. Times are processor seconds of all
threads, so that a busy machine does not count against anyone; methods run on one thread.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import sparse

from compute.graphs import EdgeRecovery, recover_edges
from compute.worlds import SelectionWorld

RESULTS = Path(__file__).parent / "results"
SIZES = (200, 60, 10)
WORLDS: dict[str, dict] = {
    "zero-inflated": {},
    "binary": {"code_style": "binary"},
    "continuous": {"code_style": "continuous"},
    "strong selection": {"selected_fraction": 0.1},
    "correlated": {"correlation": 0.6},
    "chain": {"correlations": "chain", "correlation": 0.6},
    "factors": {"correlations": "factors", "correlation": 0.6},
    "noisy": {"noise": 0.4},
    "sparse": {"density": 0.05, "correlation": 0.6},
    "dense": {"density": 0.3},
    "common causes": {"common_cause": 0.4},
}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, small n, no slow rivals")
    parser.add_argument("--only", nargs="+", default=["decisions", "rivals", "scale"])
    parser.add_argument("--seeds", type=int, default=3, help="worlds per size against rivals")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds for each rival")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    if "decisions" in args.only:
        decisions(args.results, args.quick)
    if "rivals" in args.only:
        rivals(args.results, args.quick, args.seeds, args.patience)
    if "scale" in args.only:
        scale(args.results, args.quick)
    if importlib.util.find_spec("matplotlib"):
        draw_reliability(args.results)


def draw_reliability(results: Path) -> None:
    """Draw how often edges were right against their confidence, from the table if there is one."""
    table = results / "graphs_reliability.csv"
    if not table.is_file():
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [line for line in table.read_text().splitlines() if not line.startswith("#")]
    bins = [row for row in csv.DictReader(lines) if row["case"].startswith("confidence")]
    sure = [float(row["mean_confidence"]) for row in bins]
    right = [float(row["share_right"]) for row in bins]
    figure, axis = pyplot.subplots(figsize=(4.5, 4.5))
    axis.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="calibrated")
    axis.plot(sure, right, marker="o", label="edges of all worlds")
    for x, y, row in zip(sure, right, bins):
        axis.annotate(f"{int(row['count']):,}", (x, y), (0, -12), textcoords="offset points")
    axis.set(xlabel="mean confidence", ylabel="share right", xlim=(0, 1.05), ylim=(0, 1.05))
    axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(results / "graphs_reliability.png", dpi=110)
    pyplot.close(figure)


def decisions(results: Path, quick: bool) -> None:
    """Score the method's own decision over worlds, numbers of rows and seeds."""
    rows, sure, right = [], [], []
    for n in (2_000,) if quick else (5_000, 40_000):
        for name, options in WORLDS.items():
            for seed in range(1 if quick else 3):
                world = SelectionWorld.vectors(sizes=SIZES, seed=100 + seed, **options)
                codes = world.sample(n).codes
                low, high = recover_edges(codes[0], codes[1]), recover_edges(codes[1], codes[2])
                decided = low.kind != "undecided"
                kinds = np.asarray(world.kinds[0])
                rows.append(
                    {
                        "world": name,
                        "n": n,
                        "seed": seed,
                        "f1_low": f1(low.adjacency, world.edges[0]),
                        "f1_high": f1(high.adjacency, world.edges[1]),
                        "false_low": int((low.adjacency & ~world.edges[0]).sum()),
                        "missed_low": int((world.edges[0] & ~low.adjacency).sum()),
                        "kind_right": float((low.kind == kinds)[decided].mean()),
                        "kind_undecided": float(1 - decided.mean()),
                    }
                )
                for found, true in zip((low, high), world.edges):
                    sure.append(found.edge_confidence)
                    right.append(true[found.part, found.whole])
    write(results / "graphs_decisions.csv", rows)
    write(results / "graphs_reliability.csv", [*reliability(sure, right), *null_worlds(quick)])


def reliability(sure: list[np.ndarray], right: list[np.ndarray]) -> list[dict]:
    """Return, by confidence, how many edges there were and how many were right."""
    confidence, correct = np.concatenate(sure), np.concatenate(right)
    out = []
    bins = (0.0, 0.6, 0.8, 0.9, 0.97, 0.99, 1.001)
    for low, high in pairwise(bins):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            out.append(
                {
                    "case": f"confidence {low:.2f}-{min(high, 1.0):.2f}",
                    "count": int(inside.sum()),
                    "mean_confidence": float(confidence[inside].mean()),
                    "share_right": float(correct[inside].mean()),
                }
            )
    return out


def null_worlds(quick: bool) -> list[dict]:
    """Return the false edges of independent and of shuffled levels."""
    out = []
    for n in (1_000,) if quick else (1_000, 5_000, 40_000):
        rng = np.random.default_rng(n)
        codes = SelectionWorld.vectors(sizes=SIZES, seed=n).sample(n).codes
        shape = [(n, q) for q in SIZES[:2]]
        cases = {
            "normal": [rng.standard_normal(s) for s in shape],
            "rare": [rng.random(s) < 0.005 for s in shape],
            "heavy": [(rng.random(s) < 0.05) * rng.lognormal(0, 2, s) for s in shape],
        }
        cases["shuffled"] = [codes[0][rng.permutation(n)], codes[1]]
        for name, (parts, wholes) in cases.items():
            false = recover_edges(parts, wholes).n_edges
            out.append(
                {
                    "case": f"null {name} n={n}",
                    "count": false,
                    "mean_confidence": "",
                    "share_right": 0.0 if false else "",
                }
            )
    return out


def rivals(results: Path, quick: bool, seeds: int, patience: float) -> None:
    """Compare all methods on the same codes; edges are skeleton edges between the two levels."""
    rows = []
    for sizes in ((50, 12, 4),) if quick else ((50, 12, 4), (200, 50, 10)):
        for seed in range(1 if quick else seeds):
            world = SelectionWorld.vectors(sizes=sizes, seed=200 + seed)
            codes = [c.astype(np.float64) for c in world.sample(5_000).codes]
            for name, method in METHODS.items():
                slow = name.startswith("causal-learn")
                if slow and (quick or (sizes[0] > 50) or seed):
                    continue
                found, seconds = run_apart(method, codes, patience)
                rows.append(
                    {
                        "variables": sum(sizes),
                        "seed": seed,
                        "method": name,
                        "f1_low": "" if found is None else f1(found[0], world.edges[0]),
                        "f1_high": "" if found is None else f1(found[1], world.edges[1]),
                        "seconds": seconds,
                        "finished": found is not None,
                    }
                )
                write(results / "graphs_rivals.csv", rows)


def ours(codes: list[np.ndarray]) -> list[np.ndarray]:
    """Both pairs of levels by :func:`recover_edges`."""
    return [recover_edges(codes[i], codes[i + 1]).adjacency for i in range(2)]


def shuffled(codes: list[np.ndarray]) -> list[np.ndarray]:
    """The same on wholes whose rows are shuffled: what is found without any dependence."""
    rng = np.random.default_rng(0)
    out = []
    for parts, wholes in pairwise(codes):
        out.append(recover_edges(parts, wholes[rng.permutation(len(wholes))]).adjacency)
    return out


def correlation(codes: list[np.ndarray]) -> list[np.ndarray]:
    """Edges where a correlation is significant at 5 % after Bonferroni."""
    from scipy.stats import norm

    out = []
    for parts, wholes in pairwise(codes):
        p, w, n = parts.shape[1], wholes.shape[1], len(parts)
        r = np.nan_to_num(np.corrcoef(parts.T, wholes.T)[:p, p:])
        out.append(np.abs(np.arctanh(r)) * np.sqrt(n - 3) > norm.isf(0.025 / (p * w)))
    return out


def lasso(codes: list[np.ndarray]) -> list[np.ndarray]:
    """Edges where a whole's cross-validated lasso on all parts has a coefficient."""
    from sklearn.linear_model import LassoCV

    out = []
    for parts, wholes in pairwise(codes):
        x = (parts - parts.mean(axis=0)) / np.maximum(parts.std(axis=0), 1e-9)
        fits = [LassoCV(cv=5, n_jobs=1, random_state=0).fit(x, y).coef_ for y in wholes.T]
        out.append(np.stack(fits, axis=1) != 0)
    return out


def pybnesian_fisher(codes: list[np.ndarray]) -> list[np.ndarray]:
    """PC with partial correlations, in C++."""
    import pandas as pd
    import pybnesian

    x = np.concatenate(codes, axis=1)
    frame = pd.DataFrame(x, columns=[str(i) for i in range(x.shape[1])])
    graph = pybnesian.PC().estimate(pybnesian.LinearCorrelation(frame), alpha=0.01)
    return split(pairs_of(graph, x.shape[1]), codes)


def pybnesian_chi2(codes: list[np.ndarray]) -> list[np.ndarray]:
    """PC with chi-squared tests of activities, in C++."""
    import pandas as pd
    import pybnesian

    x = np.concatenate(codes, axis=1) > 0
    frame = pd.DataFrame(
        {str(i): pd.Categorical(np.where(x[:, i], "on", "off")) for i in range(x.shape[1])}
    )
    graph = pybnesian.PC().estimate(pybnesian.ChiSquare(frame), alpha=0.01)
    return split(pairs_of(graph, x.shape[1]), codes)


def pairs_of(graph, size: int) -> np.ndarray:
    """Return the skeleton of a pybnesian graph."""
    joined = np.zeros((size, size), dtype=bool)
    for a, b in (*graph.arcs(), *graph.edges()):
        joined[int(a), int(b)] = joined[int(b), int(a)] = True
    return joined


def flop(codes: list[np.ndarray]) -> list[np.ndarray]:
    """FLOP: fast local search over orders, in Rust; its authors' penalty."""
    import flopsearch

    graph = np.asarray(flopsearch.flop(np.concatenate(codes, axis=1), 2.0, restarts=20))
    return split((graph != 0) | (graph.T != 0), codes)


def causal_learn_pc(codes: list[np.ndarray], test: str) -> list[np.ndarray]:
    """PC in Python: with Fisher-Z, or with chi-squared or G² tests of activities."""
    from causallearn.search.ConstraintBased.PC import pc

    x = np.concatenate(codes, axis=1)
    x = x if test == "fisherz" else (x > 0).astype(int)
    graph = pc(x, 0.01, test, show_progress=False).G.graph
    return split((graph != 0) | (graph.T != 0), codes)


def causal_learn_grasp(codes: list[np.ndarray]) -> list[np.ndarray]:
    """GRaSP with BIC, in Python."""
    from causallearn.search.PermutationBased.GRaSP import grasp

    x = np.concatenate(codes, axis=1)
    graph = grasp(x, score_func="local_score_BIC_from_cov", verbose=False).graph
    return split((graph != 0) | (graph.T != 0), codes)


def dagma(codes: list[np.ndarray], most: int | None = None) -> list[np.ndarray]:
    """DAGMA, linear, its own threshold; among the ``most`` most varying variables, if given.

    Causal Concept Graphs do the latter with 64; there is no edge elsewhere.
    """
    from dagma.linear import DagmaLinear

    x = np.concatenate(codes, axis=1)
    size = x.shape[1]
    top = np.arange(size) if most is None else np.argsort(-x.var(axis=0), kind="stable")[:most]
    y = (x[:, top] - x[:, top].mean(axis=0)) / x[:, top].std(axis=0)
    found = DagmaLinear(loss_type="l2").fit(y, lambda1=0.02)
    graph = np.zeros((size, size), dtype=bool)
    graph[np.ix_(top, top)] = (found != 0) | (found.T != 0)
    return split(graph, codes)


def split(joined: np.ndarray, codes: list[np.ndarray]) -> list[np.ndarray]:
    """Cut the blocks between adjacent levels out of a skeleton over all variables."""
    ends = np.cumsum([0, *(c.shape[1] for c in codes)])
    return [joined[ends[i] : ends[i + 1], ends[i + 1] : ends[i + 2]] for i in range(2)]


METHODS: dict[str, Callable[[list[np.ndarray]], list[np.ndarray]]] = {
    "strata": ours,
    "shuffled null": shuffled,
    "correlation, Bonferroni": correlation,
    "lasso, cross-validated": lasso,
    "pybnesian PC Fisher-Z": pybnesian_fisher,
    "pybnesian PC chi2": pybnesian_chi2,
    "FLOP": flop,
    "causal-learn GRaSP": causal_learn_grasp,
    "causal-learn PC Fisher-Z": partial(causal_learn_pc, test="fisherz"),
    "causal-learn PC chi2": partial(causal_learn_pc, test="chisq"),
    "causal-learn PC G2": partial(causal_learn_pc, test="gsq"),
    "DAGMA": dagma,
    "DAGMA, 64 concepts": partial(dagma, most=64),
}


def run_apart(
    method: Callable[[list[np.ndarray]], list[np.ndarray]],
    codes: list[np.ndarray],
    patience: float,
) -> tuple[list[np.ndarray] | None, float]:
    """Run a method in its own process, for ``patience`` seconds at most.

    Returns its edges and processor seconds; None and the patience where it was stopped.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_timed, args=(method, codes, queue))
    child.start()
    try:
        found, seconds = queue.get(timeout=patience)
    except Exception:
        found, seconds = None, patience
    child.terminate()
    child.join()
    return found, seconds


def _timed(method: Callable, codes: list[np.ndarray], queue) -> None:
    warnings.simplefilter("ignore")
    try:
        # The first call pays for imports; a tenth of the rows makes it short.
        method([c[:500] for c in codes])
        started = time.process_time()
        found = method(codes)
        queue.put((found, time.process_time() - started))
    except Exception:
        queue.put((None, float("nan")))


def scale(results: Path, quick: bool) -> None:
    """Time planted edges among many sparse concepts, each size in its own process.

    The codes are made by another process, so that the peak is that of reading and recovery.
    """
    rows = []
    width = 2_048 if quick else 16_384
    context = multiprocessing.get_context("spawn")
    for n in (20_000, 60_000) if quick else (100_000, 300_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            queue = context.Queue()
            for work in (_make_planted, _planted_run):
                child = context.Process(target=work, args=(n, width, Path(folder), queue))
                child.start()
                found = queue.get()
                child.join()
        rows.append({"rows": n, "parts": width, "wholes": width, **found})
        write(results / "graphs_scale.csv", rows)


def _make_planted(n: int, width: int, folder: Path, queue) -> None:
    for name, matrix in zip("pwt", planted(n, width, 32, seed=1), strict=True):
        sparse.save_npz(folder / name, matrix, compressed=False)
    queue.put({})


def _planted_run(n: int, width: int, folder: Path, queue) -> None:
    parts, wholes, true = (sparse.load_npz(folder / f"{name}.npz") for name in "pwt")
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started, used = time.perf_counter(), time.process_time()
    found = recover_edges(parts, wholes)
    queue.put(
        {
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - used,
            "loaded_gib": loaded,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "f1": sparse_f1(found, true),
            "edges": found.n_edges,
        }
    )


def planted(
    n: int, width: int, k: int, seed: int
) -> tuple[sparse.csr_array, sparse.csr_array, sparse.csr_array]:
    """Return parts and wholes with k active codes a row, and (width, width) true edges.

    Each whole sums two or three parts; of all wholes that a row calls, the k strongest are kept,
    as a TopK dictionary does.
    """
    rng = np.random.default_rng(seed)
    indptr = np.arange(0, n * k + 1, k)
    values = (0.2 + rng.exponential(1.0, n * k)).astype(np.float32)
    parts = sparse.csr_array((values, rng.integers(0, width, n * k), indptr), shape=(n, width))
    parts.sum_duplicates()
    counts = rng.integers(2, 4, width)
    chosen = np.concatenate([rng.choice(width, c, replace=False) for c in counts])
    owner = np.repeat(np.arange(width), counts)
    ones = np.ones(len(chosen), np.float32)
    true = sparse.csr_array((ones, (chosen, owner)), shape=(width, width))
    blocks: Iterable = (parts[a : a + 50_000] @ true for a in range(0, n, 50_000))
    return parts, sparse.vstack([_strongest(b, k, rng) for b in blocks], format="csr"), true


def _strongest(drive: sparse.csr_array, k: int, rng: np.random.Generator) -> sparse.csr_array:
    noisy = drive.data + 0.2 * rng.standard_normal(drive.nnz).astype(np.float32)
    row = np.repeat(np.arange(drive.shape[0]), np.diff(drive.indptr))
    order = np.lexsort((-noisy, row))
    place = np.arange(drive.nnz) - drive.indptr[row]
    kept = order[(place < k) & (noisy[order] > 0)]
    return sparse.csr_array((noisy[kept], (row[kept], drive.indices[kept])), shape=drive.shape)


def f1(found: np.ndarray, true: np.ndarray) -> float:
    """Return F1 of bool adjacencies."""
    return float(2 * (found & true).sum() / max(found.sum() + true.sum(), 1))


def sparse_f1(found: EdgeRecovery, true: sparse.csr_array) -> float:
    """Return F1 of a recovery against a sparse adjacency."""
    hits = np.asarray(true[found.part, found.whole]).astype(bool).sum() if found.n_edges else 0
    return float(2 * hits / max(found.n_edges + true.nnz, 1))


def write(path: Path, rows: list[dict]) -> None:
    """Write rows as CSV below three comment lines: command, machine, date."""
    with path.open("w", newline="") as file:
        file.write(f"# python {' '.join(sys.argv)}\n")
        file.write(f"# {platform.platform()}, {cpu()}, numpy {np.__version__}\n")
        file.write(f"# {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n")
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def cpu() -> str:
    """Return the processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0].split(':')[1].strip()}" if names else platform.processor()


if __name__ == "__main__":
    main()
