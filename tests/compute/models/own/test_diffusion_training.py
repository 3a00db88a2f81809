from __future__ import annotations

import numpy as np
import pytest
import torch

from compute.models.adapter import ModelLevel
from compute.models.conformance import check_adapter
from compute.models.diffusion import DiffusionModel, Prompt
from compute.models.own.diffusion_training import (
    Samples,
    draw,
    train_autoencoder,
    train_denoiser,
    train_text_encoder,
)
from compute.models.own.small_pipelines import new_text_to_image, new_unconditional, word_tokenizer
from compute.models.own.sprite_pipeline import SpriteCheckpoints, train_sprites
from compute.models.own.training_loop import Checkpoints
from compute.models.own.training_settings import DigitSettings, SpriteSettings
from compute.worlds.sprites import SpriteWorld, caption_words
from storage.locations import Location

SETTINGS = SpriteSettings(
    n_images=16,
    autoencoder_steps=4,
    autoencoder_batch=2,
    text_steps=4,
    text_batch=2,
    denoiser_steps=4,
    denoiser_batch=2,
)
STAGES = ("autoencoder", "text_encoder", "denoiser")


def places(folder):
    return SpriteCheckpoints(*(Location(str(folder / stage)) for stage in STAGES))


def place(folder, settings):
    return Checkpoints(Location(str(folder)), settings.model_dump(), 2)


def weights(pipeline):
    return {
        f"{part}.{name}": value
        for part in ("vae", "unet", "text_encoder")
        for name, value in getattr(pipeline, part).state_dict().items()
    }


def test_every_word_is_one_token():
    tokenizer = word_tokenizer(caption_words(), 24)
    for word in caption_words():
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word
    for caption in SpriteWorld(0).sample(50).captions:
        ids = tokenizer(caption)["input_ids"]
        assert len(ids) == len(caption.split()) + 2 <= 24
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path):
    seen = []
    whole = train_sprites(SETTINGS, places(tmp_path / "a"), lambda *a: seen.append(a[:3]), every=2)
    assert seen == [(stage, step, 4) for stage in STAGES for step in (1, 2, 3, 4)]

    class Interrupted(Exception):
        pass

    def interrupt(stage, step, *_):
        if step == 2:
            raise Interrupted

    for _ in STAGES:
        with pytest.raises(Interrupted):
            train_sprites(SETTINGS, places(tmp_path / "b"), interrupt, every=2)
    left = []
    resumed = train_sprites(
        SETTINGS, places(tmp_path / "b"), lambda *a: left.append(a[:2]), every=2
    )
    assert left == [("denoiser", 3), ("denoiser", 4)]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert resumed.vae.config.scaling_factor == whole.vae.config.scaling_factor


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    images = SpriteWorld(0).sample(4).images
    vae = new_text_to_image(caption_words()).vae
    train_autoencoder(vae, images, SETTINGS, place(tmp_path, SETTINGS))
    other = SETTINGS.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match="other settings"):
        train_autoencoder(vae, images, other, place(tmp_path, other))
    vae.quant_conv = torch.nn.Identity()
    with pytest.raises(ValueError, match="another model"):
        train_autoencoder(vae, images, SETTINGS, place(tmp_path, SETTINGS))


def test_every_stage_lowers_its_loss(tmp_path):
    settings = SETTINGS.model_copy(
        update={
            "autoencoder_steps": 12, "text_steps": 12, "denoiser_steps": 12, "denoiser_batch": 8,
            "text_batch": 16, "autoencoder_batch": 4,
        }
    )  # fmt: skip
    losses = {stage: [] for stage in STAGES}
    train_sprites(
        settings, places(tmp_path), lambda stage, step, steps, loss: losses[stage].append(loss)
    )
    for stage, values in losses.items():
        assert min(values[1:]) < 0.95 * values[0], (stage, values)


