"""The model card of a version: a ``README.md`` that makes its folder ready for the Hub.

The front matter carries ``library_name: saelens``, so that the Hub shows how to load it; every
dictionary is a folder in SAELens' layout below the card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from storage.registry.manifests import LevelEntry, Manifest, shown_scores

__all__ = ["model_card"]

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#])")


def model_card(manifest: Manifest) -> bytes:
    """Return the card of a version; it says nothing that the manifest does not say."""
    parts = [
        _front_matter(manifest),
        f"# {_text(manifest.name)}, version {manifest.version}\n",
        _opening(manifest),
        "## Levels\n",
        _level_table(manifest),
        "## Loading\n",
        _loading(manifest),
    ]
    if manifest.metrics:
        parts += ["## Metrics\n", _table(("metric", "value"), _flat(manifest.metrics))]
    if manifest.lineage:
        # What each step was made on is for `strata artifacts reproduce`, and longer than the rest.
        told = [row for row in _flat(manifest.lineage) if ".made_on." not in row[0]]
        parts += ["## Lineage\n", _table(("what", "value"), told)]
    parts.append(
        f"Content hash `{manifest.content_hash}`. Check the files with "
        "`sha256sum --check SHA256SUMS`.\n"
    )
    return "\n".join(parts).encode()


def _front_matter(manifest: Manifest) -> str:
    header: dict[str, Any] = {
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "mechanistic-interpretability", "concept-graph", "strata"],
    }
    model = manifest.lineage.get("model")
    if isinstance(model, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        header["base_model"] = model
    return f"---\n{yaml.safe_dump(header, sort_keys=True)}---\n"


def _opening(manifest: Manifest) -> str:
    counts = manifest.counts
    held = [f"{counts[key]:,} {key}" for key in ("concepts", "nodes", "edges") if key in counts]
    text = f"A concept hierarchy: {', '.join(held)}.\n" if held else "A concept hierarchy.\n"
    text += f"Published {manifest.created_at:%Y-%m-%d %H:%M} UTC"
    text += f", following version {manifest.parent}.\n" if manifest.parent else ".\n"
    if manifest.status == "rejected":
        reasons = "; ".join(_text(reason) for reason in manifest.rejections) or "no reason given"
        text += f"\n**Rejected by its quality gates:** {reasons}.\n"
    return text


def _level_table(manifest: Manifest) -> str:
    if not manifest.levels:
        return "This version holds no dictionaries.\n"
    levels = sorted(manifest.levels, key=lambda entry: entry.level)
    shown = shown_scores(levels)
    return _table(
        ("level", "folder", "hookpoint", "timestep", "concepts", "width", *shown),
        [_level_row(entry, shown) for entry in levels],
    )


def _level_row(entry: LevelEntry, shown: list[str]) -> tuple[Any, ...]:
    return (
        entry.level,
        f"dictionaries/{entry.name}",
        entry.hookpoint,
        "" if entry.timestep is None else entry.timestep,
        entry.n_concepts,
        entry.d,
        *(entry.metrics.get(key, "") for key in shown),
    )


def _loading(manifest: Manifest) -> str:
    lines = []
    if manifest.levels:
        first = min(manifest.levels, key=lambda entry: entry.level)
        lines += [
            "from sae_lens import SAE",
            f'sae = SAE.load_from_disk("dictionaries/{first.name}")',
        ]
    if "graph/graph.graphml" in manifest.files:
        lines += ["import networkx", 'graph = networkx.read_graphml("graph/graph.graphml")']
    if "graph/edges.parquet" in manifest.files:
        lines += ["import pandas", 'edges = pandas.read_parquet("graph/edges.parquet")']
    lines += [
        "from storage.artifacts import Registry",
        f'artifact = Registry(url).load("{manifest.name}", {manifest.version})',
    ]
    return "```python\n" + "\n".join(lines) + "\n```\n"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{name}.")
        else:
            rows.append((name, value))
    return rows


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    return value if value == "---" else _text(str(value))


def _text(value: str) -> str:
    """Text that Markdown shows as it is: names and reasons come from outside."""
    return _MARKDOWN.sub(r"\\\1", " ".join(value.split()))
