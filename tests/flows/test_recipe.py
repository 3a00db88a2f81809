"""Recipes are validated at the door, and each refusal is one sentence with a remedy."""

import os
import time
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from compute.settings import ResourceSettings
from flows.recipe import BadInput, Recipe, load_recipe, recipe_names

RECIPES = Path(__file__).resolve().parents[2] / "flows" / "recipes"


def test_every_recipe_that_comes_along_is_valid():
    assert "smollm2" in recipe_names()
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_settings_change_one_value_each():
    changed = load_recipe("smollm2", ["learn.k=16", "learn.k=8", "extract.max_rows=null"])
    assert changed.learn.k == 8
    assert changed.extract.max_rows is None
    assert changed.learn.steps == load_recipe("smollm2").learn.steps


def test_settings_of_one_level_are_changed():
    before = load_recipe("smollm2")
    changes = ["levels.1.hookpoint=layers.9.output", "learn.levels.layer-15.k=3"]
    changed = load_recipe("smollm2", changes)
    assert changed.levels[1] == before.levels[1].model_copy(update={"hookpoint": "layers.9.output"})
    assert changed.levels[::2] == before.levels[::2]
    assert changed.learn.of_level("layer-15").k == 3
    assert load_recipe("smollm2") == before


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
        (
            "smollm2",
            ["levels.9.name=a"],
            r"^setting 'levels.9.name' is unknown: levels has 3 entries",
        ),
        ("smollm2", ["levels.a.name=a"], r"the first is levels\.0\.$"),
        ("smollm2", ["levels.0.hook=a"], r"did you mean 'levels.0.hookpoint'\?$"),
        ("smollm2", ["learn=5", "learn.kk=3"], r"^setting 'learn.kk' is unknown"),
        ("smollm2", ["learn.k"], r"not of the form name=value"),
        ("smollm2", ["learn.k=99999"], r"^learn: k = 99999 exceeds n_concepts = \d+: choose a k"),
        ("smollm2", ["learn.k=many"], r"^learn.k 'many' is not valid: .*integer"),
        ("smollm2", ["extract.held_out=1.5"], r"^extract.held_out 1.5 is not valid: .*less than 1"),
        ("smollm2", ["extract.chunk_rows=1000"], r"not a multiple of extract.chunk_rows 1000"),
        ("smollm2", ["name=../x"], r"'../x' is not a safe name"),
        ("smollm2", ["levels=[]"], r"^levels \[\] is not valid"),
        (
            "smollm2",
            ["learn.batch_size=1024"],
            r"^learn: batch_size = 1024 does nothing with method = hierarchical: leave it at 2048",
        ),
        (
            "smollm2",
            ["learn.architecture=gated"],
            r"^learn: architecture = gated does nothing with method = hierarchical: leave it at",
        ),
        (
            "smollm2",
            ["learn.method=independent", "learn.seeds=3"],
            r"^learn: seeds = 3 does nothing with method = independent: leave it at 1",
        ),
        (
            "smollm2",
            ["learn.levels={layer-07: {n_concepts: 8, k: 9}}"],
            r"^learn: k = 9 exceeds n_concepts = 8 at level 'layer-07'",
        ),
        (
            "smollm2",
            ["learn.levels={layer-99: {n_concepts: 8}}"],
            r"learn.levels has 'layer-99', which no level is",
        ),
        (
            "smollm2",
            ["learn.method=independent", "learn.nested=[0.5, 1]"],
            r"^learn: nested = \(0.5, 1.0\) does nothing with arc",
        ),
        ("smollm2", ["recover.seed=1"], r"^setting 'recover.seed' is unknown"),
        (
            "smollm2",
            ["resources.recover.gpus=1"],
            r"^resources: recover.gpus is 1.0, which recover does not use: leave it out\.$",
        ),
        ("smollm2", ["resources.learn.workers=2"], r"learn.workers is 2, which learn does not use"),
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


def settings_below(model, start=""):
    """Dotted name → field of every setting of the steps; resources are the same for each."""
    for name, field in model.model_fields.items():
        inner = ResourceSettings if name == "resources" else field.annotation
        inner = getattr(inner, "__args__", (inner,))[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel) and not start:
            yield from settings_below(inner, f"{name}.")
        elif start:
            yield start + name, field


def turned_by(values):
    """Dotted names of the settings that a recipe gives."""
    for group, given in values.items():
        of_steps = given.values() if group == "resources" else [given]
        for some in of_steps:
            for one in some if isinstance(some, list) else [some]:
                if isinstance(one, dict):
                    yield from (f"{group}.{name}" for name in one)