def test_what_is_learnt_does_not_depend_on_how_many_steps_follow(tmp_path):
    """The rate of a denoiser stays, so a longer training passes through a shorter one."""
    kept = {}
    for steps in (500, 600):
        settings = DigitSettings(denoiser_steps=steps, denoiser_batch=1)
        pipeline = new_unconditional(size=4)

        class Enough(Exception):
            pass

        def stop(stage, step, *_):
            if step == 4:
                raise Enough

        with pytest.raises(Enough):
            train_denoiser(
                pipeline.unet, pipeline.scheduler, Samples(torch.zeros(2, 1, 4, 4)), settings,
                place(tmp_path / str(steps), settings), stop,
            )  # fmt: skip
        kept[steps] = pipeline.unet.state_dict()
    for name, value in kept[500].items():
        assert torch.equal(value, kept[600][name]), name


def test_what_is_trained_is_a_standard_pipeline(tmp_path):
    pipeline = new_text_to_image(caption_words())
    pictures = draw(pipeline, ["a red house top left", "a blue car"], [0, 1], steps=2)
    assert pictures.shape == (2, 32, 32, 3)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    again = draw(pipeline, ["a blue car"], [1], steps=2)
    np.testing.assert_allclose(again[0], pictures[1], atol=1e-3)

    pipeline.save_pretrained(tmp_path)
    levels = [ModelLevel("low", "up_blocks.1", 100), ModelLevel("high", "mid_block", 899)]
    adapter = DiffusionModel.load(tmp_path, levels=levels, dtype="float32", steps=4)
    assert adapter.grid == (4, 4)
    check_adapter(adapter, [Prompt(0, "a red house top left", 0), Prompt(1, "a blue car", 1)])


@pytest.mark.parametrize("name", ["denoiser_steps", "denoiser_rate", "n_images"])
def test_bad_settings_are_refused(name):
    with pytest.raises(ValueError, match=name):
        SpriteSettings(**{name: 0})


def test_bad_sizes_and_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="size is 30"):
        new_text_to_image(caption_words(), size=30)
    with pytest.raises(ValueError, match="size is 6"):
        new_unconditional(size=6)
    nothing = np.zeros((0, 32, 32, 3), dtype=np.uint8)
    where = place(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="images hold no picture"):
        train_autoencoder(None, nothing, SETTINGS, where)
    with pytest.raises(ValueError, match="1 captions and 2 rows"):
        train_text_encoder(None, ["a"], np.zeros((2, 4), dtype=np.int64), SETTINGS, where)
    with pytest.raises(ValueError, match="data hold 0 images and no captions"):
        train_denoiser(None, None, Samples(torch.zeros(0, 1, 4, 4)), SETTINGS, where)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "seal.json"])
def test_a_damaged_checkpoint_is_not_used_and_that_is_said(tmp_path, caplog, name):
    """The one before it is; and the weights come out the same."""
    settings = SETTINGS.model_copy(update={"autoencoder_steps": 6})
    images = SpriteWorld(0).sample(4).images

    def train(folder, progress=None):
        vae = new_text_to_image(caption_words()).vae
        checkpoints = Checkpoints(Location(str(folder)), settings.model_dump(), every=2)
        train_autoencoder(vae, images, settings, checkpoints, progress)
        return vae.state_dict()

    class Interrupted(Exception):
        pass

    def interrupt(stage, step, *_):
        if step == 5:
            raise Interrupted

    whole = train(tmp_path / "a")
    assert Location(str(tmp_path / "a")).children() == ["6"]
    with pytest.raises(Interrupted):
        train(tmp_path / "b", interrupt)
    location = Location(str(tmp_path / "b"))
    assert location.children() == ["2", "4"]
    data = bytearray(location.get(f"4/{name}"))
    data[len(data) // 2] ^= 1
    location.put(f"4/{name}", bytes(data))
    done = []
    resumed = train(tmp_path / "b", lambda *a: done.append(a[1]))
    assert done == [3, 4, 5, 6]
    assert "the checkpoint of step 4 is not used" in caplog.text
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(tmp_path):
    images = SpriteWorld(0).sample(4).images
    vae = new_text_to_image(caption_words()).vae
    train_autoencoder(vae, images, SETTINGS, place(tmp_path, SETTINGS))
    location = place(tmp_path, SETTINGS).location
    (step,) = location.children()
    location.put("checkpoint.safetensors", location.get(f"{step}/checkpoint.safetensors"))
    location.delete_folder(step)
    done = []
    train_autoencoder(
        vae, images, SETTINGS, place(tmp_path, SETTINGS), lambda *a: done.append(a[1])
    )
    assert done == []
