from __future__ import annotations

import numpy as np
import pytest

from compute.models.own import sprite_pipeline
from compute.models.own.sprite_pipeline import draw_sprites, judge_sprites, named_factors
from compute.worlds.sprites import SpriteWorld


@pytest.mark.parametrize(("shift", "named"), [(0, 1.0), (1, 0.5)])
def test_the_score_is_the_share_of_what_is_named(monkeypatch, shift, named):
    """Drawings that are right score 1; those of other captions seldom score."""
    images = SpriteWorld(1).sample(40, stream=1, held_out=True).images

    def drawn(pipeline, captions, seeds, **_):
        return np.roll(images, shift, axis=0) / np.float32(255)

    monkeypatch.setattr(sprite_pipeline, "draw", drawn)
    score = judge_sprites(draw_sprites(None, 40))
    assert score.clean == 1
    assert score.named == 1 if shift == 0 else score.named < named
    assert score.complete == 1 if shift == 0 else score.complete < named


def test_captions_and_named_factors_tell_the_same():
    _, captions, factors = SpriteWorld(0).sample(300)
    told = [tuple(row) for row in named_factors(factors)]
    assert len(set(captions)) == len(set(told)) == len(set(zip(captions, told, strict=True)))
