"""A steering session on the model of a published artifact, and its page."""

import pytest

from compute.steering import Edit, concept_levels
from compute.steering.session import Variant, compare, default_prompts, load_model
from compute.steering.session_page import render_page


@pytest.fixture(scope="module")
def adapter(artifact):
    return load_model(artifact)


def test_variants_are_compared_on_the_same_prompts(artifact, adapter):
    levels = concept_levels(artifact)
    concept = next(n for n in artifact.graph.nodes.to_pylist() if n["level"] == 1)["id"]
    variants = [
        Variant("unchanged"),
        Variant("nothing", [Edit.of(concept, 1.0)]),
        Variant("strong", [Edit.set(1, int(concept[2:]), 50.0)]),
    ]
    prompts = default_prompts(artifact, concept) or ["the red bird"]
    plain, same, strong = compare(adapter, levels, variants, prompts, new_tokens=8)
    assert len(plain.outputs) == len(prompts)
    assert same.outputs == plain.outputs
    assert same.scores == plain.scores
    name = "perplexity of unrelated text"
    assert strong.scores[name] != plain.scores[name]
    assert strong.distance["layer-00"].touched > 0
    page = render_page("A title <b>", "lead", prompts, [plain, same, strong])
    assert "A title &lt;b&gt;" in page
    assert "http" not in page
    with pytest.raises(ValueError, match="prompts is empty"):
        compare(adapter, levels, variants, [])


def test_the_flow_writes_a_page(artifact, recipe, prefect_home):
    from flows.steer_flow import SteerParameters, steer

    concept = next(n for n in artifact.graph.nodes.to_pylist() if n["level"] == 2)["id"]
    told = steer(
        SteerParameters(
            artifact="tiny",
            version="1",
            store=recipe.store,
            concepts=(concept,),
            prompts=("the red bird",),
            new_tokens=4,
            propagate=True,
        )
    )
    assert told["concepts"] == [concept]
    page = (told["page"]).removeprefix("file://")
    with open(page, encoding="utf-8") as file:
        assert "unchanged" in file.read()
    with pytest.raises(ValueError, match="say what to steer"):
        SteerParameters(artifact="tiny")


def test_the_command_refuses_what_does_not_exist(artifact, recipe, strata, tmp_path):
    done = strata("steer", "tiny", "--concept", "2:9999", "--store", recipe.store)
    assert done.returncode == 2
    assert "9999" in done.stderr
    done = strata("steer", "tiny", "--store", recipe.store)
    assert done.returncode == 2
    assert "--find" in done.stderr
