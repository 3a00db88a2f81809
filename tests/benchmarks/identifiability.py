"""Concepts and edges of worlds with known answers: hierarchical models against their rivals.

    python tests/benchmarks/identifiability.py [--worlds …] [--methods …] [--seeds 5]

Every row of ``results/identifiability.csv`` is one method on one world and seed: MCC of parts and
of wholes (mean |cosine| with the true directions under the best matching; what was not found counts
0), the F1 of the edges under that matching, and the error in the number of concepts (sum over
levels of |found - true|, as a share of the true number). Rows that are there are not computed
again. The CSV starts with command and machine; ``identifiability.png`` is drawn if matplotlib is
there.

Worlds have sizes 24 → 10 → 4; every method gets the same rows, the true numbers of concepts, and
the true mean number of active concepts, rounded up. Edges of all methods but the hierarchical ones,
which bring their own, are recovered from their codes by ``recover_edges``.

- ``hierarchical``: ``HierarchicalSelectionModel``;
- ``minimal``: the same, offered twice the true number of concepts at every level;
- ``uncoupled``: the same with ``coupled=False``, every level by itself;
- ``streamed``: ``StreamedSelectionModel``, which recipes learn with;
- ``independent``: ``fit_dictionary`` per level, at the settings the hierarchical model starts from,
  but as dictionaries are commonly trained; ``independent, whitened``: in whitened coordinates, as
  the hierarchical model does; ``batchtopk, whitened, 2000``: whitened on all rows, ten times the
  steps, about the processor time of the hierarchical models;
- ``one dictionary``: one over the rows of all levels; a concept is of the level it serves most;
- ``random decoder``: frozen random directions, codes by TopK;
- ``saelens topk``, ``saelens matryoshka``: SAELens' training classes, same steps and batches;
  ``saelens topk, 2000``: with ten times the steps;
- ``sparse vae``: Moran et al. 2022 (2110.10804), after its paper: every coordinate is a function of
  the latents that a spike-and-slab lasso leaves it; directions are mean slopes of the decoder;
- ``causal explanations``: O'Shaughnessy et al. 2020 (2006.13913), after its paper: latents with the
  largest effect on a classifier of the level's activations, which is trained on the true answer to
  which concept of the highest level is strongest, more than other methods are told;
- ``true codes``: no method but a ceiling: directions are least squares on the true codes, edges are
  recovered from these;
- ``pca``, ``ica``, ``nmf``: scikit-learn's, where it is installed.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _variational
import numpy as np
import torch

from compute.dictionaries import Dictionary, fit_dictionary
from compute.dictionaries.architectures import Normalization
from compute.dictionaries.evaluation import match_directions
from compute.dictionaries.fit import shuffled_batches
from compute.dictionaries.normalization import estimate_whitening
from compute.graphs import recover_edges
from compute.selection import HierarchicalSelectionModel, StreamedSelectionModel
from compute.worlds import SelectionWorld

RESULTS = Path(__file__).parent / "results"
FIELDS = (
    "world",
    "method",
    "seed",
    "mcc_parts",
    "mcc_wholes",
    "edge_f1",
    "count_error",
    "cpu_seconds",
)
SCORES = FIELDS[3:6]
BATCH = 1024
WORLDS: dict[str, dict] = {
    "mixed gates": {},
    "and": {"gates": ("and",)},
    "or": {"gates": ("or",)},
    "thresholds": {"gates": ("sum-threshold",)},
    "noisy gates": {"noise": 0.3},
    "noisy activations": {"activation_noise": 0.1},
    "correlated": {"correlation": 0.6},
    "overcomplete": {"sizes": (24, 16, 4), "dim": 12, "density": 0.08},
    "nonlinear mixing": {"mixing": "nonlinear"},
}


class Scale(NamedTuple):
    """How large the worlds are, and how long methods train."""

    sizes: tuple[int, ...] = (24, 10, 4)
    dim: int = 24
    rows: int = 4000
    steps: int = 200
    rounds: int = 6


class Problem(NamedTuple):
    """What a method is given; it fits ``x`` and may be asked for the codes of other rows.

    ``labels`` (n,) are what a classifier is trained to say of a row, and ``codes`` the true ones of
    every level, if they are given.
    """

    x: list[np.ndarray]
    widths: tuple[int, ...]
    k: list[int]
    seed: int
    scale: Scale
    held_out: list[np.ndarray] | None = None
    labels: np.ndarray | None = None
    codes: list[np.ndarray] | None = None


class Answer(NamedTuple):
    """Directions (c_l, d) per level, and edges between levels or codes to recover them from.

    ``held_out`` are the codes of the rows held out, if there are any.
    """

    directions: list[np.ndarray]
    codes: list[np.ndarray] | None = None
    edges: list[np.ndarray] | None = None
    held_out: list[np.ndarray] | None = None


Encoder = Callable[[np.ndarray], np.ndarray]


def answer(problem: Problem, directions: list[np.ndarray], encoders: list[Encoder]) -> Answer:
    """The answer of a method whose levels are encoded each by itself."""
    other = problem.held_out
    return Answer(
        directions,
        [encode(x) for encode, x in zip(encoders, problem.x)],
        held_out=None if other is None else [encode(x) for encode, x in zip(encoders, other)],
    )


def selected(problem: Problem, model: Any) -> Answer:
    """The answer of a selection model, which brings its own edges."""
    model.fit(problem.x)
    return Answer(
        [d.directions.numpy() for d in model.dictionaries_],
        edges=model.edges_,
        held_out=None if problem.held_out is None else model.transform(problem.held_out),
    )


def hierarchical(problem: Problem, offered: int = 1, **settings: Any) -> Answer:
    model = HierarchicalSelectionModel(
        [offered * width for width in problem.widths],
        problem.k,
        problem.seed,
        steps=problem.scale.steps,
        rounds=problem.scale.rounds,
        **settings,
    )
    return selected(problem, model)


def streamed(problem: Problem, offered: float = 1, **settings: Any) -> Answer:
    """The model that recipes learn with, told at most how many concepts there are."""
    widths = [round(offered * width) for width in problem.widths]
    return selected(problem, StreamedSelectionModel(widths, seed=problem.seed, **settings))


def independent(problem: Problem, whiten: bool = False) -> Answer:
    found = [
        fit_dictionary(
            x,
            width,
            k,
            problem.scale.steps,
            problem.seed,
            "batchtopk",
            batch_size=BATCH,
            whiten=whiten,
        )
        for x, width, k in zip(problem.x, problem.widths, problem.k)
    ]
    encoders: list[Encoder] = [lambda x, d=d: d.encode(x).numpy() for d in found]
    return answer(problem, [d.directions.numpy() for d in found], encoders)


def whitened(problem: Problem, steps: int, architecture: str = "batchtopk") -> Answer:
    """Dictionaries in coordinates whitened on all rows, trained for so many steps."""
    directions, encoders = [], []
    for x, width, k in zip(problem.x, problem.widths, problem.k):
        rows = torch.from_numpy(x)
        whitening = estimate_whitening(rows)
        found = fit_dictionary(
            whitening.rows(rows), width, k, steps, problem.seed, architecture, batch_size=1024
        )
        directions.append(whitening.directions(found.directions).numpy())
        encoders.append(partial(_encode, found, whitening))
    return answer(problem, directions, encoders)


def _encode(dictionary: Dictionary, whitening: Normalization, x: np.ndarray) -> np.ndarray:
    return dictionary.encode(whitening.rows(torch.from_numpy(x))).numpy()


def one_dictionary(problem: Problem) -> Answer:
    rows = np.concatenate(problem.x)
    dictionary = fit_dictionary(
        rows,
        sum(problem.widths),
        max(problem.k),
        problem.scale.steps * len(problem.x),
        problem.seed,
        "batchtopk",
        batch_size=BATCH,
    )
    codes = [dictionary.encode(x).numpy() for x in problem.x]
    home = np.stack([z.sum(0) for z in codes]).argmax(0)
    places = [np.flatnonzero(home == level) for level in range(len(problem.x))]
    directions = dictionary.directions.numpy()
    return Answer([directions[p] for p in places], [z[:, p] for z, p in zip(codes, places)])


def random_decoder(problem: Problem) -> Answer:
    rng = np.random.default_rng(problem.seed)
    directions = [rng.normal(size=(w, x.shape[1])) for w, x in zip(problem.widths, problem.x)]
    directions = [d / np.linalg.norm(d, axis=1, keepdims=True) for d in directions]

    def encode(x: np.ndarray, d: np.ndarray, middle: np.ndarray, k: int) -> np.ndarray:
        pull = (x - middle) @ d.T
        bar = np.partition(pull, -k, axis=1)[:, -k, None]
        return np.where(pull >= bar, np.maximum(pull, 0), 0)

    own = zip(directions, problem.x, problem.k)
    encoders = [partial(encode, d=d, middle=x.mean(0), k=k) for d, x, k in own]
    return answer(problem, directions, encoders)


def saelens(problem: Problem, kind: str) -> Answer:
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    @torch.no_grad()
    def encode(x: np.ndarray, sae: torch.nn.Module, mean: torch.Tensor, scale: float) -> np.ndarray:
        return sae.encode((torch.from_numpy(x) - mean) / scale).numpy()

    directions, encoders = [], []
    for x, width, k in zip(problem.x, problem.widths, problem.k):
        torch.manual_seed(problem.seed)
        own = {"d_in": x.shape[1], "d_sae": width, "k": k}
        if kind == "topk":
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(**own))
        else:
            nested = sorted({max(k, width // 4), max(k, width // 2), width})
            sae = MatryoshkaBatchTopKTrainingSAE(
                MatryoshkaBatchTopKTrainingSAEConfig(**own, matryoshka_widths=nested)
            )
        rows = torch.from_numpy(x)
        mean, scale = rows.mean(0), float((rows - rows.mean(0)).square().mean().sqrt())
        optimiser = torch.optim.Adam(sae.parameters(), lr=3e-3)
        idle = torch.zeros(width)
        for step, batch in enumerate(
            shuffled_batches((rows - mean) / scale, BATCH, problem.scale.steps, problem.seed)
        ):
            optimiser.param_groups[0]["lr"] = 3e-3 * min(1.0, 2 - 2 * step / problem.scale.steps)
            out = sae.training_forward_pass(TrainStepInput(batch, {}, idle > 200, step, False))
            optimiser.zero_grad()
            out.loss.backward()
            optimiser.step()
            idle = torch.where((out.feature_acts > 0).any(0), 0.0, idle + 1)
        encoders.append(partial(encode, sae=sae, mean=mean, scale=scale))
        directions.append(sae.W_dec.detach().numpy())
    return answer(problem, directions, encoders)


def variational(problem: Problem, builds: list[_variational.Build]) -> Answer:
    found = [
        _variational.explain(x, build, width, 10 * problem.scale.steps, problem.seed)
        for x, width, build in zip(problem.x, problem.widths, builds)
    ]
    return answer(problem, [directions for directions, _ in found], [encode for _, encode in found])


def sparse_vae(problem: Problem) -> Answer:
    builds = [partial(_variational.sparse_vae, c=width) for width in problem.widths]
    return variational(problem, builds)


def causal_explanations(problem: Problem) -> Answer:
    if problem.labels is None:
        raise ValueError("causal explanations explain a classifier; give labels to train one on.")
    labels = torch.from_numpy(problem.labels)
    steps = 10 * problem.scale.steps
    builds = [
        partial(_variational.causal_explanation, c=width, labels=labels, steps=steps)
        for width in problem.widths
    ]
    return variational(problem, builds)


def factors(problem: Problem, kind: str) -> Answer:
    from sklearn.decomposition import NMF, PCA, FastICA

    directions, encoders = [], []
    for x, width in zip(problem.x, problem.widths):
        rank = min(width, x.shape[1])
        if kind == "nmf":
            # Activations have both signs; their positive part is what NMF can be given.
            estimator = NMF(rank, init="nndsvda", random_state=problem.seed, max_iter=400)
            estimator.fit(np.maximum(x, 0))
            encoders.append(lambda rows, nmf=estimator: nmf.transform(np.maximum(rows, 0)))
        else:
            chosen = PCA if kind == "pca" else FastICA
            estimator = chosen(rank, random_state=problem.seed).fit(x)
            encoders.append(estimator.transform)
        directions.append(
            estimator.mixing_.T if kind == "ica" else np.asarray(estimator.components_)
        )
    return answer(problem, directions, encoders)


def true_codes(problem: Problem) -> Answer:
    if problem.codes is None:
        raise ValueError("true codes are asked for; give them.")
    fits = [
        np.linalg.lstsq(np.column_stack([z, np.ones(len(z))]), x, rcond=None)[0]
        for x, z in zip(problem.x, problem.codes)
    ]
    return Answer([solution[:-1] for solution in fits], problem.codes)


def _longer(method: Callable[[Problem], Answer], steps: int) -> Callable[[Problem], Answer]:
    return lambda problem: method(problem._replace(scale=problem.scale._replace(steps=steps)))


METHODS: dict[str, Callable[[Problem], Answer]] = {
    "hierarchical": hierarchical,
    "minimal": lambda problem: hierarchical(problem, offered=2),
    "uncoupled": lambda problem: hierarchical(problem, coupled=False),
    "streamed": streamed,
    "independent": independent,
    "independent, whitened": lambda problem: independent(problem, whiten=True),
    "batchtopk, whitened, 2000": lambda problem: whitened(problem, steps=2000),
    "one dictionary": one_dictionary,
    "random decoder": random_decoder,
    "saelens topk": lambda problem: saelens(problem, "topk"),
    "saelens matryoshka": lambda problem: saelens(problem, "matryoshka"),
    "saelens topk, 2000": _longer(partial(saelens, kind="topk"), 2000),
    "sparse vae": sparse_vae,
    "causal explanations": causal_explanations,
    "true codes": true_codes,
}
if importlib.util.find_spec("sklearn"):
    METHODS |= {
        "pca": lambda problem: factors(problem, "pca"),
        "ica": lambda problem: factors(problem, "ica"),
        "nmf": lambda problem: factors(problem, "nmf"),
    }


def score(answer: Answer, directions: list[np.ndarray], edges: list[np.ndarray]) -> dict:
    """MCC of parts and wholes, and F1 of edges over all pairs of levels."""
    maps, mcc = [], []
    for found, true in zip(answer.directions, directions):
        place = np.full(len(found), -1)
        total = 0.0
        if len(found):
            matching = match_directions(found, true)
            place[matching.first] = matching.second
            total = float(matching.cosines.sum())
        maps.append(place)
        mcc.append(total / len(true))
    graphs = answer.edges
    if graphs is None:
        graphs = [
            np.asarray(recover_edges(a, b).adjacency)
            if a.shape[1] and b.shape[1]
            else np.zeros((a.shape[1], b.shape[1]), bool)
            for a, b in zip(answer.codes[:-1], answer.codes[1:])
        ]
    hits = claimed = real = 0
    for graph, true, parts, wholes in zip(graphs, edges, maps[:-1], maps[1:]):
        part, whole = np.nonzero(graph)
        known = (parts[part] >= 0) & (wholes[whole] >= 0)
        hits += int(true[parts[part[known]], wholes[whole[known]]].sum())
        claimed += len(part)
        real += int(true.sum())
    return {
        "mcc_parts": mcc[0],
        "mcc_wholes": float(np.mean(mcc[1:])),
        "edge_f1": 2 * hits / max(1, claimed + real),
        "count_error": sum(abs(len(a) - len(b)) for a, b in zip(answer.directions, directions))
        / sum(len(true) for true in directions),
    }


def mean_active(codes: np.ndarray) -> int:
    """Mean number of active concepts in a row of codes (n, c), rounded up."""
    return max(1, int(np.ceil((codes > 0).sum(1).mean())))


def strongest(codes: np.ndarray) -> np.ndarray:
    """The strongest concept (n,) of each row of codes (n, c); c where none is active."""
    return np.where((codes > 0).any(1), codes.argmax(1), codes.shape[1])


def run(world_name: str, method: str, seed: int, scale: Scale) -> dict:
    options = {"sizes": scale.sizes, "dim": scale.dim} | WORLDS[world_name]
    world = SelectionWorld.vectors(seed=100 + seed, **options)
    rows = world.sample(scale.rows, seed=seed)
    k = [mean_active(z) for z in rows.codes]
    started = time.process_time()
    truth = {"labels": strongest(rows.codes[-1]), "codes": list(rows.codes)}
    found = METHODS[method](Problem(rows.activations, world.sizes, k, seed, scale, **truth))
    scores = score(found, world.directions, world.edges)
    seconds = time.process_time() - started
    return {"world": world_name, "method": method, "seed": seed, **scores, "cpu_seconds": seconds}


def read(path: Path, fields: Sequence[str] = FIELDS) -> list[dict]:
    """Rows of an earlier run; none if there was none."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return [
        row | {name: float(row[name]) for name in fields[3:]} | {"seed": int(row["seed"])}
        for row in csv.DictReader(lines)
    ]


