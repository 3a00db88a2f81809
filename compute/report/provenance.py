"""Where a version comes from: settings, model, data, code and packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compute.settings import INPUT_KINDS, LearnSettings, Recipe
from storage.references import Reference

__all__ = ["code_commit", "facts", "lineage", "made_on", "package_versions"]


def lineage(recipe: Recipe, steps: Sequence[Reference]) -> dict[str, Any]:
    """All that a version follows from, as plain JSON; `steps` are those of the run, in order."""
    activations = steps[0].summary
    return {
        "model": recipe.model.source,
        "weights_hash": activations["weights_sha256"],
        "data_hash": activations["inputs_sha256"],
        "model_dtype": activations["model_dtype"],
        "stored_dtype": activations["stored_dtype"],
        "preflight": _preflight(activations["preflight"]),
        "settings": recipe.told,
        "resources": recipe.resources.model_dump(mode="json"),
        "code_commit": code_commit(),
        "packages": package_versions(),
        "upstream": {
            step.step: {
                "fingerprint": step.fingerprint,
                "content_hash": step.content_hash,
                "made_on": step.summary.get("made_on"),
            }
            for step in steps
        },
    }


def made_on(*, workers: int, threads: int, gpus: float = 0) -> dict[str, Any]:
    """What the bytes of a step's result may depend on besides settings and inputs, by name.

    Threads and accelerators are those of one worker, and workers the most that there may have been.
    The machine is the one that starts them.
    """
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "workers": workers,
        "threads": threads,
        "gpus": gpus,
        "code_commit": code_commit(),
        "packages": package_versions(),
    }


def _processor() -> str:
    """The processor's name, as Linux gives it; elsewhere as Python does, which may be empty."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor()


def facts(
    recipe: Recipe, activations: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What the report says of the run, by heading.

    Parameters
    ----------
    activations : mapping
        Summary of the step that extracted them.
    scores : mapping of str to mapping
        Those of each level's dictionary.
    """
    outliers = int(max(score["n_outliers"] for score in scores.values()))
    learn, source = recipe.learn, recipe.inputs.source
    kind = next(k for k in INPUT_KINDS if getattr(recipe.inputs, k) is not None)
    one_row = "tokens" if kind == "text" else "patches"
    sample = {"text": "documents", "prompts": "drawings", "images": "images"}[kind]
    weights, rows = activations["weights_sha256"], activations["rows"]
    preflight = _preflight(activations["preflight"])
    return [
        ("Model", recipe.model.gguf_file or recipe.model.source),
        ("Weights", f"sha256 {weights[:12]}…, run in {activations['model_dtype']}"),
        (kind.capitalize(), f"{source}, {activations['samples']:,} {sample}"),
        ("Rows", f"{rows:,} {one_row}, {rows - activations['train_rows']:,} held out"),
        ("Stored", f"in {activations['stored_dtype']}"),
        *([("Proved before the run", ", ".join(preflight["proved"]))] if preflight else []),
        ("Outliers", f"{outliers:,} rows left out (attention sinks)"),
        ("Dictionaries", _dictionaries(learn)),
    ]


def _preflight(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What was proved before the run, by name; None of a kind of model that has no preflight."""
    if record is None:
        return None
    told: dict[bool, dict[str, str]] = {holds: {} for holds in (True, False)}
    for proof in record["proofs"]:
        told[proof["holds"]][proof["name"]] = proof["told"]
    kept = {key: record[key] for key in ("rows", "largest", "device")}
    return kept | {"proved": told[True], "not_proved": told[False]}


def _dictionaries(learn: LearnSettings) -> str:
    if learn.method == "import":
        own = (level.source for level in learn.levels.values())
        named = dict.fromkeys(source for source in (learn.source, *own) if source is not None)
        return f"taken as trained from {', '.join(named)}"
    k = "found" if learn.k is None and learn.method == "hierarchical" else learn.active
    if learn.method == "hierarchical":
        return f"a hierarchical selection model, at most {learn.n_concepts:,} concepts, k {k}"
    return f"{learn.architecture}, {learn.n_concepts:,} concepts, k {k}"


def package_versions() -> dict[str, str]:
    """Versions of the packages that the result depends on."""
    names = (
        "strata",
        "torch",
        "transformers",
        "diffusers",
        "zarr",
        "numpy",
        "scipy",
        "ray",
        "prefect",
    )
    return {name: importlib.metadata.version(name) for name in names}


def code_commit() -> str | None:
    """The git commit of this code, marked if it has been changed since; None outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> Any:
        return subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        commit = git("rev-parse", "HEAD")
    except OSError:
        return None
    if commit.returncode:
        return None
    changed = bool(git("status", "--porcelain", "--untracked-files=no").stdout.strip())
    return str(commit.stdout.strip()) + ("+changed" if changed else "")
