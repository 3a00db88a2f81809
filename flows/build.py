"""The flow that turns a generative model into a published concept artifact."""

# No `from __future__ import annotations` here: Prefect resolves the flow's parameters where this
# module's names are not to be had, so its annotations must be classes and not strings.
from collections.abc import Iterator

from prefect import flow

from compute.cluster import disconnect
from flows.recipe import Recipe
from storage.references import Reference, Step
from tasks.logs import worker_logs
from tasks.publishing import publish
from tasks.steps import check, encode, extract, learn, recover
from tasks.verifying import verify

__all__ = ["STEPS", "build", "repair", "run_steps"]

STEPS: tuple[Step, ...] = ("extract", "learn", "encode", "recover", "publish")
"""The steps of a run, in order."""


@flow(name="build", flow_run_name="build {recipe.name}", description=__doc__, log_prints=False)
def build(recipe: Recipe) -> dict[str, Reference]:
    """Run a recipe: extract, learn, encode, recover, publish.

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


def run_steps(recipe: Recipe, *, until: Step = "publish") -> dict[str, Reference]:
    """Run the steps of a recipe inside a flow, up to the one named, and return their references.

    Parameters
    ----------
    until : str
        One of `STEPS`.
    """
    references: dict[str, Reference] = {}
    try:
        with worker_logs():
            for reference in _steps(recipe):
                references[reference.step] = reference
                if reference.step == until:
                    break
        return references
    finally:
        disconnect()


@flow(name="repair", flow_run_name="repair {recipe.name}", log_prints=False)
def repair(recipe: Recipe, last: Step) -> dict[str, Reference]:
    """Compute what `strata doctor` has condemned again, up to and with the step `last`."""
    return run_steps(recipe, until=last)


def _steps(recipe: Recipe) -> Iterator[Reference]:
    store, levels = recipe.store, recipe.levels
    check(store, recipe.model, recipe.inputs, levels, recipe.extract, recipe.learn)
    activations = extract(
        store, recipe.model, recipe.inputs, levels, recipe.extract, recipe.resources.extract
    )
    yield activations
    dictionaries = learn(
        store,
        activations,
        recipe.model,
        levels,
        recipe.extract.context_length,
        recipe.learn,
        recipe.resources.learn,
    )
    yield dictionaries
    codes = encode(store, activations, dictionaries, recipe.encode, recipe.resources.encode)
    yield codes
    graph = recover(store, activations, codes, recipe.recover, recipe.resources.recover)
    yield graph
    if recipe.verify.enabled:
        steps = (activations, dictionaries, graph)
        graph = verify(
            store, recipe.model, recipe.inputs, levels, recipe.extract, recipe.verify, *steps
        )
        yield graph
    yield publish(
        store,
        recipe.name,
        recipe.title,
        recipe.description,
        levels,
        recipe.model_dump(mode="json", exclude={"store", "resources"}),
        recipe.encode,
        recipe.publish,
        activations,
        dictionaries,
        codes,
        graph,
    )
