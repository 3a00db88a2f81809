"""What codes keep of a trained model's cross-entropy, measured in the step that learns them."""

import pytest

from compute.settings import LearnSettings
from compute.steps.fidelity import measure_fidelity, passed_rows
from flows.recipe import Recipe
from flows.stages import learn
from storage.tables.activations import ActivationSet

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def grammar(tiny_recipe, tmp_path_factory, prefect_home, local_ray):
    """The project's own model of a grammar, which knows how its texts go on."""
    values = tiny_recipe | {
        "name": "grammar",
        "store": str(tmp_path_factory.mktemp("grammar")),
        "model": {"source": "package:compute.pretrained.grammar", "dtype": "float32"},
        "inputs": {"text": "builtin:grammar", "count": 240},
        "levels": [
            {"name": "block-1", "hookpoint": "layers.0.output"},
            {"name": "block-2", "hookpoint": "layers.1.output"},
        ],
        "learn": {"method": "independent", "n_concepts": 64, "k": 4, "steps": 200},
    }
    recipe = Recipe.model_validate(values)
    return recipe, learn(recipe)


def test_every_level_says_what_its_codes_keep_of_the_cross_entropy(grammar):
    for scores in grammar[1]["learn"].summary["levels"].values():
        assert 0.7 < scores["cross_entropy_recovered"] < 1.01
        assert "reading_cross_entropy_recovered" not in scores


def test_a_selection_model_is_asked_for_its_own_codes_and_for_its_reading(grammar):
    recipe, _ = grammar
    model = LearnSettings.model_validate({"n_concepts": 24})
    references = learn(recipe.model_copy(update={"learn": model}))
    for scores in references["learn"].summary["levels"].values():
        own, reading = (scores[f"{kind}cross_entropy_recovered"] for kind in ("", "reading_"))
        assert own != reading
        # So few concepts of so few rows may serve the model worse than the mean.
        assert max(own, reading) < 1.01


def test_the_same_is_measured_again(grammar):
    recipe, references = grammar
    stored, learned = ActivationSet(references["extract"].location), references["learn"].open()
    dtype = references["extract"].summary["model_dtype"]
    again = measure_fidelity(recipe, stored, learned, dtype=dtype)
    for level, scores in references["learn"].summary["levels"].items():
        shares = again[level]
        assert list(shares) == ["cross_entropy_recovered"]
        assert shares == pytest.approx({name: scores[name] for name in shares}, abs=1e-4)


def test_rows_are_counted_pass_by_pass(grammar):
    recipe, _ = grammar
    # Read, as it is, and at each of two levels with the mean and with what codes make of it.
    assert passed_rows(recipe) == 6 * 2048
