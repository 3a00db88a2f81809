"""Runs that take dictionaries trained elsewhere: every step but training is as ever."""

import numpy as np
import pytest
import torch

from compute.models.hooks import stream_out
from flows.build import build
from flows.recipe import Recipe
from storage.artifacts import Registry
from storage.exports.formats import export
from storage.locations import Location
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeSet

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


def importing(recipe, source, **changes):
    values = recipe.model_dump(mode="json")
    learn = values["learn"] | {"method": "import", "source": str(source)}
    return Recipe.model_validate(values | {"learn": learn} | changes)


def test_what_was_exported_and_imported_again_gives_the_same_graph(
    built, artifact, recipe, tmp_path
):
    folder = export(artifact, "saelens", tmp_path / "exported")
    again = build(importing(recipe, folder, name="again"))
    assert again["extract"] == built["extract"]
    assert again["learn"].fingerprint != built["learn"].fingerprint
    first, second = (CodeSet(run["encode"].location) for run in (built, again))
    for level in first.levels:
        for ours, theirs in zip(first.read(level, 0, 500), second.read(level, 0, 500), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    published = Registry((Location(recipe.store) / "artifacts").url).load("again")
    path = "graph/edges.parquet"
    assert len(artifact.graph.edges) > 0
    assert published.read(path) == artifact.read(path)
    for level in artifact.levels:
        weights = f"dictionaries/{level.name}/sae_weights.safetensors"
        assert published.read(weights) == artifact.read(weights)
        told = published.dictionary(level.level).metadata["imported_from"]
        assert told["layout"] == "SAELens"
    assert published.manifest.lineage["settings"]["learn"]["source"] == str(folder)


def principal(stored, level):
    """A dictionary as Gemma Scope has it that loses nothing: each principal axis, either way."""
    rows = stored.read(level, 0, stored.plan.n_train).astype(np.float64)
    mean = rows.mean(0)
    axes = np.linalg.svd(rows - mean, full_matrices=False)[2]
    w_dec = np.concatenate([axes, -axes])
    found = {"W_enc": w_dec.T, "W_dec": w_dec, "b_enc": -mean @ w_dec.T, "b_dec": mean}
    found["threshold"] = np.zeros(len(w_dec))
    return {name: array.astype(np.float32) for name, array in found.items()}


def block_output(model):
    """What the first block of the tiny model adds up to on some tokens."""
    seen = []
    handle = model.model.layers[0].register_forward_hook(
        lambda module, given, output: seen.append(stream_out(output).clone())
    )
    with torch.inference_mode():
        model(torch.arange(4, 24)[None])
    handle.remove()
    return seen[0]


def test_a_foreign_dictionary_is_encoded_verified_published_and_steered(
    built, recipe, tiny_model, tmp_path
):
    from transformers import AutoModelForCausalLM

    from compute.steering import Edit, steer

    stored = ActivationSet(built["extract"].location)
    for level in stored.levels:
        (tmp_path / level).mkdir()
        np.savez(tmp_path / level / "params.npz", **principal(stored, level))
    verify = {"enabled": True, "items": 32, "samples": 3, "controls": 4, "max_parts": 4}
    run = build(importing(recipe, tmp_path, name="foreign", verify=verify | {"strips": 0}))
    for scores in run["learn"].summary["levels"].values():
        assert scores["explained_variance"] > 0.99
        assert 10 < scores["l0"] < 20
    codes = CodeSet(run["encode"].location)
    assert {level.n_concepts for level in codes.plan.levels} == {32}
    published = Registry((Location(recipe.store) / "artifacts").url).load("foreign")
    assert published.manifest.status == "published"
    assert len(published.graph.edges) > 0
    assert run["verify"].summary["verified"]["edges"]["n"] > 0

    # Ablating a concept takes what it adds to each row away, and nothing else.
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = block_output(model)
    with steer(model, published, [Edit(1, 0, 0.0)]):
        after = block_output(model)
    weights = {name: torch.from_numpy(w) for name, w in published.dictionary(1).weights.items()}
    codes = ((before - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
    expected = before - codes[..., :1] * weights["W_dec"][0]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert (codes[..., 0] > 0).any()


def test_one_that_does_not_describe_the_rows_is_refused_with_the_likely_reason(
    built, recipe, tmp_path
):
    stored = ActivationSet(built["extract"].location)
    for level in stored.levels:
        (tmp_path / level).mkdir()
        weights = principal(stored, level)
        # As if it had been trained on rows that are three times as long.
        np.savez(tmp_path / level / "params.npz", **weights | {"W_enc": 3 * weights["W_enc"] + 0.1})
    with pytest.raises(ValueError, match="trained on activations that were normalised"):
        build(importing(recipe, tmp_path, name="unlike"))


def test_one_of_another_level_is_refused_before_anything_runs(artifact, recipe, tmp_path):
    folder = export(artifact, "saelens", tmp_path / "exported")
    levels = {
        "layer-00": {"source": str(folder / "layer-02")},
        "layer-02": {"source": str(folder / "layer-00")},
    }
    learn = {"method": "import", "levels": levels}
    values = recipe.model_dump(mode="json") | {"learn": learn, "store": str(tmp_path / "store")}
    with pytest.raises(ValueError, match=r"trained on layers\.2\.output, and the level reads"):
        build(Recipe.model_validate(values))
    assert not (tmp_path / "store/extract").exists()


@pytest.mark.parametrize("rehearse", [False, True])
def test_what_a_run_will_take_is_told_by_the_sizes_of_its_dictionaries(
    artifact, recipe, tmp_path, rehearse, local_ray
):
    from tasks.estimating import estimate

    folder = export(artifact, "saelens", tmp_path / "exported")
    own = estimate(recipe, rehearse=False)
    taken = importing(recipe, folder).model_copy(update={"store": str(tmp_path)})
    found = estimate(taken, rehearse=rehearse)
    assert found.bytes == own.bytes
    if rehearse:
        assert set(found.seconds) == {"extract", "encode", "recover", "publish"}
