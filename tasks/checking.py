"""The look at model, inputs and disk, and the preflight, before anything is done: a task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect import task

from compute.settings import Recipe
from compute.steps import plan
from compute.steps.plan import RunPlan
from compute.steps.proving import prove

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
    """Refuse what cannot work, and prove on a few samples that what is captured is what is meant.

    The latter with the model itself, which the former does without.
    """
    before = _checked.get()
    if before is not None and before[0] == recipe:
        return before[1]
    return prove(recipe, plan.check(recipe))
