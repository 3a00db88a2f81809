import pytest

from flows.recipe import BadInput
from flows.reproduction import check_inputs, differences, recipe_of
from storage.registry.manifests import FileEntry, Manifest, content_hash
from tests.tiny import tiny_values


@pytest.fixture
def manifest():
    values = tiny_values("model", "texts")
    values["model"] = {"source": "model", "dtype": "auto"}
    files = {"a.txt": FileEntry(sha256="0" * 64, bytes=1)}
    return Manifest(
        name="tiny",
        version=3,
        status="published",
        created_at="2026-11-29T00:00:00Z",
        fingerprint="f",
        files=files,
        content_hash=content_hash(files),
        lineage={
            "weights_hash": "a" * 64,
            "data_hash": "b" * 64,
            "model_dtype": "bfloat16",
            "settings": values,
            "resources": {"learn": {"cpus": 3}},
            "code_commit": "c0ffee",
            "upstream": {},
        },
    )


def told(manifest, **lineage):
    changed = {k: v for k, v in (manifest.lineage | lineage).items() if v is not None}
    return manifest.model_copy(update={"lineage": changed})


def test_the_recipe_has_what_auto_came_to(manifest):
    recipe = recipe_of(manifest, "elsewhere")
    assert recipe.model.dtype == "bfloat16"
    assert recipe.resources.learn.cpus == 3
    assert (recipe.name, recipe.store) == ("tiny", "elsewhere")
    settings = manifest.lineage["settings"]
    fixed = settings | {"model": {"source": "model", "dtype": "float32"}}
    assert recipe_of(told(manifest, settings=fixed), "x").model.dtype == "float32"


def test_the_stored_type_is_the_recorded_one(manifest):
    settings = manifest.lineage["settings"]
    auto = settings | {"extract": settings["extract"] | {"dtype": "auto"}}
    recipe = recipe_of(told(manifest, settings=auto, stored_dtype="bfloat16"), "x")
    assert recipe.extract.dtype == "bfloat16"


def test_what_the_manifest_lacks_is_named(manifest):
    with pytest.raises(BadInput, match=r"tiny v3 cannot be built again.*'model_dtype'.*anew"):
        recipe_of(told(manifest, model_dtype=None), "x")


def test_settings_of_another_release_are_refused(manifest):
    settings = manifest.lineage["settings"] | {"colour": "red"}
    with pytest.raises(BadInput, match=r"colour is no setting.*c0ffee"):
        recipe_of(told(manifest, settings=settings), "x")


def test_other_weights_and_data_are_refused(manifest):
    check_inputs(manifest, "a" * 64, "b" * 64)
    with pytest.raises(BadInput, match=r"the weights of 'model' are not those.*restore"):
        check_inputs(manifest, "d" * 64, "b" * 64)
    with pytest.raises(BadInput, match="the data of"):
        check_inputs(manifest, "a" * 64, "d" * 64)


def test_differences_are_told_one_by_one():
    then = {"threads": 2, "packages": {"torch": "2.12", "numpy": "2.4"}, "gpus": 1}
    now = {"threads": 1, "packages": {"torch": "2.13", "numpy": "2.4"}}
    assert differences(then, then) == ()
    assert differences(then, now) == (
        "gpus is not there here and was 1",
        "torch is '2.13' here and was '2.12'",
        "threads is 1 here and was 2",
    )
