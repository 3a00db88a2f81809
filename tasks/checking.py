"""The look at model, inputs and disk before anything is done, as a Prefect task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect import task

from compute.settings import Recipe
from compute.steps import plan
from compute.steps.plan import RunPlan

__all__ = ["already_checked", "check"]

_checked: ContextVar[tuple[Recipe, RunPlan] | None] = ContextVar("_checked", default=None)


@contextmanager
def already_checked(recipe: Recipe, found: RunPlan) -> Iterator[None]:
    """Let a run within this block believe what was found just before it, and not look again.

    A parameter would have to be one of the flow, and would stand in the form of its deployment.
    """
    token = _checked.set((recipe, found))
    try:
        yield
    finally:
        _checked.reset(token)


@task(name="check", task_run_name="check model, inputs and disk for {recipe.name}")
def check(recipe: Recipe) -> RunPlan:
    """Refuse what cannot work, before any model is loaded, and say what model and inputs are."""
    before = _checked.get()
    if before is not None and before[0] == recipe:
        return before[1]
    return plan.check(recipe)
