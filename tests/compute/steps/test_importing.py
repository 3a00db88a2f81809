"""Dictionaries trained elsewhere are held against the level that they are to be of."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from compute.settings import Recipe
from compute.steps.importing import find_dictionaries, sized
from storage.exports.saelens import to_saelens

D, N = 6, 10


def recipe(source, model="somebody/gemma-2-2b", hookpoint="layers.3.output", **learn):
    return Recipe.model_validate(
        {
            "name": "taken",
            "model": {"source": model},
            "inputs": {"text": "texts"},
            "levels": [{"name": "low", "hookpoint": hookpoint}],
            "learn": {"method": "import", "source": str(source)} | learn,
        }
    )


def put(folder, **metadata):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(N, D)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = {"W_enc": directions.T, "W_dec": directions}
    weights |= {"b_enc": np.zeros(N, np.float32), "b_dec": np.zeros(D, np.float32)}
    for name, data in to_saelens(weights, architecture="topk", k=3, metadata=metadata).items():
        (folder / name).write_bytes(data)
    return folder


def test_one_of_the_level_is_taken_and_tells_its_size(tmp_path):
    put(tmp_path, model_name="gemma-2-2b", hook_name="blocks.3.hook_resid_post")
    found = find_dictionaries(recipe(tmp_path), [D])
    assert found["low"].dictionary.n_concepts == N
    learn = sized(recipe(tmp_path), [D])
    assert (learn.of_level("low").n_concepts, learn.of_level("low").active) == (N, 3)
    assert learn.published_architecture == "topk"


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"hook_name": "blocks.2.hook_resid_post"}, "trained on blocks.2.hook_resid_post"),
        ({"hook_name": "blocks.3.hook_mlp_out"}, "the level reads layers.3.output"),
        ({"model_name": "gpt2-small"}, "the model is somebody/gemma-2-2b"),
        ({"hookpoint": "layers.3.output", "timestep": 5}, "at timestep 5"),
    ],
)
def test_one_of_another_place_or_model_is_refused(tmp_path, metadata, told):
    put(tmp_path, **metadata)
    with pytest.raises(ValueError, match=r"learn\.source of level 'low'") as refused:
        find_dictionaries(recipe(tmp_path))
    assert told in str(refused.value)


def test_one_of_another_width_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"width 6, and those of layers\.3\.output have 7"):
        find_dictionaries(recipe(put(tmp_path)), [7])


def test_a_folder_of_the_model_may_be_named_anyhow(tmp_path):
    put(tmp_path, model_name="gpt2-small")
    assert find_dictionaries(recipe(tmp_path, model=str(tmp_path)))


def test_settings_of_training_are_set_aside_and_sources_are_not(tmp_path):
    own = {"low": {"source": str(put(tmp_path))}}
    taken = recipe("elsewhere", levels=own, n_concepts=7, k=2, steps=5, spare=1)
    assert taken.learn.source_of("low") == str(tmp_path)
    for learn, told in [
        ({"method": "import"}, "has no source"),
        ({"method": "independent", "source": "x"}, "does nothing with method = independent"),
        ({"levels": {"low": {"source": "x"}}}, "does nothing with method = hierarchical"),
    ]:
        with pytest.raises(ValidationError, match=told):
            Recipe.model_validate(taken.model_dump() | {"learn": learn})


def test_every_level_needs_a_source(tmp_path):
    values = recipe(tmp_path).model_dump()
    values["levels"] = [*values["levels"], {"name": "high", "hookpoint": "layers.4.output"}]
    values["learn"] = {"method": "import", "levels": {"low": {"source": "x"}}}
    with pytest.raises(ValidationError, match="no source for level 'high'"):
        Recipe.model_validate(values)


def test_a_source_beside_the_recipe_is_found_from_anywhere(tmp_path, monkeypatch):
    from flows.recipe import load_recipe

    (tmp_path / "saes").mkdir()
    put(tmp_path / "saes")
    values = json.loads(recipe("saes", levels={"low": {"source": "saes"}}).model_dump_json())
    (tmp_path / "mine.yaml").write_text(json.dumps(values))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    learn = load_recipe("../mine.yaml").learn
    assert learn.source == learn.levels["low"].source
    assert find_dictionaries(load_recipe("../mine.yaml"))["low"].dictionary.n_concepts == N
    values["learn"] = {"method": "import", "source": "somebody/saes"}
    (tmp_path / "mine.yaml").write_text(json.dumps(values))
    assert load_recipe("../mine.yaml").learn.source == "somebody/saes"
