"""The tables of `README.md` beside this file, each written from the CSV of its benchmark.

    python tests/benchmarks/tables.py

writes anew what stands between ``<!-- table NAME -->`` and ``<!-- end -->``. No number of that page
is typed by hand, and a test compares the page with the CSVs. Below each table stand the commands
and machines that made it, as the CSV says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).with_name("README.md")
_PLACE = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.DOTALL)

Row = Sequence[object]
TABLES: dict[str, Callable[[], tuple[Sequence[str], Iterable[Row]]]] = {}


def table(function):
    """Register a table under its function's name; the CSV is the one of the name before ``__``."""
    TABLES[function.__name__] = function
    return function


def read(name: str) -> pd.DataFrame:
    """A CSV of results without its comments."""
    return pd.read_csv(RESULTS / f"{name}.csv", comment="#")


def provenance(name: str) -> str:
    """Commands and machines of a CSV, from its comments or its columns."""
    text = (RESULTS / f"{name}.csv").read_text(encoding="utf-8")
    comments = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    if comments:
        # A comment may go on after the command, with how it was run.
        command, *rest = (part.strip() for part in comments[0].split(";"))
        return f"`{command}`; {'; '.join([*rest, *comments[1:]])}"
    frame = read(name)
    if "command" in frame:
        pairs = frame[["command", "machine"]].drop_duplicates().itertuples(index=False)
        return "; ".join(f"`{command}`, {machine}" for command, machine in pairs)
    return "`python tests/benchmarks/discrete.py --causal-learn PYTHON`"


def digits(places: int) -> Callable[[float], str]:
    """How to write numbers with so many decimals; what is unknown is a dash."""
    return lambda value: "–" if pd.isna(value) else f"{value:,.{places}f}"


one, two, three, whole = digits(1), digits(2), digits(3), digits(0)


def percent(value: float) -> str:
    """A share in percent."""
    return "–" if pd.isna(value) else f"{value * 100:.0f} %"


def render(name: str) -> str:
    """A table as Markdown, with its provenance."""
    heads, rows = TABLES[name]()
    csv = name.split("__")[0]
    lines = [heads, ["---"] * len(heads), *rows]
    body = "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
    return f"{body}\n\n[`{csv}.csv`](results/{csv}.csv): {provenance(csv)}"


def page(text: str) -> str:
    """The page with every table written anew.

    Raises
    ------
    KeyError
        If the page has a place for a table that there is not.
    """
    return _PLACE.sub(lambda m: f"<!-- table {m[1]} -->\n{render(m[1])}\n<!-- end -->", text)


# ---- the pipeline ------------------------------------------------------------------------------


@table
def extraction():
    rows = [
        (r.model, r.threads, whole(r.bare_rows_s), whole(r.rows_s), two(r.ratio))
        for r in read("extraction").itertuples()
    ]
    return ("model", "threads", "bare forward loop, rows/s", "extraction, rows/s", "ratio"), rows


@table
def loader_speed():
    rows = [
        (r.contender, two(r.gb_per_s), two(r.of_memmap), two(r.times_saelens))
        for r in read("loader_speed").itertuples()
    ]
    return ("reader", "GB/s", "of a warm memory map", "times SAELens at its best buffer"), rows


@table
def memory():
    frame = read("memory").pivot(index="task", columns="rows", values="peak_mb")
    few, many = frame.columns
    rows = [
        (task, whole(r[few]), whole(r[many]), two(r[many] / r[few])) for task, r in frame.iterrows()
    ]
    return ("task", f"peak MB at {few:,} rows", f"at {many:,} rows", "ratio"), rows


@table
def overhead():
    rows = [
        (r.recipe, r.what, whole(r.seconds), percent(r.share))
        for r in read("overhead").itertuples()
    ]
    return ("recipe", "what", "seconds", "of the run"), rows


