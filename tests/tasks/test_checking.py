"""Model and inputs are looked at once in a run, whatever steps it takes."""

from compute.inputs.documents import read_documents
from compute.settings import Recipe
from compute.steps import plan
from flows.build import run_steps
from tasks.checking import already_checked


def test_documents_are_read_once(tiny_recipe, tmp_path, prefect_home, local_ray, monkeypatch):
    from prefect import flow

    reads = []

    def counted(inputs):
        reads.append(inputs)
        return read_documents(inputs)

    monkeypatch.setattr("compute.inputs.sources.read_documents", counted)
    recipe = Recipe.model_validate(tiny_recipe | {"store": str(tmp_path)})

    @flow
    def run():
        return run_steps(recipe, until="extract")

    with already_checked(recipe, plan.check(recipe)):
        first = run()
    assert len(reads) == 1
    # Who was not told looks again, and finds what was done.
    assert run() == first
    assert len(reads) == 2


def test_what_was_found_for_another_recipe_is_not_believed(tiny_recipe, tmp_path, monkeypatch):
    recipe = Recipe.model_validate(tiny_recipe | {"store": str(tmp_path)})
    other = recipe.model_copy(update={"store": str(tmp_path / "other")})
    found = plan.check(recipe)
    looks = []
    monkeypatch.setattr(plan, "check", looks.append)
    monkeypatch.setattr("tasks.checking.prove", lambda recipe, found: found)
    from tasks.checking import check

    with already_checked(recipe, found):
        assert check.fn(recipe) == found
        check.fn(other)
    check.fn(recipe)
    assert looks == [other, recipe]
