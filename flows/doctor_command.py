"""`strata doctor`: check every byte of what a run has stored, and mend it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from flows.recipe import BadInput, Recipe, load_recipe, recipe_names

if TYPE_CHECKING:
    from storage.doctor import Damage

__all__ = ["doctor"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_STEPS = ("extract", "encode")


def doctor(
    target: Annotated[
        str,
        typer.Argument(help="A recipe, or the folder or URL of an activation set or a code set."),
    ],
    repair: Annotated[
        bool, typer.Option("--repair", help="Compute damaged shards again; needs a recipe.")
    ] = False,
    settings: Annotated[
        list[str],
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="As in `strata run`."),
    ] = [],  # noqa: B006
    store: Annotated[
        str | None, typer.Option("--store", envvar="STRATA_STORE", help="As in `strata run`.")
    ] = None,
) -> None:
    """Check every byte of what is stored against its checksums, and say which shards are damaged.

    Given a recipe, looks at everything in its store; with `--repair`, computes the damaged shards
    again, and only those. They come out as they were, byte for byte, or the command fails.
    """
    recipe = _recipe(target, settings, store)
    if recipe is None:
        if repair:
            raise BadInput(
                f"target {target!r} is not a recipe: give the one that wrote it, since --repair "
                "runs its model again."
            )
        damaged = {target: _look(target)}
    else:
        damaged = {url: _look(url) for url in _tables(recipe.store)}
        if not damaged:
            out.print(f"Nothing is finished in {recipe.store} yet.", soft_wrap=True)
    damaged = {url: damage for url, damage in damaged.items() if damage}
    if recipe is not None and repair and damaged:
        _repair(recipe, damaged)
        damaged = {url: damage for url in damaged if (damage := _look(url))}
        if damaged:
            err.print("What is left was written by another recipe: run the doctor with that one.")
    if damaged:
        raise typer.Exit(1)


def _recipe(target: str, settings: Sequence[str], store: str | None) -> Recipe | None:
    if target not in recipe_names() and not target.endswith((".yaml", ".yml")):
        return None
    return load_recipe(target, [*settings, *([f"store={store}"] if store else [])])


def _tables(store: str) -> list[str]:
    """URLs of all finished tables of a store."""
    from storage.locations import Location

    folders = [
        Location(store) / step / name
        for step in _STEPS
        for name in (Location(store) / step).children()
    ]
    return [folder.url for folder in folders if folder.exists("sealed.json")]


def _look(url: str) -> list[Damage]:
    from storage.damage import CorruptMetadata, NotSealed
    from storage.doctor import find_damage
    from storage.locations import Location
    from storage.tables import open_table

    damage: list[Damage]
    try:
        table = open_table(Location(url))
        damage = find_damage(table)
    except NotSealed as error:
        raise BadInput(f"{error} Give the folder of a finished one, or a recipe.") from None
    except CorruptMetadata as error:
        damage = [error]
    for found in damage:
        err.print(f"[red]damaged[/] {escape(str(found))}", soft_wrap=True)
    if not damage:
        shards, rows = len(table.plan.shards), len(table)
        out.print(f"{url}: {shards} shards of {rows:,} rows are whole.", soft_wrap=True)
    return damage


def _repair(recipe: Recipe, damaged: dict[str, list[Any]]) -> None:
    from storage.damage import CorruptMetadata, CorruptShard
    from storage.doctor import condemn, mend_metadata, unseal
    from storage.locations import Location
    from storage.tables import open_table

    condemned = set()
    for url, damage in damaged.items():
        step = url.rsplit("/", 2)[-2]
        metadata = [error for error in damage if isinstance(error, CorruptMetadata)]
        if {error.path for error in metadata} & {"plan.json", "sealed.json"}:
            unseal(Location(url))
            condemned.add(step)
            continue
        table = open_table(Location(url))
        if metadata:
            mend_metadata(table, metadata)
        shards = [error for error in damage if isinstance(error, CorruptShard)]
        if shards:
            condemn(table, shards)
            condemned.add(step)
    if condemned:
        from flows.temporary_server import begin_server

        server_answers = begin_server()
        from flows.build import repair

        server_answers()
        repair(recipe, last="encode" if "encode" in condemned else "extract")
