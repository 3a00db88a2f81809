"""Flows that take a recipe part of the way: for trying one step, and for filling a store early.

What they compute is what the whole run finds later, since every step is known by its fingerprint.
"""

# No `from __future__ import annotations`: see flows/build.py.
from prefect import flow

from flows.build import run_steps
from flows.recipe import Recipe
from storage.references import Reference

__all__ = ["extract", "learn", "recover"]


@flow(
    name="extract",
    flow_run_name="extract {recipe.name}",
    description="Run the model over its inputs and store its activations at every level.",
)
def extract(recipe: Recipe) -> dict[str, Reference]:
    """Run a recipe as far as its activation set.

    Parameters
    ----------
    recipe : Recipe
        The whole run; only what extraction needs is used.
    """
    return run_steps(recipe, until="extract")


@flow(
    name="learn",
    flow_run_name="learn {recipe.name}",
    description="Train one dictionary per level, on activations that are extracted if need be.",
)
def learn(recipe: Recipe) -> dict[str, Reference]:
    """Run a recipe as far as its dictionaries.

    Parameters
    ----------
    recipe : Recipe
        The whole run; what follows learning is not used.
    """
    return run_steps(recipe, until="learn")


@flow(
    name="recover",
    flow_run_name="recover {recipe.name}",
    description="Recover the concept graph, from codes that are made if need be.",
)
def recover(recipe: Recipe) -> dict[str, Reference]:
    """Run a recipe as far as its concept graph; nothing is published.

    Parameters
    ----------
    recipe : Recipe
        The whole run.
    """
    return run_steps(recipe, until="recover")
