"""`strata estimate`: what a recipe will take, before it runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows.recipe import BadInput, Recipe

if TYPE_CHECKING:
    from tasks.estimating import Estimate

__all__ = ["print_estimate"]


def print_estimate(recipe: Recipe, *, rehearse: bool, as_json: bool, out: Console) -> None:
    """Estimate a recipe and print it as a table or as JSON.

    Raises
    ------
    BadInput
        If the recipe cannot run.
    """
    from compute.cluster import disconnect
    from tasks.estimating import estimate

    try:
        found = estimate(recipe, rehearse=rehearse)
    except ValueError as error:
        raise BadInput(str(error)) from error
    finally:
        disconnect()
    if as_json:
        totals = {"total_bytes": found.total_bytes, "total_seconds": found.total_seconds}
        out.print_json(json.dumps(asdict(found) | totals))
        return
    _print(found, recipe, out)


def _print(found: Estimate, recipe: Recipe, out: Console) -> None:
    there = " (its activations are there already)" if found.done else ""
    out.print(f"[bold]{recipe.name}[/]: {found.rows:,} rows at {len(recipe.levels)} levels{there}")
    disk = Table("on disk", "size", box=None)
    for name, size in found.bytes.items():
        disk.add_row(name, _size(size))
    disk.add_row("all, at the end", _size(found.total_bytes))
    disk.add_row("most at one time", _size(found.peak_bytes))
    if found.free_bytes is not None:
        disk.add_row("free in the store", _size(found.free_bytes))
    out.print(disk)
    if found.seconds:
        steps = Table("step", "time", "memory of a worker", box=None)
        for name, seconds in found.seconds.items():
            memory = found.memory.get(name)
            steps.add_row(name, _time(seconds), "" if memory is None else _size(memory))
        if "learn" not in found.seconds:
            steps.add_row("learn", "not rehearsed", "")
        steps.add_row("all", _time(found.total_seconds), "")
        out.print(steps)
    if found.free_bytes is not None and found.free_bytes < found.peak_bytes:
        out.print("[red]The store is too small: a run would refuse to start.[/]")


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
