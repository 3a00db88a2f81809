"""The recipes for large models: their places exist there, and their classes run, tiny."""

import numpy as np
import pytest
import torch

from compute.inputs.sources import block_reader, model_loader
from compute.models.hooks import find_hookpoint, language_hookpoints, module_hookpoints
from compute.steps.plan import prepare
from flows.recipe import load_recipe, recipe_names

LARGE = ("gemma2-2b", "llama3-8b", "sd14", "sdxl-turbo", "flux-schnell")
# The family of tiny models, and a place of theirs, for each recipe.
TINY = {
    "gemma2-2b": ("gemma2", "layers.1.output"),
    "llama3-8b": ("llama", "layers.1.output"),
    "sd14": ("sd", "up_blocks.1"),
    "sdxl-turbo": ("sdxl", "up_blocks.1"),
    "flux-schnell": ("flux", "transformer_blocks.0"),
}


def full_size(name):
    """Hookpoints of the network at its published size; no weights are made."""
    import diffusers
    import transformers

    with torch.device("meta"):
        if name == "gemma2-2b":
            config = transformers.Gemma2Config(num_hidden_layers=26)
            return language_hookpoints(transformers.Gemma2ForCausalLM(config), 26)
        if name == "llama3-8b":
            config = transformers.LlamaConfig(num_hidden_layers=32)
            return language_hookpoints(transformers.LlamaForCausalLM(config), 32)
        if name == "flux-schnell":
            return module_hookpoints(diffusers.FluxTransformer2DModel())
        if name == "sd14":
            return module_hookpoints(diffusers.UNet2DConditionModel())
        return module_hookpoints(
            diffusers.UNet2DConditionModel(
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                cross_attention_dim=2048,
            )
        )


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_described(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.title
    assert len(recipe.description) > 40


@pytest.mark.parametrize("name", LARGE)
def test_the_places_are_in_the_large_model(name):
    points = full_size(name)
    for level in load_recipe(name).levels:
        find_hookpoint(points, level.hookpoint)


@pytest.mark.parametrize("name", LARGE)
def test_a_tiny_model_of_the_same_classes_runs(name, save_language_model, save_pipeline, tmp_path):
    family, place = TINY[name]
    recipe = load_recipe(name)
    language = recipe.model.kind == "language"
    source = (save_language_model if language else save_pipeline)(family)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\nthe big dog ran\na house\n")
    if language:
        (tmp_path / "more.txt").write_text("the big dog ran . a red cat and the house\n")
    settings = [f"model.source={source}", "model.dtype=float32", "model.size=16"]
    settings += [f"inputs.{'text' if language else 'prompts'}={tmp_path if language else prompts}"]
    settings += ["inputs.count=4", "extract.batch_size=2", "extract.block_rows=4096"]
    settings += ["extract.grid=2"] if not language else ["extract.context_length=16"]
    levels = [level.model_copy(update={"hookpoint": place}).model_dump() for level in recipe.levels]
    changed = load_recipe(name, [*settings, f"levels={levels}".replace("None", "null")])
    sources, plan = prepare(changed)
    samples = sources.arrange(changed.extract)
    adapter = model_loader(changed.model, changed.levels, changed.extract, plan.dtype)()
    items = block_reader(samples, changed.inputs)(0)
    rows = adapter.extract(items)
    assert len(rows) == samples.block_rows[1]
    for level, width in zip(changed.levels, sources.widths, strict=True):
        values = rows.activations[level.name]
        assert values.shape == (len(rows), width)
        assert np.isfinite(values.float().numpy()).all()
    if not language:
        assert set(rows.pictures) == {item.sample for item in items}
