"""`strata check`: what was proved of a recipe before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from flows.recipe import Recipe

if TYPE_CHECKING:
    from compute.steps.plan import RunPlan

__all__ = ["print_check"]


def print_check(recipe: Recipe, found: RunPlan, out: Console) -> None:
    """Print what was proved, a line each, and in which type activations will be stored."""
    out.print(f"[bold]{escape(recipe.name)}[/] can run: {escape(recipe.model.source)}")
    if found.preflight is None:
        out.print(f"  its model was not tried: a {recipe.model.kind} model has no preflight yet")
        return
    lines = [line.partition(": ") for line in found.told()]
    widest = max(len(name) for name, _, _ in lines)
    for name, _, told in lines:
        out.print(f"  {escape(name):<{widest}}  {escape(told)}", soft_wrap=True)
