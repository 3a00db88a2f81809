from __future__ import annotations

import numpy as np
import pytest
import torch

from compute.models.adapter import ModelLevel
from compute.models.conformance import check_adapter
from compute.models.diffusion import DiffusionModel, Image, Prompt
from compute.models.hooks import stream_in, stream_out
from compute.models.patches import Grid, align, feature_map

PLACES = {
    "sd": ("down_blocks.1.attentions.0.update", "mid_block", "up_blocks.1"),
    "sdxl": ("down_blocks.1.attentions.0.update", "mid_block.update", "up_blocks.1"),
    "sd3": ("transformer_blocks.0.update", "transformer_blocks.1", "transformer_blocks.0.attn"),
    "flux": ("transformer_blocks.0", "single_transformer_blocks.0.update", "norm_out"),
    "ddim": ("down_blocks.1.attentions.0.update", "mid_block", "up_blocks.1"),
}
TIMES = (100, 500, 899)
TEXTS = ("a red cat", "the big dog ran", "a house")


def levels(family):
    return [
        ModelLevel(f"t{time}", place, time)
        for time, place in zip(TIMES, PLACES[family], strict=True)
    ]


def load(folder, family, **options):
    options = {
        "levels": levels(family), "dtype": "float32", "device": "cpu",
        "steps": 10, "size": 8 if family == "ddim" else 16, "batch_size": 2,
    } | options  # fmt: skip
    return DiffusionModel.load(folder, **options)


def prompts(n=3):
    return [Prompt(10 + i, TEXTS[i], seed=i) for i in range(n)]


def images(family, n=3):
    rng = np.random.default_rng(0)
    shape = (8, 8, 1) if family == "ddim" else (16, 16, 3)
    return [Image(i, rng.integers(0, 256, shape, dtype=np.uint8), i, TEXTS[i]) for i in range(n)]


@pytest.mark.parametrize("family", PLACES)
class TestDiffusionFamilies:
    def test_drawing_keeps_the_contract(self, save_pipeline, family):
        check_adapter(load(save_pipeline(family), family), prompts())

    def test_noising_keeps_the_contract(self, save_pipeline, family):
        check_adapter(load(save_pipeline(family), family), images(family))

    def test_shapes_are_known_without_weights(self, save_pipeline, family):
        adapter = load(save_pipeline(family), family)
        shapes = adapter.facts.shapes(levels(family))
        assert {name: shape[0] for name, shape in shapes.items()} == adapter.widths
        assert adapter.grid == (min(s[1] for s in shapes.values()),) * 2

    def test_an_items_noise_is_its_seeds(self, save_pipeline, family):
        adapter = load(save_pipeline(family), family)
        items = [Prompt(0, TEXTS[0], 7), Prompt(1, TEXTS[0], 7), Prompt(2, TEXTS[0], 8)]
        rows = adapter.extract(items).activations["t899"]
        first, same, other = rows.split(adapter.rows_of(items[0]))
        torch.testing.assert_close(first, same, rtol=1e-4, atol=1e-5)
        assert (first - other).abs().max() > 1e-3

    def test_both_modes_call_the_network_alike(self, save_pipeline, family):
        """The first step of a drawing sees nothing but noise: noise mode can do the same."""
        place = PLACES[family][1]
        adapter = load(
            save_pipeline(family), family, levels=[ModelLevel("x", place, 999)], guidance=1.0
            if family in ("sd", "sdxl", "sd3") else None,
        )  # fmt: skip
        item = prompts(1)[0]
        drawn = adapter.extract([item]).activations["x"]
        denoiser, scheduler = adapter.denoiser, adapter.pipeline.scheduler
        shape = (1, denoiser.channels, denoiser.size, denoiser.size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(item.seed))
        first = scheduler.timesteps[0]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.set_timesteps(adapter.steps)
            noise = scheduler.scale_model_input(noise * scheduler.init_noise_sigma, first)
        seen = []
        module = denoiser.network.get_submodule(place.removesuffix(".update"))
        module.register_forward_hook(
            lambda _, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
        )
        with torch.inference_mode():
            condition = denoiser.condition(adapter.pipeline, [item.text])
            denoiser.run(noise, float(first), condition)
        args, kwargs, out = seen[0]
        value = stream_out(out, text_first=type(module).__name__.startswith(("Joint", "Flux")))
        if place.endswith(".update"):
            value = value - stream_in(args, kwargs)
        expected = align(feature_map(value, place), adapter.grid)
        torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-5)

    def test_a_drawing_ends_after_the_last_level(self, save_pipeline, family):
        adapter = load(save_pipeline(family), family, levels=levels(family)[2:])
        calls = []
        adapter.denoiser.network.register_forward_pre_hook(lambda *_: calls.append(1))
        adapter.extract(prompts(1))
        timesteps = adapter.pipeline.scheduler.timesteps
        assert len(calls) == int((timesteps - 899).abs().argmin()) + 1


