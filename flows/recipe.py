"""Reading recipes: a whole run as one validated value, from a YAML file and settings beside it."""

from __future__ import annotations

import difflib
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from compute.settings import Recipe
from storage.locations import without_secrets

__all__ = ["BadInput", "Recipe", "load_recipe", "recipe_names", "with_settings"]

Model = TypeVar("Model", bound=BaseModel)
_FOLDER = importlib.resources.files("flows") / "recipes"
_MAX_RECIPE = 2**16
_MAX_DEPTH = 16


class BadInput(ValueError):
    """What the user asked for cannot be done; the message says which field, value and remedy.

    A URL among what the user gave is told without what may be a key in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


class _Refused(yaml.MarkedYAMLError):
    """YAML that no recipe needs."""

    def __init__(self, what: str, mark: Any) -> None:
        super().__init__(problem=f"holds {what}", problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """YAML as a recipe needs it: shallow, and each key and each value written once.

    An alias stands for another place of the file, and a few lines of aliases of aliases for more
    values than any memory holds.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases and depth before anything is made of them."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(f"the alias *{str(event.anchor)[:40]}", event.start_mark)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Refused(f"lists and mappings more than {_MAX_DEPTH} deep", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Refuse what is a YAML value and is not one of JSON, with its line."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise _Refused(f"a value that cannot be read ({error})", node.start_mark) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise _Refused("a number that is not finite", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands there twice: one of its two values would be lost."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise _Refused(f"the key {key.value[:40]!r} twice", key.start_mark)
                seen.add((key.tag, key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


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
        text, folder = _text(recipe, path), path.parent
    elif recipe in recipe_names():
        text, folder = (_FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8"), None
    else:
        known = ", ".join(recipe_names())
        raise BadInput(f"recipe {recipe!r} is unknown: use one of {known}, or a .yaml file.")
    try:
        values = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader, and stricter
    except yaml.YAMLError as error:
        raise BadInput(
            f"recipe {recipe!r} cannot be read ({_yaml_reason(error)}): mend the file."
        ) from None
    if not isinstance(values, dict):
        raise BadInput(f"recipe {recipe!r} is not a mapping of settings: see the recipes' form.")
    if folder is not None:
        _place_sources(values.get("learn"), folder)
    return values


def _place_sources(learn: Any, folder: Path) -> None:
    """Have sources of trained dictionaries that lie beside the recipe's file say where that is.

    One that is not there may be the name of a repository on the Hub.
    """
    if not isinstance(learn, dict):
        return
    levels = learn.get("levels")
    for own in (learn, *(levels.values() if isinstance(levels, dict) else ())):
        source = own.get("source") if isinstance(own, dict) else None
        if isinstance(source, str) and (placed := folder / Path(source).expanduser()).exists():
            own["source"] = str(placed.absolute())


def _text(recipe: str, path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(_MAX_RECIPE + 1)
    if len(data) > _MAX_RECIPE:
        raise BadInput(
            f"recipe {recipe!r} has more than {_MAX_RECIPE:,} bytes: a recipe names its inputs and "
            "does not hold them."
        )
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadInput(f"recipe {recipe!r} is not text in UTF-8: save it as such.") from None


def _yaml_reason(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or "is not YAML"
    mark = getattr(error, "problem_mark", None)
    return f"{problem} in line {mark.line + 1}" if mark is not None else str(problem)


def _apply(model: type[BaseModel], values: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise BadInput(f"setting {setting!r} is not of the form name=value, such as learn.k=16.")
    known: Any = model
    place: Any = values
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        known = _below(known, place, names, depth)
        if last:
            break
        # What a recipe shares with others is not changed.
        at: Any = int(name) if isinstance(place, list) else name
        there = place[at] if isinstance(place, list) else place.get(at)
        place[at] = list(there) if isinstance(there, list | tuple) else {}
        if isinstance(there, Mapping):
            place[at] = dict(there)
        place = place[at]
    key = int(names[-1]) if isinstance(place, list) else names[-1]
    if len(text) > _MAX_RECIPE:
        raise BadInput(f"setting {path!r} has more than {_MAX_RECIPE:,} characters: give less.")
    try:
        place[key] = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader, and stricter
    except _Refused as error:
        raise BadInput(f"setting {path!r} {error.problem}: leave that out.") from None
    except yaml.YAMLError:
        place[key] = text


def _below(known: Any, place: Any, names: Sequence[str], depth: int) -> Any:
    """The type of what a name stands for below a model, a mapping or a list.

    Raises
    ------
    BadInput
        If there is no such name, or no such place in the list.
    """
    path, name = ".".join(names), names[depth]
    kinds = get_args(known)
    if get_origin(known) is tuple:
        here = ".".join(names[:depth])
        if not isinstance(place, list) or not name.isdecimal() or int(name) >= len(place):
            count = len(place) if isinstance(place, list) else 0
            raise BadInput(
                f"setting {path!r} is unknown: {here} has {count} entries, the first is {here}.0."
            )
        return kinds[0]
    if get_origin(known) is dict:
        return kinds[1]
    fields = getattr(known, "model_fields", None)
    if fields is None or name not in fields:
        close = difflib.get_close_matches(name, fields or (), 1, 0.5)
        hint = _names(known)
        if close:
            hint = f"did you mean {'.'.join([*names[:depth], close[0]])!r}?"
        raise BadInput(f"setting {path!r} is unknown: {hint}")
    return fields[name].annotation


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
