"""Recipes are validated at the door, and each refusal is one sentence with a remedy."""

import pytest
import yaml

from flows.recipe import BadInput, Recipe, load_recipe, recipe_names


def test_every_recipe_that_comes_along_is_valid():
    assert "smollm2" in recipe_names()
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_settings_change_one_value_each():
    changed = load_recipe("smollm2", ["learn.k=16", "learn.k=8", "extract.max_rows=null"])
    assert changed.learn.k == 8
    assert changed.extract.max_rows is None
    assert changed.learn.steps == load_recipe("smollm2").learn.steps


def test_a_recipe_file_is_read(tmp_path, tiny_recipe):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    assert load_recipe(str(path), ["learn.seed=3"]).learn.seed == 3


def test_the_store_comes_from_the_environment(monkeypatch, tiny_recipe):
    monkeypatch.setenv("STRATA_STORE", "s3://bucket/x")
    assert Recipe.model_validate(tiny_recipe).store == "s3://bucket/x"


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("nope", [], r"^recipe 'nope' is unknown: use one of .*smollm2"),
        ("nope.yaml", [], r"^recipe file 'nope.yaml' does not exist: check the path\.$"),
        ("smollm2", ["learn.kk=3"], r"^setting 'learn.kk' is unknown: did you mean 'learn.k'\?$"),
        ("smollm2", ["lern.k=3"], r"^setting 'lern.k' is unknown: did you mean 'learn'\?$"),
        ("smollm2", ["learn.k.x=3"], r"^setting 'learn.k.x' is unknown: it has no settings below"),
        ("smollm2", ["learn.k"], r"not of the form name=value"),
        ("smollm2", ["learn.k=99999"], r"^learn: k = 99999 exceeds n_concepts = \d+: choose a k"),
        ("smollm2", ["learn.k=many"], r"^learn.k 'many' is not valid: .*integer"),
        ("smollm2", ["extract.held_out=1.5"], r"^extract.held_out 1.5 is not valid: .*less than 1"),
        ("smollm2", ["extract.chunk_rows=1000"], r"not a multiple of extract.chunk_rows 1000"),
        ("smollm2", ["name=../x"], r"'../x' is not a safe name"),
        ("smollm2", ["levels=[]"], r"^levels \[\] is not valid"),
        (
            "smollm2",
            ["learn.method=hierarchical", "levels=[{name: a, hookpoint: layers.1.output}]"],
            r"^learn.method is 'hierarchical' and there is 1 level: give two levels or more",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(recipe, settings, message):
    with pytest.raises(BadInput, match=message) as caught:
        load_recipe(recipe, settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n", "name: x\n"])
def test_files_that_are_no_recipe_are_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(BadInput):
        load_recipe(str(path))
