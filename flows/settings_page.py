"""`SETTINGS.md`: every setting of a recipe and of a training, as the forms of the code say.

``python -m flows.settings_page`` writes the page anew, and a test holds it to the code. A setting
that no recipe of Strata's own turns is listed as advanced.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flows.recipe import Recipe, recipe_names
from flows.training_recipes import TRAININGS

__all__ = ["PAGE", "settings_page"]

PAGE = Path(__file__).with_name("SETTINGS.md")
_HEAD = """# Settings

Written by `python -m flows.settings_page` from the settings' own definitions: change those, not
this page. A recipe is a YAML file of these settings. One of them is changed on the command line, as
in `strata run smollm2 --set learn.k=16`, or in the form of the Prefect UI. Those that none of
Strata's own recipes turns are listed as *advanced*. What is not valid is refused before anything
runs, in one sentence that names the setting, the value and the remedy.
"""
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "yes or no",
    "object": "mapping",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Schema = dict[str, Any]


def settings_page() -> str:
    """The whole page."""
    parts = [_HEAD]
    turned = set(_turned())
    schema = Recipe.model_json_schema()
    for path, below in _sections(schema, schema, ""):
        if not all(_target(field) for field in below["properties"].values()):
            parts.append(_section(f"`{path or 'recipe'}`", path, below, turned))
    for name, training in TRAININGS.items():
        schema = training.model_json_schema()
        parts.append(_section(f"`strata run {name}`", "", schema, set(schema["properties"])))
    return "\n".join(parts)


def _sections(schema: Schema, root: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Groups of settings by their path, outermost first; equal neighbours are given once."""
    yield path, schema
    groups: dict[str, list[str]] = {}
    for name, field in schema["properties"].items():
        if target := _target(field):
            groups.setdefault(target, []).append(name)
    for target, names in groups.items():
        name = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
        below = root["$defs"][target]
        yield from _sections(below, root, f"{path}.{name}" if path else name)


def _section(title: str, path: str, schema: Schema, turned: set[str]) -> str:
    needed = schema.get("required", ())
    common: list[str] = []
    advanced: list[str] = []
    for name, field in schema["properties"].items():
        if _target(field):
            continue
        full = f"{path}.{name}" if path else name
        known = name in needed or turned & _spelled(full)
        (common if known else advanced).append(_row(full, field, name in needed))
    about = " ".join(schema.get("description", "").split("\n\n")[0].split())
    text = f"## {title}\n\n{about}\n"
    if common:
        text += f"\n{_table(common)}"
    return text + (f"\nAdvanced:\n\n{_table(advanced)}" if advanced else "")


def _table(rows: list[str]) -> str:
    return "\n".join(["| setting | values | default | meaning |", "|---|---|---|---|", *rows, ""])


def _row(path: str, field: Schema, needed: bool) -> str:
    # Forms mark a setting in its description, the page by its table.
    meaning = field.get("description", "").removesuffix(" (advanced)")
    meaning = " ".join(meaning.split()).replace("|", "\\|")
    default = "needed" if needed else _default(field)
    return f"| `{path}` | {_values(field)} | {default} | {meaning} |"


def _values(field: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(_values(each) for each in field["anyOf"] if each["type"] != "null")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        return f"list of {_values(field['items'])}s"
    bounds = [f"{sign} {field[key]:,}" for key, sign in _BOUNDS.items() if key in field]
    return ", ".join([_KINDS[field["type"]], *bounds])


def _default(field: Schema) -> str:
    if "default" not in field:
        return "`STRATA_STORE`, or `.strata`"
    value = field["default"]
    if value in (None, "", []):
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _target(field: Schema) -> str | None:
    """The definition that a field refers to, itself or by the items of its list."""
    reference = field.get("$ref") or field.get("items", {}).get("$ref")
    return reference.rpartition("/")[2] if reference else None


def _turned() -> Iterator[str]:
    """Dotted names of all settings that a recipe of Strata's own gives."""
    folder = importlib.resources.files("flows") / "recipes"
    for name in recipe_names():
        yield from _paths(yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")), "")


def _paths(values: Any, path: str) -> Iterator[str]:
    if isinstance(values, list):
        for value in values:
            yield from _paths(value, path)
    elif isinstance(values, dict):
        for name, value in values.items():
            yield from _paths(value, f"{path}.{name}" if path else name)
    else:
        yield path


def _spelled(path: str) -> set[str]:
    """A path such as ``a.{b,c}.d`` in each of its spellings."""
    head, brace, rest = path.partition("{")
    if not brace:
        return {path}
    inside, _, tail = rest.partition("}")
    return {f"{head}{each}{tail}" for each in inside.split(",")}


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