def write(path: Path, rows: list[dict], fields: Sequence[str] = FIELDS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        file.write(f"# python {' '.join(sys.argv)}\n# {platform.platform()}, {cpu()}\n")
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for row in sorted(rows, key=lambda r: [r[name] for name in fields[:3]]):
            writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
    temporary.replace(path)


def completed(
    path: Path,
    places: Iterable[tuple[str, str, int]],
    measure: Callable[[str, str, int], Iterable[dict]],
    fields: Sequence[str] = FIELDS,
) -> list[dict]:
    """The rows of a table, with those of the places (world, method, seed) that it lacks.

    The file is written after every place, so that a run that was stopped goes on where it was.
    """
    rows = read(path, fields)
    done = {tuple(row[name] for name in fields[:3]) for row in rows}
    for place in places:
        if place not in done:
            rows += measure(*place)
            write(path, rows, fields)
    return rows


def by_seed(seeds: int, worlds: Sequence[str], methods: Sequence[str]) -> list[tuple]:
    """Places (world, method, seed), one seed after the other."""
    return [(world, method, s) for s in range(seeds) for world in worlds for method in methods]


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def summary(rows: list[dict]) -> list[dict]:
    """Means by method, and the hierarchical model's lead in worlds both were run on."""
    ours = {(r["world"], r["seed"]): r for r in rows if r["method"] == "hierarchical"}
    out = []
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == method]
        line = {"method": method, "runs": len(own)}
        for name in SCORES:
            line[name] = float(np.mean([r[name] for r in own]))
            pairs = [(ours.get((r["world"], r["seed"])), r) for r in own]
            leads = [a[name] - b[name] for a, b in pairs if a is not None]
            line[f"{name}_lead"] = float(np.mean(leads)) if leads else float("nan")
            line[f"{name}_lead_sd"] = float(np.std(leads)) if leads else float("nan")
        line["count_error"] = float(np.mean([r["count_error"] for r in own]))
        out.append(line)
    return sorted(out, key=lambda line: -line["mcc_wholes"])