@table
def estimate_error():
    rows = [
        (r.recipe, r.what, f"{r.estimated:,.0f}", f"{r.real:,.0f}", two(r.ratio))
        for r in read("estimate_error").itertuples()
        if r.what.startswith("all")
    ]
    return ("recipe", "what", "estimated", "real", "ratio"), rows


@table
def soak():
    frame = read("soak")
    early, late = frame.iloc[1:10].mean(numeric_only=True), frame.iloc[-10:].mean(numeric_only=True)
    names = {
        "server_mb": "memory of the Prefect server, MB",
        "worker_mb": "memory of the worker, MB",
        "ray_mb": "memory of Ray, MB",
        "processes": "processes",
        "temporary_files": "temporary files",
        "ray_files": "files of Ray",
        "seconds": "seconds of a night",
        "kept_share": "share of concepts that keep their identity",
    }
    rows = [
        (name, two(early[key]), two(late[key]), two(late[key] / early[key]))
        for key, name in names.items()
    ]
    return ("what", "nights 2 to 10", f"last ten of {len(frame)}", "ratio"), rows


@table
def service_speed():
    rows = [(r.answer, whole(r.requests_per_second)) for r in read("service_speed").itertuples()]
    return ("answer", "requests per second"), rows


# ---- dictionaries ------------------------------------------------------------------------------


@table
def dictionaries_speed():
    rows = [
        (
            r.size,
            percent(0.5 if r.half_dead else 0),
            r.contender,
            two(r.ms_per_step),
            two(r.times_saelens),
            two(r.times_eager),
        )
        for r in read("dictionaries_speed").itertuples()
    ]
    heads = ("size", "dead concepts", "training step", "ms", "times SAELens", "times sparsify")
    return heads, rows


@table
def large_world():
    frame = read("large_world").groupby("method", sort=False).mean(numeric_only=True)
    rows = [(m, three(r.mcc), three(r.consistency), whole(r.seconds)) for m, r in frame.iterrows()]
    return ("dictionary", "MCC", "consistency between seeds", "seconds"), rows


@table
def concept_recurrence():
    frame = read("concept_recurrence")
    shown = (one, two, two, two, two, whole)
    columns = ["l0", "explained_variance", "agreement", "share", "plain", "cpu_seconds"]
    rows = []
    for _, r in frame.iterrows():
        given = ["–" if r["method"].startswith("random") else "own"] * 2
        if r["k"]:
            given = [f"{r['k']:.0f}", f"{r['steps']:,.0f}"]
        told = (write(r[name]) for write, name in zip(shown, columns, strict=True))
        rows.append((r["level"], r["method"], f"{r['concepts']:.0f}", *given, *told))
    head = ("level", "method", "concepts", "k", "steps", "L0", "explained variance", "agreement")
    return (*head, "above .9", "in plain coordinates", "s a fit"), rows


# ---- hierarchical selection models -------------------------------------------------------------

METHODS = {
    "true codes": "a ceiling: directions and edges of the true codes",
    "minimal": "hierarchical, offered twice the true number of concepts",
    "uncoupled": "hierarchical, every level by itself",
    "causal explanations": "generative causal explanations of a classifier",
    "one dictionary": "one dictionary over all levels",
    "streamed": "the streamed model, which recipes learn with",
    "batchtopk, whitened, 2000": "BatchTopK, whitened on all rows, ten times the steps",
    "saelens topk, 2000": "saelens topk, ten times the steps",
}


HIDDEN = {
    "streamed": "StreamedSelectionModel",
    "streamed, offered twice": "the same, offered twice the true number",
    "present fit": "HierarchicalSelectionModel",
    "batchtopk, whitened, 2000": "BatchTopK, whitened on all rows, 2,000 steps",
}


