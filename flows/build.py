"""The flow that turns a generative model into a published concept artifact."""

# No `from __future__ import annotations` here: Prefect resolves the flow's parameters where this
# module's names are not to be had, so its annotations must be classes and not strings.
from collections.abc import Callable, Iterator

from prefect import flow
from prefect.logging import get_run_logger

from compute.cluster import disconnect
from flows.current_run import note_flow_run
from flows.recipe import Recipe
from storage.references import Reference, Step
from tasks.checking import check
from tasks.encoding import encode
from tasks.extracting import extract
from tasks.learning import learn
from tasks.logs import run_lines
from tasks.publishing import publish
from tasks.recovering import recover
from tasks.verifying import verify

__all__ = ["STEPS", "build", "repair", "run_steps"]

STEPS: tuple[Step, ...] = ("extract", "learn", "encode", "recover", "verify", "publish")
"""The steps of a run, in order; `verify` is left out where the recipe does not ask for it."""


@flow(name="build", flow_run_name="build {recipe.name}", description=__doc__, log_prints=False)
def build(recipe: Recipe) -> dict[str, Reference]:
    """Run a recipe: extract, learn, encode, recover, verify, publish.

    Steps that are done already, with the same settings and inputs, are not done again.

    Parameters
    ----------
    recipe : Recipe

    Returns
    -------
    dict of str to Reference
        One reference per step.
    """
    return run_steps(recipe)


def run_steps(
    recipe: Recipe,
    *,
    until: Step = "publish",
    enough: Callable[[Reference], bool] = lambda _: False,
) -> dict[str, Reference]:
    """Run the steps of a recipe inside a flow, up to the one named, and return their references.

    Parameters
    ----------
    until : str
        One of `STEPS`.
    enough : callable
        Told each reference; true of one that is to be the last.
    """
    note_flow_run()
    references: dict[str, Reference] = {}
    if until == "verify" and not recipe.verify.enabled:
        until = "recover"
    try:
        with run_lines():
            for reference in _steps(recipe):
                references[reference.step] = reference
                if enough(reference) or reference.step == until:
                    break
        return references
    finally:
        disconnect()


@flow(name="repair", flow_run_name="repair {recipe.name}", log_prints=False)
def repair(recipe: Recipe, last: Step) -> dict[str, Reference]:
    """Compute what `strata doctor` has condemned again, up to and with the step `last`."""
    return run_steps(recipe, until=last)


def _steps(recipe: Recipe) -> Iterator[Reference]:
    plan = check(recipe)
    for line in plan.told():
        get_run_logger().info(line)
    activations = extract(recipe, plan)
    yield activations
    dictionaries = learn(recipe, activations)
    yield dictionaries
    codes = encode(recipe, activations, dictionaries)
    yield codes
    graph = recover(recipe, activations, codes)
    yield graph
    if recipe.verify.enabled:
        graph = verify(recipe, activations, dictionaries, graph)
        yield graph
    yield publish(recipe, activations, dictionaries, codes, graph)