def draw(rows: list[dict], path: Path) -> None:
    """Bars of the means by method with the spread over worlds and seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = [line["method"] for line in summary(rows)]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), sharey=True)
    for axis, name in zip(axes, SCORES):
        values = [[r[name] for r in rows if r["method"] == method] for method in methods]
        axis.barh(methods, [np.mean(v) for v in values], xerr=[np.std(v) for v in values])
        axis.set(title=name.replace("_", " "), xlim=(0, 1.05))
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


SMALL = Scale()


def main(arguments: list[str] | None = None, scale: Scale = SMALL) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows = completed(
        options.out / "identifiability.csv",
        by_seed(options.seeds, options.worlds, options.methods),
        lambda *place: [run(*place, scale)],
    )
    for line in summary(rows):
        sys.stdout.write(
            "{method:22} {runs:3}  parts {mcc_parts:.3f}  wholes {mcc_wholes:.3f} "
            "(lead {mcc_wholes_lead:+.3f} ± {mcc_wholes_lead_sd:.3f})  edges {edge_f1:.3f} "
            "(lead {edge_f1_lead:+.3f} ± {edge_f1_lead_sd:.3f})  "
            "count off by {count_error:.3f}\n".format(**line)
        )
    if importlib.util.find_spec("matplotlib"):
        draw(rows, options.out / "identifiability.png")
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
