from __future__ import annotations

import numpy as np
import pytest
import torch

from compute.models.base import Level
from compute.models.conformance import check_adapter
from compute.models.diffusion import DiffusionModel, Prompt
from compute.models.training import (
    Captioned,
    TrainingSettings,
    draw,
    new_pipeline,
    train_text_to_image,
    word_tokenizer,
)
from compute.worlds.sprites import SpriteWorld, caption_words

SETTINGS = TrainingSettings(
    autoencoder_steps=4, denoiser_steps=4, autoencoder_batch=2, denoiser_batch=2, checkpoint_every=2
)


@pytest.fixture(scope="module")
def data():
    images, captions, _ = SpriteWorld(0).sample(16, held_out=False)
    return Captioned(images, captions)


def weights(pipeline):
    return {
        f"{part}.{name}": value
        for part in ("vae", "unet", "text_encoder")
        for name, value in getattr(pipeline, part).state_dict().items()
    }


def test_every_word_is_one_token():
    tokenizer = word_tokenizer(caption_words(), 32)
    for word in caption_words():
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word
    for caption in SpriteWorld(0).sample(50).captions:
        ids = tokenizer(caption)["input_ids"]
        assert len(ids) == len(caption.split()) + 2 <= 32
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


def test_an_interrupted_training_ends_in_the_same_weights(data, tmp_path):
    whole = new_pipeline(caption_words())
    seen = []
    train_text_to_image(whole, data, SETTINGS, tmp_path / "a", lambda *a: seen.append(a[:3]))
    assert seen == [(stage, step, 4) for stage in ("autoencoder", "denoiser") for step in (2, 4)]

    class Interrupted(Exception):
        pass

    def interrupt(stage, step, *_):
        if (stage, step) in (("autoencoder", 2), ("denoiser", 2)):
            raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            train_text_to_image(
                new_pipeline(caption_words()), data, SETTINGS, tmp_path / "b", interrupt
            )
    resumed = new_pipeline(caption_words())
    train_text_to_image(resumed, data, SETTINGS, tmp_path / "b")
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert resumed.vae.config.scaling_factor == whole.vae.config.scaling_factor
    assert not list(tmp_path.rglob(".*"))


def test_a_checkpoint_of_other_settings_is_refused(data, tmp_path):
    train_text_to_image(new_pipeline(caption_words()), data, SETTINGS, tmp_path)
    other = TrainingSettings(seed=1, checkpoint_every=2)
    with pytest.raises(ValueError, match="other settings"):
        train_text_to_image(new_pipeline(caption_words()), data, other, tmp_path)
    changed = new_pipeline(caption_words())
    changed.vae.quant_conv = torch.nn.Identity()
    with pytest.raises(ValueError, match="another model"):
        train_text_to_image(changed, data, SETTINGS, tmp_path)


def test_training_lowers_the_loss(data, tmp_path):
    settings = TrainingSettings(
        autoencoder_steps=12, denoiser_steps=12, autoencoder_batch=2, denoiser_batch=8,
        checkpoint_every=3,
    )  # fmt: skip
    losses = {"autoencoder": [], "denoiser": []}
    train_text_to_image(
        new_pipeline(caption_words()), data, settings, tmp_path,
        lambda stage, step, steps, loss: losses[stage].append(loss),
    )  # fmt: skip
    for stage, values in losses.items():
        assert min(values[1:]) < 0.95 * values[0], (stage, values)


def test_what_is_trained_is_a_standard_pipeline(tmp_path):
    pipeline = new_pipeline(caption_words())
    pictures = draw(pipeline, ["a red house top left", "a blue car"], [0, 1], steps=2)
    assert pictures.shape == (2, 32, 32, 3)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    again = draw(pipeline, ["a blue car"], [1], steps=2)
    np.testing.assert_allclose(again[0], pictures[1], atol=1e-3)

    pipeline.save_pretrained(tmp_path)
    levels = [Level("low", "up_blocks.1", 100), Level("high", "mid_block", 899)]
    adapter = DiffusionModel.load(tmp_path, levels=levels, dtype="float32", steps=4)
    assert adapter.grid == (4, 4)
    check_adapter(adapter, [Prompt(0, "a red house top left", 0), Prompt(1, "a blue car", 1)])


@pytest.mark.parametrize("name", ["denoiser_steps", "denoiser_rate", "checkpoint_every"])
def test_bad_settings_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be positive"):
        TrainingSettings(**{name: 0})


def test_a_bad_size_and_missing_captions_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="size is 30"):
        new_pipeline(caption_words(), size=30)
    with pytest.raises(ValueError, match="16 images and 1 captions"):
        train_text_to_image(None, Captioned(data.images, ["x"]), SETTINGS, tmp_path)