@table
def hidden_worlds_24_4000():
    frame = read("hidden_worlds_24_4000")
    columns = ["mcc_parts", "mcc_wholes", "edge_f1", "count_error", "cpu_seconds"]
    means = frame.groupby(["world", "method"])[columns].mean()
    # A method is shown with all its worlds or not at all.
    methods = [own for own in HIDDEN if own in set(frame["method"])]

    def shown(r):
        scores = " / ".join(three(r[name]) for name in columns[:3])
        off = f", {percent(r.count_error)} off" if r.count_error else ""
        return f"{scores}{off}, {whole(r.cpu_seconds)} s"

    rows = [
        (world, *(shown(means.loc[world, own]) for own in methods))
        for world in frame["world"].unique()
        if all((world, own) in means.index for own in methods)
    ]
    overall = means.groupby("method").mean()
    rows.append(("mean", *(shown(overall.loc[own]) for own in methods)))
    return ("world", *(HIDDEN[own] for own in methods)), rows


@table
def identifiability():
    frame = read("identifiability")
    scores = ["mcc_parts", "mcc_wholes", "edge_f1"]
    pairs = frame.set_index(["method", "world", "seed"])[scores]
    ours = pairs.loc["hierarchical"]
    rows = []
    means = pairs.groupby("method").mean().sort_values("mcc_wholes", ascending=False)
    for method, mean in means.iterrows():
        lead = ours - pairs.loc[method]
        spread = [f"{lead[s].mean():+.3f} ± {lead[s].std():.3f}" for s in scores[1:]]
        shown = spread if method != "hierarchical" else ["", ""]
        rows.append((METHODS.get(method, method), *(three(mean[s]) for s in scores), *shown))
    heads = ("method", "parts", "wholes", "edges", "our lead on wholes", "our lead on edges")
    return heads, rows


@table
def identifiability__worlds():
    frame = read("identifiability")
    mean = frame.groupby(["world", "method"])[["mcc_parts", "mcc_wholes", "edge_f1"]].mean()
    rows = []
    for world in sorted(frame.world.unique()):
        cells = [world]
        for method in (
            "hierarchical",
            "streamed",
            "batchtopk, whitened, 2000",
            "saelens topk",
            "true codes",
        ):
            cells.append(" / ".join(two(value) for value in mean.loc[(world, method)]))
        rows.append(cells)
    heads = (
        "world",
        "hierarchical",
        "streamed",
        "BatchTopK, whitened on all rows, ten times the steps",
        "SAELens TopK",
        "ceiling: true codes",
    )
    return heads, rows


@table
def identifiability__count():
    found = read("identifiability").query("method == 'minimal'")
    worlds = found.groupby("world").count_error
    rows = [(w, percent(e.mean()), f"{(e <= 0.1).sum()} of {len(e)}") for w, e in worlds]
    e = found.count_error
    rows.append(("**all**", f"{e.mean() * 100:.1f} %", f"{(e <= 0.1).sum()} of {len(e)}"))
    return ("world", "mean error in the number of concepts", "runs within 10 %"), rows


@table
def trained_models():
    frame = read("trained_models")
    levels = ["level_1", "level_2", "level_3"]
    mean = frame.groupby(["method", "model"])[levels].mean()
    order = mean.xs("grammar", level="model").level_2.sort_values(ascending=False).index
    rows = [
        [m, *(" / ".join(two(v) for v in mean.loc[(m, model)]) for model in ("grammar", "sprites"))]
        for m in order
    ]
    heads = (
        "method",
        "symbols / phrases / sentences of a GPT-2's grammar",
        "parts / objects / objects of drawn sprites",
    )
    return heads, rows


@table
def discrete_hierarchy():
    frame = read("discrete_hierarchy").groupby("method", sort=False).mean(numeric_only=True)
    names = {"oracle_structure": "told the structure", "latent_class": "one latent class"}
    rows = [
        (
            names.get(m, m),
            two(r.f1),
            percent(r.cardinalities),
            three(r.tv_mean),
            three(r.tv_worst_table),
            two(r.cpu_seconds),
        )
        for m, r in frame.iterrows()
    ]
    heads = ("method", "edge F1", "numbers of states right", "total variation, mean")
    return (*heads, "worst part", "processor seconds"), rows


