"""The flow that turns a generative model into a published concept artifact."""

# No `from __future__ import annotations` here: Prefect resolves the flow's parameters where this
# module's names are not to be had, so its annotations must be classes and not strings.
from prefect import flow

from compute.cluster import disconnect
from flows.recipe import Recipe
from storage.references import Reference, Step
from tasks.publishing import publish
from tasks.steps import check, encode, extract, learn, recover

__all__ = ["build", "repair"]


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
    try:
        return _steps(recipe)
    finally:
        disconnect()


@flow(name="repair", flow_run_name="repair {recipe.name}", log_prints=False)
def repair(recipe: Recipe, last: Step) -> dict[str, Reference]:
    """Compute what `strata doctor` has condemned again, up to and with the step `last`."""
    try:
        return _steps(recipe, last)
    finally:
        disconnect()


def _steps(recipe: Recipe, last: Step = "publish") -> dict[str, Reference]:
    store, levels = recipe.store, recipe.levels
    check(store, recipe.model, recipe.inputs, levels, recipe.extract, recipe.learn)
    activations = extract(
        store, recipe.model, recipe.inputs, levels, recipe.extract, recipe.resources.extract
    )
    if last == "extract":
        return {"extract": activations}
    dictionaries = learn(
        store,
        activations,
        recipe.model,
        levels,
        recipe.extract.context_length,
        recipe.learn,
        recipe.resources.learn,
    )
    codes = encode(store, activations, dictionaries, recipe.encode, recipe.resources.encode)
    if last == "encode":
        return {step.step: step for step in (activations, dictionaries, codes)}
    graph = recover(store, activations, codes, recipe.recover, recipe.resources.recover)
    artifact = publish(
        store,
        recipe.name,
        recipe.title,
        recipe.description,
        levels,
        recipe.model_dump(mode="json", exclude={"store", "resources"}),
        recipe.encode,
        activations,
        dictionaries,
        codes,
        graph,
    )
    steps = (activations, dictionaries, codes, graph, artifact)
    return {step.step: step for step in steps}
