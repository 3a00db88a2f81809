"""Steering of diffusion pipelines: steps, patches and halves."""

import numpy as np
import pytest
import torch

from compute.steering import ConceptLevel, Edit, steer, trace
from tests.compute.steering.conftest import random_dictionary

STEPS = 10


def draw(pipeline, n=2):
    generators = [torch.Generator().manual_seed(i) for i in range(n)]
    options = {"num_inference_steps": STEPS, "generator": generators, "output_type": "np"}
    return pipeline(batch_size=n, **options).images


def draw_text(pipeline, guidance=4.0):
    options = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0)}
    return pipeline(
        "a red dog", height=16, width=16, output_type="latent", guidance_scale=guidance, **options
    ).images


class Outputs:
    """The outputs of a module in every step."""

    def __init__(self, pipeline, path):
        self.module, self.seen = pipeline.unet.get_submodule(path), []

    def __enter__(self):
        def keep(module, args, output):
            self.seen.append((output[0] if isinstance(output, tuple) else output).clone())

        self.handle = self.module.register_forward_hook(keep)
        return self

    def __exit__(self, *exc):
        self.handle.remove()


def all_edits(**options):
    return [Edit(level, concept, **options) for level in (1, 2) for concept in range(48)]


@pytest.mark.parametrize("kind", ["unconditional", "guided"])
def test_no_ops_are_bit_identical(pipeline, prompted, diffusion_levels, kind):
    model, drawn = (pipeline, draw) if kind == "unconditional" else (prompted, draw_text)
    plain = np.asarray(drawn(model))
    with steer(model, diffusion_levels, all_edits(scale=1.0)):
        assert np.array_equal(np.asarray(drawn(model)), plain)
    with steer(model, diffusion_levels, all_edits(scale=0.0)):
        assert not np.array_equal(np.asarray(drawn(model)), plain)
    assert np.array_equal(np.asarray(drawn(model)), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.unet.modules())


def test_the_edit_is_exact_on_feature_maps(pipeline, diffusion_levels):
    dictionary = diffusion_levels[1].dictionary
    with Outputs(pipeline, "mid_block") as plain:
        draw(pipeline)
    before = plain.seen[0]
    codes = dictionary.encode(before.permute(0, 2, 3, 1))
    concept = int(codes.sum((0, 1, 2)).argmax())
    edited = codes.clone()
    edited[..., concept] = 0
    expected = before + (dictionary.decode(edited) - dictionary.decode(codes)).permute(0, 3, 1, 2)
    with (
        steer(pipeline, diffusion_levels, [Edit(2, concept, 0)]),
        Outputs(pipeline, "mid_block") as found,
    ):
        draw(pipeline)
    torch.testing.assert_close(found.seen[0], expected, rtol=1e-4, atol=1e-5)


def test_edits_act_at_the_steps_nearest_to_their_level(pipeline, diffusion_levels):
    """DDIM steps are 900, 800, … 0; the levels of 700 and 200 share them out at 450."""
    expected = {1: [400, 300, 200, 100, 0], 2: [900, 800, 700, 600, 500]}
    for level, steps in expected.items():
        with (
            steer(pipeline, diffusion_levels, [Edit.set(level, 3, 30.0)]),
            trace(pipeline, diffusion_levels, {level: [3]}) as seen,
        ):
            draw(pipeline, 1)
        raised = [t for t in seen.timesteps(level) if float(seen.codes(level, 3, t).min()) > 15]
        assert raised == steps
    with (
        steer(pipeline, diffusion_levels, [Edit.set(1, 3, 30.0, timesteps=(550, 650))]),
        trace(pipeline, diffusion_levels, {1: [3]}) as seen,
    ):
        draw(pipeline, 1)
    raised = [t for t in seen.timesteps(1) if float(seen.codes(1, 3, t).min()) > 15]
    assert raised == [600]


@pytest.mark.parametrize("half", ["conditional", "both"])
def test_halves(prompted, diffusion_levels, half):
    with Outputs(prompted, "mid_block") as plain:
        draw_text(prompted)
    with (
        steer(prompted, diffusion_levels, [Edit.set(2, 3, 30.0, half=half)]),
        Outputs(prompted, "mid_block") as edited,
    ):
        draw_text(prompted)
    changed = [(a != b).any() for a, b in zip(plain.seen[0], edited.seen[0], strict=True)]
    assert changed == [half == "both", True]


def test_without_guidance_there_is_only_one_half(prompted, diffusion_levels):
    plain = draw_text(prompted, guidance=1.0)
    with steer(prompted, diffusion_levels, [Edit.set(2, 3, 30.0)]) as steering:
        assert not torch.equal(draw_text(prompted, guidance=1.0), plain)
    assert steering.distance["early"].touched > 0


def test_a_mask_confines_the_edit(pipeline, diffusion_levels):
    mask = np.zeros((8, 8))
    mask[:, :4] = 1  # the left half of the picture
    with Outputs(pipeline, "mid_block") as plain:
        draw(pipeline, 1)
    with (
        steer(pipeline, diffusion_levels, [Edit.set(2, 3, 30.0, mask=mask)]),
        Outputs(pipeline, "mid_block") as edited,
    ):
        draw(pipeline, 1)
    changed = (plain.seen[0] != edited.seen[0]).any(1)[0]
    width = changed.shape[1]
    assert changed[:, : width // 2].all()
    assert not changed[:, width // 2 :].any()


def test_codes_of_a_donor_drawing(pipeline, diffusion_levels):
    """With the donor's codes for a drawing of its own, nothing changes."""
    concepts = list(range(48))
    plain = draw(pipeline, 1)
    with trace(pipeline, diffusion_levels, {1: concepts, 2: concepts}) as donor:
        draw(pipeline, 1)
    edits = [Edit.swap(level, c, donor) for level in (1, 2) for c in concepts]
    with steer(pipeline, diffusion_levels, edits):
        np.testing.assert_allclose(draw(pipeline, 1), plain, atol=1e-4)
    with steer(pipeline, diffusion_levels, edits), pytest.raises(ValueError, match="patches"):
        pipeline.unet(torch.zeros(1, 1, 16, 16), 700)


def test_texts_and_pictures_are_not_mixed_up(pipeline, diffusion_levels):
    with pytest.raises(ValueError, match="are of texts"):
        steer(pipeline, diffusion_levels, [Edit(1, 0, 0, positions=[1])])
    with pytest.raises(ValueError, match="h, w"):
        steer(pipeline, diffusion_levels, [Edit(1, 0, value=[1.0, 2.0])])
    level = ConceptLevel(1, "a", "mid_blok", random_dictionary(32), timestep=200)
    with pytest.raises(ValueError, match="mid_block"):
        steer(pipeline, level, [Edit(1, 0, 0)])
