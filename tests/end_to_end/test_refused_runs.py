"""What is refused inside a step is refused once, in a sentence; what is merely empty is not."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from compute.steps import learn as learning
from flows.build import build
from flows.failures import failure_of
from flows.recipe import Recipe
from storage.artifacts import Registry
from storage.exports.saelens import to_saelens
from storage.locations import Location

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def loud_model(tiny_model, tmp_path_factory):
    """The tiny model with a word whose activations no float16 holds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("loud")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("three")] *= 1e9
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_values_that_the_store_cannot_hold(tiny_recipe, loud_model, tmp_path, strata):
    """The sentence comes from a worker of Ray's, through a task and a flow of Prefect's."""
    recipe = tmp_path / "loud.yaml"
    changes = {"model": {"source": str(loud_model), "dtype": "float32"}}
    changes["extract"] = tiny_recipe["extract"] | {"dtype": "float16"}
    # Only the last text has the word, which the preflight does not see.
    texts = tmp_path / "texts"
    texts.mkdir()
    *others, last = sorted(Path(tiny_recipe["inputs"]["text"]).iterdir())
    for text in others:
        (texts / text.name).write_text(text.read_text().replace("three", "two"))
    (texts / last.name).write_text(last.read_text() + " three")
    changes["inputs"] = {"text": str(texts)}
    recipe.write_text(yaml.safe_dump(tiny_recipe | changes | {"store": str(tmp_path / "store")}))
    done = strata("run", str(recipe), env=os.environ | {"STRATA_HOME": str(tmp_path / "home")})
    assert done.returncode == 2
    *before, last = done.stderr.strip().splitlines()
    assert last.startswith(
        "error: level 'layer-00' has an activation that is not finite in float16"
    )
    assert last.endswith("choose extract.dtype=bfloat16 or float32.")
    assert "Traceback" not in done.stderr
    assert len(before) < 30
    assert sum(line.endswith("begins") for line in before) == 1
    assert before[-1].startswith("The traceback is in ")
    log = (tmp_path / before[-1].removeprefix("The traceback is in ")).read_text()
    assert "Traceback (most recent call last)" in log
    assert "to_columns" in log


def test_a_dictionary_that_its_rows_refuse(built, recipe, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(40, 16)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = {"W_enc": directions.T, "W_dec": directions}
    weights |= {"b_enc": np.full(40, 9, np.float32), "b_dec": np.full(16, 99, np.float32)}
    for level in ("layer-00", "layer-02"):
        (tmp_path / level).mkdir()
        files = to_saelens(weights, architecture="topk", k=3, metadata={})
        for name, data in files.items():
            (tmp_path / level / name).write_bytes(data)
    tries = []
    train = learning.train

    def counted(*arguments, **options):
        tries.append(1)
        return train(*arguments, **options)

    monkeypatch.setattr(learning, "train", counted)
    values = recipe.model_dump(mode="json")
    learn = values["learn"] | {"method": "import", "source": str(tmp_path)}
    with pytest.raises(ValueError, match="layer-00") as raised:
        build(Recipe.model_validate(values | {"learn": learn}))
    failure = failure_of(raised.value)
    assert failure.refused
    assert failure.sentence.startswith("learn.source of level 'layer-00': the dictionary explains")
    assert failure.sentence.endswith("give the one of this place.")
    assert len(tries) == 1


def test_nothing_is_observed_often_enough(built, recipe, caplog):
    recover = recipe.recover.model_copy(update={"min_token_count": 1_000_000})
    again = build(recipe.model_copy(update={"name": "few", "recover": recover}))
    assert again["encode"] == built["encode"]
    graph = Registry((Location(recipe.store) / "artifacts").url).load("few").graph
    assert set(graph.levels) == {1, 2}
    assert again["recover"].summary["nodes"].keys() == {"1", "2"}
    edges = built["recover"].summary["edges_into"]
    assert edges["1"] > 0
    assert again["recover"].summary["edges_into"].get("1", 0) == 0
    assert again["recover"].summary["edges_into"]["2"] == edges["2"]
    assert again["publish"].summary["status"] == "published"
    told = [r.getMessage() for r in caplog.records if "min_token_count" in r.getMessage()]
    assert told
    assert "the observed level is empty; lower it" in told[0]
