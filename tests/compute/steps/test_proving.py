"""The preflight of a run: where it runs, what it decides, and when it need not run again."""

import shutil

import pytest
import torch

from compute.models.proofs import Preflight
from compute.settings import Recipe
from compute.steps import plan, proving
from storage.locations import Location
from storage.references import Reference


@pytest.fixture
def tried(monkeypatch):
    """Notes how often the model is tried."""
    times = []
    original = proving._try

    def note(*arguments):
        times.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(proving, "_try", note)
    return times


def recipe_of(values, store, **extract):
    return Recipe.model_validate(
        values | {"store": str(store), "extract": values["extract"] | extract}
    )


def prove(recipe, **options):
    return proving.prove(recipe, plan.check(recipe), **options)


@pytest.fixture(scope="module")
def wide_model(tiny_model, tmp_path_factory):
    """The tiny model with embeddings, and so all levels, that come to tens of thousands."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        weight = model.model.embed_tokens.weight
        weight *= 30_000 / weight.abs().max()
    model.save_pretrained(folder)
    return folder


def found_of(dtype, largest):
    return Preflight(
        rows=8,
        largest={"a": 1.0, "b": largest},
        dtype=dtype,
        device="cpu",
        packages={},
        proofs=(),
    )


@pytest.mark.parametrize(
    ("asked", "model", "largest", "expected"),
    [
        ("auto", "float32", 16_376.0, "float16"),
        ("auto", "float32", 16_377.0, "float32"),
        ("auto", "bfloat16", 16_376.0, "float16"),
        ("auto", "bfloat16", 3e38, "bfloat16"),
        ("auto", "float16", 65_504.0, "float16"),
        ("float16", "float16", 65_504.0, "float16"),
        ("float16", "bfloat16", 16_376.0, "float16"),
        ("float16", "bfloat16", 16_640.0, "level 'b' comes to 16,640, .* choose auto"),
        ("bfloat16", "float32", 1e30, "bfloat16"),
        ("float32", "float16", 1.0, "float32"),
    ],
)
def test_the_stored_type_follows_the_range(tiny_recipe, asked, model, largest, expected):
    recipe = recipe_of(tiny_recipe, "memory://x", dtype=asked)
    if "level" in expected:
        with pytest.raises(ValueError, match=expected):
            proving.stored_dtype(recipe, found_of(model, largest))
    else:
        assert proving.stored_dtype(recipe, found_of(model, largest)) == expected


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_a_model_of_a_wide_range_is_stored_in_its_own_type(
    tiny_recipe, wide_model, tmp_path, dtype, stored
):
    values = tiny_recipe | {"model": {"source": str(wide_model), "dtype": dtype}}
    assert prove(recipe_of(values, tmp_path, dtype="auto")).stored_dtype == stored
    with pytest.raises(ValueError, match=r"extract.dtype float16 holds values up to 65,504"):
        prove(recipe_of(values, tmp_path / "other", dtype="float16"))


def test_what_was_proved_waits_beside_the_samples(tiny_recipe, tmp_path, tried, monkeypatch):
    recipe = recipe_of(tiny_recipe, tmp_path, dtype="auto")
    first = prove(recipe)
    assert first.stored_dtype == "float16"
    assert [proof.holds for proof in first.preflight.proofs] == [True] * 7
    assert prove(recipe) == first
    assert len(tried) == 1
    assert prove(recipe, anew=True) == first
    assert len(tried) == 2
    # Other libraries may read the model otherwise, and a damaged record says nothing.
    monkeypatch.setattr("compute.models.preflight.check_versions", lambda: {"torch": "1"})
    assert prove(recipe).preflight.packages == {"torch": "1"}
    folder = first.folder(recipe.store)
    folder.put("preflight.json", b"{}")
    prove(recipe)
    assert len(tried) == 4
    # A finished run needs no proof, and one that is asked for leaves it as it was sealed.
    Reference.seal(folder, content_hash="x", seconds=0, summary={})
    assert prove(recipe).preflight is None
    assert prove(recipe, anew=True).preflight is not None
    assert Reference.find(folder).open().find_damage() == []


def test_the_disk_is_looked_at_again_where_rows_take_more(
    tiny_recipe, wide_model, tmp_path, monkeypatch
):
    values = tiny_recipe | {"model": {"source": str(wide_model), "dtype": "float32"}}
    recipe = recipe_of(values, tmp_path, dtype="auto")
    found = plan.check(recipe)
    samples = plan.resumed_samples(found.folder(recipe.store))
    small = plan.disk_bytes(plan.activation_plan(recipe, found, samples, "float16"), recipe.learn)
    monkeypatch.setattr(Location, "free_bytes", lambda self: small)
    assert plan.check(recipe) == found
    with pytest.raises(ValueError, match=r"MB free and the run needs about"):
        proving.prove(recipe, found)


def test_a_refusal_names_the_model(tiny_recipe, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("rows depend on their batch")

    monkeypatch.setattr("compute.models.preflight.preflight", refuse)
    with pytest.raises(ValueError, match=r"cannot be read as the recipe asks: rows depend"):
        prove(recipe_of(tiny_recipe, tmp_path))
    assert not list(tmp_path.rglob("preflight.json"))


def test_a_worker_elsewhere_proves_the_same(tiny_recipe, tmp_path, local_ray, monkeypatch):
    recipe = recipe_of(tiny_recipe, tmp_path)
    here = prove(recipe)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert prove(recipe, anew=True) == here


def test_the_command_says_what_was_proved(strata, tiny_recipe, tmp_path):
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    done = strata("check", str(path), "--store", str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny can run")
    assert any("batch = single" in line and "4 samples" in line for line in lines)
    assert "stored as float32" in lines[-1]
    done = strata("check", str(path), "--store", str(tmp_path / "s"), "--set=extract.max_rows=10")
    assert done.returncode == 2
    assert "100 are the fewest, what an edge needs: give more inputs" in done.stderr