class TestStableDiffusion:
    def test_the_conditional_half_is_read(self, save_pipeline):
        """Guidance changes the trajectory, but at its first step only the latents count."""
        folder, top = save_pipeline("sd"), [ModelLevel("top", "mid_block", 999)]
        guided = load(folder, "sd", levels=top, guidance=7.5).extract(prompts())
        plain = load(folder, "sd", levels=top, guidance=1.0).extract(prompts())
        torch.testing.assert_close(
            guided.activations["top"], plain.activations["top"], rtol=1e-4, atol=1e-5
        )

    def test_noise_mode_reads_what_the_network_gives(self, save_pipeline):
        adapter = load(save_pipeline("sd"), "sd", levels=[ModelLevel("x", "up_blocks.1", 500)])
        item = images("sd", 1)[0]
        rows = adapter.extract([item]).activations["x"]
        pipeline = adapter.pipeline
        seen = []
        handle = pipeline.unet.up_blocks[1].register_forward_hook(lambda *a: seen.append(a[2]))
        with torch.inference_mode():
            pixels = torch.from_numpy(item.array).permute(2, 0, 1)[None] / 255 * 2 - 1
            clean = (
                pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
            )
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(item.seed))
            noisy = pipeline.scheduler.add_noise(clean, noise, torch.tensor([500]))
            text, _ = pipeline.encode_prompt(item.text, "cpu", 1, False)
            pipeline.unet(noisy, 500, encoder_hidden_states=text)
        handle.remove()
        torch.testing.assert_close(rows, seen[0][0].flatten(1).T)

    def test_finer_blocks_are_pooled_to_the_grid(self, save_pipeline):
        both = [ModelLevel("fine", "up_blocks.1", 100), ModelLevel("coarse", "mid_block", 100)]
        adapter = load(save_pipeline("sd"), "sd", levels=both)
        fine = load(save_pipeline("sd"), "sd", levels=both[:1])
        assert (adapter.grid, fine.grid) == ((4, 4), (8, 8))
        pooled = adapter.extract(images("sd", 1)).activations["fine"]
        maps = fine.extract(images("sd", 1)).activations["fine"].reshape(4, 2, 4, 2, -1)
        torch.testing.assert_close(pooled, maps.mean(dim=(1, 3)).reshape(16, -1))

    @pytest.mark.parametrize(
        ("level", "message"),
        [
            (ModelLevel("x", "mid_block"), "level 'x' has timestep None"),
            (ModelLevel("x", "mid_block", 1000), "needs one from 0 to 999"),
            (
                ModelLevel("x", "middle_block", 5),
                "'middle_block' is not in this model; the nearest",
            ),
            (ModelLevel("x", "time_embedding", 5), "has no patches of the image"),
            (ModelLevel("x", "down_blocks.0.update", 5), "has no residual update"),
        ],
    )
    def test_a_level_the_model_lacks_is_refused_before_loading(
        self, save_pipeline, monkeypatch, level, message
    ):
        monkeypatch.setattr("compute.models.diffusion._load_pipeline", None)
        with pytest.raises(ValueError, match=message):
            load(save_pipeline("sd"), "sd", levels=[level])

    def test_mixed_items_and_wrong_sizes_are_refused(self, save_pipeline):
        adapter = load(save_pipeline("sd"), "sd")
        with pytest.raises(ValueError, match="mix prompts and images"):
            adapter.extract([*prompts(1), *images("sd", 1)])
        with pytest.raises(ValueError, match="resize the images"):
            adapter.extract([Image(0, np.zeros((32, 32, 3)), 0)])
        with pytest.raises(ValueError, match="size is 15"):
            load(save_pipeline("sd"), "sd", size=15)


def test_a_bare_unet_is_a_model(save_pipeline):
    adapter = load(save_pipeline("ddim") / "unet", "ddim")
    check_adapter(adapter, images("ddim"))


def test_a_folder_of_something_else_is_refused(save_language_model):
    with pytest.raises(ValueError, match="supported are"):
        DiffusionModel.inspect(save_language_model("llama"))


class TestPatches:
    def test_rows_are_patches_in_reading_order(self):
        maps = torch.arange(12.0).reshape(1, 1, 3, 4)
        assert align(maps, Grid(3, 4)).flatten().tolist() == list(range(12))
        tokens = maps.flatten(2).transpose(1, 2)
        assert torch.equal(feature_map(tokens, "x", aspect=3 / 4), maps)

    def test_a_coarse_cell_is_shared_by_its_patches(self):
        maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        assert align(maps, Grid(4, 4)).flatten().tolist() == [
            1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4,
        ]  # fmt: skip
