from __future__ import annotations

import numpy as np
import pytest

from compute.models import sprite_pipeline
from compute.models.sprite_pipeline import score_sprites, train_sprites
from compute.models.training import TrainingSettings
from compute.worlds.sprites import SpriteWorld

SETTINGS = TrainingSettings(
    autoencoder_steps=1, denoiser_steps=1, autoencoder_batch=2, denoiser_batch=2, checkpoint_every=1
)


def test_training_leaves_a_small_standard_folder(tmp_path):
    pipeline = train_sprites(tmp_path / "model", tmp_path / "checkpoints", SETTINGS, n_images=8)
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    files = list((tmp_path / "model").rglob("*.safetensors"))
    assert {path.parent.name for path in files} == {"unet", "vae", "text_encoder"}
    assert sum(path.stat().st_size for path in files) < 10e6
    score = score_sprites(pipeline, 3, steps=2)
    assert score.n == 3
    assert score.named < 1


@pytest.mark.parametrize(("shift", "named"), [(0, 1.0), (1, 0.5)])
def test_the_score_is_the_share_of_what_is_named(monkeypatch, shift, named):
    """Drawings that are right score 1; those of other captions seldom score."""
    images = SpriteWorld(1).sample(40, stream=1, held_out=True).images

    def drawn(pipeline, captions, seeds, **_):
        return np.roll(images, shift, axis=0) / np.float32(255)

    monkeypatch.setattr(sprite_pipeline, "draw", drawn)
    score = score_sprites(None, 40)
    assert score.clean == 1
    assert score.named == 1 if shift == 0 else score.named < named
    assert score.complete == 1 if shift == 0 else score.complete < named
