"""`strata steer`: the model of an artifact under edits of its concepts, before and after."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.plain_words import plain_markup
from flows.recipe import BadInput, load_recipe, recipe_names

__all__ = ["steer"]

out = Console(highlight=False)


def steer(
    target: Annotated[
        str, typer.Argument(help="A recipe, or an artifact's name; `name@7` for one version.")
    ],
    find: Annotated[
        str | None,
        typer.Option(help="Words to find concepts by; the first one is steered."),
    ] = None,
    concept: Annotated[
        list[str], typer.Option(help="Id of a concept, such as 2:417; several times for more.")
    ] = [],  # noqa: B006
    scale: Annotated[
        list[float], typer.Option(help="Factor of the code, one variant each; 0 removes.")
    ] = [0.0, 3.0],  # noqa: B006
    induce: Annotated[
        float, typer.Option(help="Set to this share of the largest observed code; 0 for none.")
    ] = 0.5,
    prompt: Annotated[
        list[str],
        typer.Option(help="Text to go on with or to draw; by default the concept's examples."),
    ] = [],  # noqa: B006
    propagate: Annotated[
        bool, typer.Option("--propagate", help="Carry the edits down to the concepts' parts.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the noise that drawings start from.")] = 0,
    tokens: Annotated[int, typer.Option(help="Length of a text's continuation.")] = 48,
    store: Annotated[
        str | None, typer.Option("--store", envvar="STRATA_STORE", help="As in `strata run`.")
    ] = None,
) -> None:
    """Steer a model by its concepts and write a page with what it did before and after.

    What was drawn or written is compared from the same seed, with the cost of each edit beside it.
    """
    name, version, place = _artifact(target, store)
    if not concept and find is None:
        raise BadInput("nothing says what to steer: give --find WORDS or --concept ID.")
    _check(place, name, version, concept)
    from flows.temporary_server import begin_server

    server_answers = begin_server()
    from flows.steer_flow import SteerParameters
    from flows.steer_flow import steer as flow

    server_answers()
    try:
        told = flow(
            SteerParameters(
                artifact=name,
                version=version,
                store=place,
                concepts=tuple(concept),
                find=find,
                scales=tuple(scale),
                induce=induce or None,
                prompts=tuple(prompt),
                propagate=propagate,
                seed=seed,
                new_tokens=tokens,
            )
        )
    except ValueError as error:
        raise BadInput(str(error)) from error
    _show(told)


def _artifact(target: str, store: str | None) -> tuple[str, str, str]:
    """The name and the version of the artifact that is meant, and the store that it lies in."""
    name, _, version = target.partition("@")
    place = store or os.environ.get("STRATA_STORE", ".strata")
    if name in recipe_names() or name.endswith((".yaml", ".yml")):
        recipe = load_recipe(name, [f"store={store}"] if store else [])
        name, place = recipe.name, recipe.store
    return name, version or "latest", place


def _show(told: dict[str, Any]) -> None:
    """Print what was found and steered, and how each variant scored."""
    if told["found"]:
        table = Table("concept", "label", "score", box=None)
        for found, label, score in told["found"]:
            table.add_row(*map(plain_markup, (found, label)), f"{score:.2f}")
        out.print(table)
    scores = Table("variant", "score", "value", box=None)
    for variant, numbers in told["scores"].items():
        for label, value in numbers.items():
            scores.add_row(*map(plain_markup, (variant, label)), f"{value:.4g}")
    out.print(scores)
    out.print(f"steered  {plain_markup(', '.join(told['concepts']))}")
    out.print(f"page     {plain_markup(told['page'])}", soft_wrap=True)


def _check(store: str, name: str, version: str, concepts: list[str]) -> None:
    """Refuse an unknown artifact or concept before a flow starts."""
    from storage.artifacts import Registry, UnknownArtifact, UnknownVersion
    from storage.locations import Location

    registry = Registry((Location(store) / "artifacts").url)
    try:
        artifact = registry.load(name, int(version) if version.isdigit() else version, verify=False)
    except (UnknownArtifact, UnknownVersion) as error:
        raise BadInput(
            f"{error}; run it first with `strata run {name}`, or name another --store"
        ) from error
    for concept in concepts:
        if concept not in artifact.graph or concept.startswith("0:"):
            raise BadInput(
                f"concept {concept!r} is not in {name} v{artifact.version}: look in its report, or "
                "use --find."
            )
