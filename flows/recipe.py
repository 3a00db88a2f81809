"""Reading recipes: a whole run as one validated value, from a YAML file and settings beside it."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from compute.settings import Recipe

__all__ = ["BadInput", "Recipe", "load_recipe", "recipe_names", "with_settings"]

Model = TypeVar("Model", bound=BaseModel)
_FOLDER = importlib.resources.files("flows") / "recipes"


class BadInput(ValueError):
    """What the user asked for cannot be done; the message says which field, value and remedy."""


def recipe_names() -> list[str]:
    """Names of the recipes that come with Strata."""
    return sorted(
        p.name.removesuffix(".yaml") for p in _FOLDER.iterdir() if p.name != "__init__.py"
    )


def load_recipe(recipe: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or from a YAML file, and apply settings to it.

    Parameters
    ----------
    recipe : str
        The name of a recipe that comes with Strata, or the path of a ``.yaml`` file.
    settings : sequence of str
        Such as ``learn.k=16``; the value is read as YAML, the last one of a name counts.

    Raises
    ------
    BadInput
        In one sentence that names the field, the value and the remedy.
    """
    return with_settings(Recipe, _read(recipe), settings)


def with_settings(model: type[Model], values: dict[str, Any], settings: Sequence[str]) -> Model:
    """Apply settings such as ``learn.k=16`` to values, and make a model of them.

    Raises
    ------
    BadInput
        In one sentence that names the field, the value and the remedy.
    """
    for setting in settings:
        _apply(model, values, setting)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadInput(_sentence(error)) from None


def _read(recipe: str) -> dict[str, Any]:
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser()
        if not path.is_file():
            raise BadInput(f"recipe file {recipe!r} does not exist: check the path.")
        text = path.read_text(encoding="utf-8")
    elif recipe in recipe_names():
        text = (_FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        known = ", ".join(recipe_names())
        raise BadInput(f"recipe {recipe!r} is unknown: use one of {known}, or a .yaml file.")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "is not YAML"
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        raise BadInput(
            f"recipe {recipe!r} cannot be read ({problem}{line}): mend the file."
        ) from None
    if not isinstance(values, dict):
        raise BadInput(f"recipe {recipe!r} is not a mapping of settings: see the recipes' form.")
    return values


def _apply(model: type[BaseModel], values: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise BadInput(f"setting {setting!r} is not of the form name=value, such as learn.k=16.")
    known: Any = model
    for depth, name in enumerate(names):
        fields = getattr(known, "model_fields", None)
        if fields is None or name not in fields:
            close = difflib.get_close_matches(name, fields or (), 1, 0.5)
            hint = (
                f"did you mean {'.'.join([*names[:depth], close[0]])!r}?"
                if close
                else _names(known)
            )
            raise BadInput(f"setting {path!r} is unknown: {hint}")
        known = fields[name].annotation
    place = values
    for name in names[:-1]:
        # A copy, so that a mapping named twice in the YAML (an anchor) is not changed twice.
        place[name] = dict(place.get(name) or {})
        place = place[name]
    try:
        place[names[-1]] = yaml.safe_load(text)
    except yaml.YAMLError:
        place[names[-1]] = text


def _names(model: Any) -> str:
    fields: Mapping[str, Any] = getattr(model, "model_fields", {})
    return f"use one of {', '.join(fields)}." if fields else "it has no settings below it."


def _sentence(error: ValidationError) -> str:
    """The first problem of a validation error, as one sentence."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "value_error":
        return f"{field + ': ' if field else ''}{message}{more}."
    if first["type"] == "extra_forbidden":
        return f"setting {field!r} is unknown: leave it out or check its spelling{more}."
    if first["type"] == "missing":
        return f"setting {field!r} is missing: give it a value{more}."
    return f"{field} {first['input']!r} is not valid: {message[0].lower() + message[1:]}{more}."