@table
def discrete_trees():
    frame = read("discrete_trees").groupby(["family", "rows", "method"], sort=False)
    rows = [(*key, three(r.f1.mean()), two(r.seconds.mean())) for key, r in frame]
    return ("noise", "rows", "method", "F1", "seconds"), sorted(rows, key=lambda row: row[:2])


@table
def discrete_rank():
    frame = read("discrete_rank")
    seen = frame[frame.reachable]
    names = {"strata": "`nonnegative_rank`", "aic": "AIC", "bic": "BIC"}
    rows = [
        (
            names.get(m, "held-out likelihood"),
            percent((frame[m] == frame["rank"]).mean()),
            percent((seen[m] == seen["rank"]).mean()),
        )
        for m in ("strata", "aic", "bic", "held_out")
    ]
    heads = ("rule", f"right, of {len(frame)} tables")
    return (*heads, f"of the {len(seen)} whose last state stands out of the noise"), rows


# ---- graphs ------------------------------------------------------------------------------------


@table
def graphs_decisions():
    mean = read("graphs_decisions").groupby(["n", "world"], sort=False).mean(numeric_only=True)
    total = read("graphs_decisions").groupby("n").mean(numeric_only=True)
    rows = []
    for n in total.index:
        for world, r in [*mean.loc[n].iterrows(), ("**all**", total.loc[n])]:
            cells = (three(r.f1_low), three(r.f1_high), percent(r.kind_right))
            rows.append((f"{n:,}", world, *cells, percent(r.kind_undecided)))
    heads = ("rows", "world", "F1 parts → wholes", "F1 wholes → top level")
    return (*heads, "kind of whole right, where decided", "undecided"), rows


@table
def graphs_reliability():
    rows = [
        (r.case, f"{r.count:,}", three(r.mean_confidence), three(r.share_right))
        for r in read("graphs_reliability").itertuples(index=False)
    ]
    return ("edges with", "edges", "mean confidence", "share that is right"), rows


@table
def graphs_rivals():
    frame = read("graphs_rivals")
    rows = []
    for variables, group in frame.groupby("variables"):
        ours = group[group.method == "strata"].set_index("seed").seconds
        for method, found in group.groupby("method", sort=False):
            times = (found.seconds.values / ours.loc[found.seed].values).mean()
            cells = (len(found), three(found.f1_low.mean()), three(found.f1_high.mean()))
            rows.append((variables, method, *cells, f"{found.seconds.mean():.3g}", two(times)))
    heads = ("variables", "method", "worlds", "F1 parts → wholes", "F1 wholes → top level")
    return (*heads, "processor seconds", "times ours"), rows


@table
def graphs_scale():
    rows = [
        (
            f"{r.rows:,}",
            f"{r.parts:,} × {r.wholes:,}",
            whole(r.seconds),
            two(r.peak_gib),
            f"{r.f1:.4f}",
        )
        for r in read("graphs_scale").itertuples()
    ]
    return ("rows", "concepts", "seconds", "peak GiB, codes included", "F1"), rows


@table
def graphs_learned():
    frame = read("graphs_learned").astype({"level": int})
    names = {
        "true": "the true variables",
        "read off": "read off the activations by least squares",
        "independent": "independent dictionaries",
        "independent, whitened": "the same, whitened",
        "hierarchical": "hierarchical model (an earlier version)",
    }
    worlds = {
        "vectors": "vectors",
        "grammar": "grammar, a GPT-2",
        "sprites": "sprites, a diffusion model",
    }
    columns = [
        (w, lv) for w in worlds for lv in (1, 2) if len(frame.query("world == @w and level == @lv"))
    ]
    mean = frame.groupby(["codes", "world", "level"])[["f1_matched", "f1"]].mean()
    rows = []
    for codes, name in names.items():
        cells = [mean.loc[(codes, w, lv)] for w, lv in columns]
        rows.append((name, *(f"{two(c.f1_matched)} ({two(c.f1)})" for c in cells)))
    return ("codes", *(f"{worlds[w]}, {lv} → {lv + 1}" for w, lv in columns)), rows


