"""`strata doctor`: check every byte of what a run has stored, and mend it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from flows.failures import failure_of
from flows.plain_words import plain_markup
from flows.recipe import BadInput, Recipe, load_recipe, recipe_names

if TYPE_CHECKING:
    from storage.care.doctor import Finding
    from storage.locations import Location
    from storage.references import Step

__all__ = ["doctor"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# What is mended shows what was hidden behind it: rows behind a plan, folders behind their files.
_MOST_ROUNDS = 4


def doctor(
    target: Annotated[
        str,
        typer.Argument(help="A recipe, or the folder or URL of a store, of a step or of a table."),
    ],
    repair: Annotated[
        bool, typer.Option("--repair", help="Make what is damaged again; needs a recipe.")
    ] = False,
    settings: Annotated[
        list[str],
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="As in `strata run`."),
    ] = [],  # noqa: B006
    store: Annotated[
        str | None, typer.Option("--store", envvar="STRATA_STORE", help="As in `strata run`.")
    ] = None,
) -> None:
    """Check every byte of what is stored against its seals, and say which files are damaged.

    Given a recipe, looks at everything in its store; with `--repair`, makes what is damaged again,
    and only that. It comes out as it was, byte for byte, or the command fails. What killed writers
    left is removed; what no step wrote is named and stays. Nobody should be at work on the store.
    """
    recipe = _recipe(target, settings, store)
    if recipe is None:
        if repair:
            raise BadInput(
                f"target {_shown(target)} is not a recipe: give the one that wrote it, since "
                "--repair runs its model again."
            )
        findings = _look(target)
    else:
        findings = _look(recipe.store)
        for _ in range(_MOST_ROUNDS if repair else 0):
            if not any(map(_can_be_mended, findings)):
                break
            before = findings
            failure = _repair(recipe, findings)
            findings = _look(recipe.store)
            if findings == before:
                if failure is not None:
                    reason = plain_markup(failure_of(failure).sentence)
                    err.print(f"[red]not mended[/] {reason}", soft_wrap=True)
                break
        if repair and any(map(_can_be_mended, findings)):
            err.print(
                "What is left was written by another recipe or by a training: run the doctor with "
                "that recipe, or that training again."
            )
    if any(finding.is_damage for finding in findings):
        raise typer.Exit(1)


def _can_be_mended(finding: Finding) -> bool:
    return finding.kind not in ("stranger", "unfinished")


def _recipe(target: str, settings: Sequence[str], store: str | None) -> Recipe | None:
    if target not in recipe_names() and not target.endswith((".yaml", ".yml")):
        return None
    return load_recipe(target, [*settings, *([f"store={store}"] if store else [])])


def _look(url: str) -> list[Finding]:
    """Look at whatever lies at a URL, say what was found, and return it.

    Raises
    ------
    BadInput
        If nothing is there that could be looked at.
    """
    from obstore.exceptions import BaseError

    from storage.locations import Location

    try:
        location = Location(url)
        folder = location.local_path
        if folder is not None and folder.exists() and not folder.is_dir():
            raise BadInput(f"{location.url} is a file: give the folder of a store or of a step.")
        return _examine(location)
    except (BaseError, OSError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise BadInput(
            f"{_shown(url)} cannot be read ({type(error).__name__}: {reason}): check the URL, the "
            "rights to it, and the variables AWS_… or GOOGLE_… that hold its credentials."
        ) from None
    except ValueError as error:
        raise BadInput(str(error)) from None


def _examine(location: Location) -> list[Finding]:
    from storage.care.doctor import STEPS, examine, step_folders
    from storage.care.shelf_doctor import examine_models, examine_registry
    from storage.references import RECORD_FILES

    if any(_lies_at(location, name) for name in RECORD_FILES):
        return _told(location.url, examine(location))
    if _lies_at(location, "plan.json"):
        return _told(location.url, _examine_table(location))
    if not {*STEPS, "artifacts", "models"} & set(location.children()):
        raise BadInput(
            f"{location.url} holds no finished step, table or artifact: give a store, or the "
            "folder of one of its steps."
        )
    found: list[Finding] = []
    for folder in step_folders(location):
        found += _told(folder.url, examine(folder))
    found += _told(f"{location.url}/artifacts", examine_registry(location))
    if location.children("models"):
        found += _told(f"{location.url}/models", examine_models(location))
    return found


def _lies_at(location: Location, name: str) -> bool:
    folder = location.local_path
    # Of a file or a pipe alike, which nobody must open here.
    return location.exists(name) if folder is None else os.path.lexists(folder / name)


def _examine_table(location: Location) -> list[Finding]:
    """Look at a table by itself, without the record of a step."""
    from storage.care.doctor import Finding, find_damage
    from storage.sealing.damage import CorruptFile, NotSealed
    from storage.tables.opening import open_table
    from storage.tables.sealed import shard_object

    try:
        table = open_table(location)
        damage = find_damage(table)
    except NotSealed as error:
        raise BadInput(f"{error} Give the folder of a finished one, or a recipe.") from None
    except CorruptFile as error:
        return [Finding(location.url, error.path, "damaged", error.reason)]
    return [
        Finding(location.url, error.path, "damaged", error.reason)
        if isinstance(error, CorruptFile)
        else Finding(
            location.url,
            shard_object(table.plan, error.array, error.shard),
            "damaged",
            error.reason,
            error,
        )
        for error in damage
    ]


def _told(url: str, findings: Iterable[Finding]) -> list[Finding]:
    findings = list(findings)
    for finding in findings:
        colour = "red" if finding.is_damage else "yellow"
        err.print(f"[{colour}]{finding.kind}[/] {plain_markup(str(finding))}", soft_wrap=True)
    if not findings:
        out.print(f"{plain_markup(url)} is whole.", soft_wrap=True)
    return findings


def _repair(recipe: Recipe, findings: Sequence[Finding]) -> Exception | None:
    """Mend what can be mended at once, and let the recipe's steps make the rest again.

    Returns
    -------
    Exception or None
        Why something could not; it may have been in the way of other damage.
    """
    from obstore.exceptions import BaseError

    from storage.care.doctor import STEPS, step_folders
    from storage.care.mending import Copies, mend, mend_models, mend_registry
    from storage.locations import Location

    store = Location(recipe.store)
    copies = Copies(store)
    folders = {folder.url: folder for folder in step_folders(store)}
    again: set[str] = set()
    try:
        for url, folder in folders.items():
            own = [finding for finding in findings if finding.url == url]
            if any(map(_can_be_mended, own)) and mend(folder, own, copies):
                again.add(url.rsplit("/", 2)[-2])
        mend_models(store, findings, copies)
        if mend_registry(store, findings, copies):
            again.add("publish")
    except (BaseError, OSError, ValueError) as error:
        return error
    # Trainings are no part of a recipe.
    last = max(again - {"train", "score"}, key=STEPS.index, default=None)
    if last is None:
        return None
    from flows.temporary_server import begin_server

    server_answers = begin_server()
    from flows.build import repair

    server_answers()
    try:
        repair(recipe, last=cast("Step", last))
    except Exception as error:
        return error
    return None


def _shown(url: str) -> str:
    """A target as it may be repeated: without what a query could hold."""
    return repr(url.split("?", 1)[0])
