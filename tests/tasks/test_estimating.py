"""What is said before a run is what the run then takes."""

import json

import pytest

from flows.recipe import Recipe
from tasks.estimating import estimate


def ask(values, store, **options):
    return estimate(Recipe.model_validate(values | {"store": str(store)}), **options)


def test_bytes_are_those_of_the_real_run(built, recipe, tiny_recipe):
    found = ask(tiny_recipe, recipe.store, rehearse=False)
    assert found.done
    assert found.rows == built["extract"].summary["rows"]

    def on_disk(step, *folders):
        location = built[step].location
        return sum(location.size(path) for f in folders for path in location.walk(f))

    assert found.bytes["activations"] == pytest.approx(on_disk("extract", "rows"), rel=0.02)
    weights = [p for p in built["learn"].location.walk("dictionaries") if "weights" in p]
    real = sum(built["learn"].location.size(path) for path in weights)
    # These dictionaries are so small that the headers of their files count.
    assert 0.85 < found.bytes["dictionaries"] / (2 * real) < 1.15
    assert found.peak_bytes >= found.total_bytes - found.bytes["dictionaries"]


def test_a_rehearsal_times_every_step(tiny_recipe, tmp_path, local_ray):
    found = ask(tiny_recipe, tmp_path / "store")
    assert list(found.seconds) == ["extract", "learn", "encode", "recover", "publish"]
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.memory["extract"] > 1e7
    assert not (tmp_path / "store" / "extract").exists()


def test_the_fit_of_a_hierarchical_selection_model_is_not_rehearsed(
    tiny_recipe, tmp_path, local_ray
):
    learn = {"n_concepts": 48, "k": 4}
    found = ask(tiny_recipe | {"learn": learn}, tmp_path / "store")
    assert list(found.seconds) == ["extract", "encode", "recover", "publish"]


def test_the_command_prints_json(strata, tiny_recipe, tmp_path):
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe | {"store": str(tmp_path / "store")}))
    done = strata("estimate", str(path), "--no-rehearse", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total_bytes"] > 0
    done = strata("estimate", str(path), "--set", "inputs.text=/no/where")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