@table
def identity_recovery():
    frame = read("identity_recovery")
    rows = []
    for key, found in frame.groupby(["learner", "replaced", "level"], sort=False):
        learner, replaced, level = key
        named = found.fates_named.sum()
        f1 = two(2 * found.fates_right.sum() / named) if replaced and named else "–"
        cells = (percent(found.kept.min()), percent(found.kept.max()), percent(found.wrong.max()))
        rows.append((learner, "a tenth replaced" if replaced else "the same", level, *cells, f1))
    heads = ("learner", "true concepts of the second night", "level", "identity kept, worst world")
    return (*heads, "best world", "wrong identities", "F1 of born and gone"), rows


# ---- interventions -----------------------------------------------------------------------------

PAIRS = {
    "edges": "edges of the recovered graph",
    "shuffled": "the same graph, shuffled",
    "random": "pairs that are no edges",
    "correlation": "as many edges of the strongest correlations",
}


@table
def verification():
    frame = read("verification")
    places = {
        ("blocks", "confirmed, up"): "between blocks",
        ("timesteps", "confirmed, down"): "between timesteps, whole set",
        ("timesteps", "confirmed, up"): "between timesteps, part set",
    }
    mean = frame.groupby(["levels", "measure", "pairs"]).value.mean()
    rows = [
        (PAIRS[pairs], *(percent(mean.loc[(*place, pairs)]) for place in places))
        for pairs in ("edges", "shuffled", "random")
    ]
    return ("confirmed, of pairs", *places.values()), rows


@table
def verification__circuits():
    frame = read("verification")
    mean = frame.groupby(["levels", "pairs", "confidence", "measure"]).value.mean()
    rows = []
    for levels in ("blocks", "timesteps"):
        for pairs in ("edges", "shuffled", "correlation"):
            cells = []
            for least in (0.5, 0.9, 0.0):
                found = mean.loc[(levels, pairs, least)]
                cells.append(f"{three(found.faithfulness)}, {two(found.completeness)}")
            rows.append((levels, PAIRS[pairs], *cells))
    heads = ("between", "circuits by", "confidence of .5 or more", ".9 or more", "all edges")
    return heads, rows


@table
def unlearning():
    frame = read("unlearning")
    names = {
        "levels": "concepts of three moments, what is shared spared",
        "whole and parts": "the same, parts chosen by the graph alone",
        "single, SAeUron": "one dictionary of all moments, SAeUron's score",
        "random": "as many random concepts",
    }
    scores = ["ua", "ira", "cra"]
    mean = frame.groupby(["method", "kind"])[[*scores, "cross"]].mean()
    rows = []
    for method in frame.method.unique():
        cells = []
        for kind in ("object", "colour"):
            r = mean.loc[(method, kind)]
            harmonic = 0.0 if (r[scores] == 0).any() else 3 / (1 / r[scores]).sum()
            cells += [" / ".join(two(v) for v in r[scores]), three(harmonic), two(r.cross)]
        rows.append((names.get(method, method), *cells))
    heads = [
        f"{kind}: {what}"
        for kind in ("objects", "colours")
        for what in ("UA / IRA / CRA", "harmonic", "cross")
    ]
    return ("method", *heads), rows


@table
def steering_overhead():
    rows = [
        (r.architecture, r.reader, f"{r.n_concepts:,}", two(r.plain_seconds), f"{r.overhead:+.1%}")
        for r in read("steering_overhead").itertuples()
    ]
    return (
        "architecture",
        "codes read",
        "concepts",
        "seconds without steering",
        "more with it",
    ), rows


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
