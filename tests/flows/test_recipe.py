"""Recipes are validated at the door, and each refusal is one sentence with a remedy."""

import os
import time

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