def test_settings_that_no_recipe_turns_are_advanced():
    recipes = [yaml.safe_load(path.read_text()) for path in RECIPES.glob("*.yaml")]
    turned = {name for values in recipes for name in turned_by(values)}
    marked = {
        name: (field.json_schema_extra or {}).get("advanced", False)
        for name, field in settings_below(Recipe)
    }
    assert turned <= set(marked)
    assert {name for name, advanced in marked.items() if not advanced} == turned


def test_the_form_says_which_settings_are_advanced():
    from prefect.utilities.callables import parameter_schema

    from flows.build import build

    form = parameter_schema(build).model_dump()["definitions"]
    assert form["LearnSettings"]["properties"]["precision"]["description"].endswith(" (advanced)")
    assert form["VerifySettings"]["properties"]["controls"]["description"] == (
        "Parts of like frequency that an edge is compared with. (advanced)"
    )
    assert "advanced" not in form["LearnSettings"]["properties"]["k"]["description"]


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"holds the alias \*a0 in line 2"),
        ("a: &x [*x]\n", r"holds the alias \*x in line 1"),
        ("a: " + "[" * 20_000, r"holds lists and mappings more than 16 deep in line 1"),
        ("a: " + "{b: " * 10_000, r"holds lists and mappings more than 16 deep in line 1"),
        ("".join("- " for _ in range(20_000)), r"more than 16 deep"),
        ("name: a\ntitle: b\nname: c\n", r"holds the key 'name' twice in line 3"),
        ("learn: {k: 1, k: 2}\n", r"holds the key 'k' twice in line 1"),
        ("learn:\n  rate: .nan\n", r"holds a number that is not finite in line 2"),
        ("learn:\n  rate: -.inf\n", r"holds a number that is not finite in line 2"),
        ("a: 2026-99-99\n", r"holds a value that cannot be read .* in line 1"),
        ("a: " + "9" * 5000, r"holds a value that cannot be read .* in line 1"),
        ("a: 1\n" * 100_000, r"has more than 65,536 bytes"),
        ("a: !!python/object/apply:os.system [echo]\n", r"could not determine a constructor"),
        (b"a: \xff\xfe\n", r"is not text in UTF-8"),
    ],
)
def test_a_hostile_file_is_refused_at_once(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    begun = time.process_time()
    with pytest.raises(BadInput, match=message) as caught:
        load_recipe(str(path))
    assert time.process_time() - begun < 2
    assert "\n" not in str(caught.value)


def test_the_longest_file_is_read_in_little_time(tmp_path, tiny_recipe):
    path = tmp_path / "long.yaml"
    text = yaml.safe_dump(tiny_recipe)
    path.write_text(text + "# " + "[" * (2**16 - len(text) - 2))
    begun = time.process_time()
    load_recipe(str(path))
    assert time.process_time() - begun < 2
    path.write_text(f"a: [{'1,' * 32_000}1]\n")
    begun = time.process_time()
    with pytest.raises(BadInput):
        load_recipe(str(path))
    assert time.process_time() - begun < 8


@pytest.mark.parametrize("value", ["[" * 5000, "{k: 1, k: 2}", ".nan", "1" * 5000, "x" * 200_000])
def test_a_hostile_setting_is_refused_at_once(value):
    begun = time.process_time()
    with pytest.raises(BadInput, match=r"^setting 'learn.k' (has|holds) ") as caught:
        load_recipe("smollm2", [f"learn.k={value}"])
    assert time.process_time() - begun < 2
    assert len(str(caught.value)) < 500


def test_what_is_no_regular_file_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "zero.yaml"):
        with pytest.raises(BadInput, match="does not exist"):
            load_recipe(str(tmp_path / name))


@pytest.mark.parametrize(
    "settings",
    [
        ["learn.k=https://me:hunter2@host/x?sig=hunter2"],
        ["https://me:hunter2@host/x?sig=hunter2"],
        ["inputs={images: 'https://me:hunter2@host/x?sig=hunter2'}"],
    ],
)
def test_no_refusal_repeats_a_secret(settings):
    for recipe in ("smollm2", "https://me:hunter2@host/x?sig=hunter2"):
        with pytest.raises(BadInput, match="host/x") as caught:
            load_recipe(recipe, settings)
        assert "hunter2" not in str(caught.value)
