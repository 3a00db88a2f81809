"""Steering of language models: exact edits, exact no-ops, hooks that end with the block."""

import threading

import numpy as np
import pytest
import torch

from compute.models.hooks import stream_out
from compute.steering import AlreadySteered, ConceptLevel, Edit, steer, trace
from tests.compute.steering.conftest import random_dictionary
from tests.tiny_models import FAMILIES, tiny_language_model

IDS = torch.arange(4, 24)[None]


def run(model, ids=IDS):
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


def hidden(model, path, ids=IDS):
    """Output of a module in one pass."""
    seen = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda m, a, output: seen.append(stream_out(output).clone())
    )
    run(model, ids)
    handle.remove()
    return seen[0]


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def active(levels, model, path="model.layers.0", level=0):
    """A concept that is active somewhere, and its codes (t,)."""
    codes = levels[level].dictionary.encode(hidden(model, path)[0])
    concept = int(codes.sum(0).argmax())
    return concept, codes[:, concept]


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated"])
def test_the_edit_is_the_difference_of_the_decoded_codes(language_model, architecture):
    dictionary = random_dictionary(32, architecture=architecture)
    level = ConceptLevel(1, "layer-00", "layers.0.output", dictionary)
    before = hidden(language_model, "model.layers.0")
    codes = dictionary.encode(before)
    first, second = codes.sum((0, 1)).topk(2).indices.tolist()
    edited = codes.clone()
    edited[..., first] = 0
    edited[..., second] = 2.5 * codes[..., second]
    expected = before + dictionary.decode(edited) - dictionary.decode(codes)
    with steer(language_model, level, [Edit(1, first, 0), Edit("layer-00", second, 2.5)]):
        found = hidden(language_model, "model.layers.0")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    untouched = (edited == codes).all(-1)
    assert torch.equal(found[untouched], before[untouched])
    assert not torch.equal(found, before)


# Gemma 3n has no row per token in its stream.
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"bert", "gemma3n_text"}))
@pytest.mark.parametrize("point", ["output", "input", "attn", "mlp", "update"])
def test_every_place_of_every_family_can_be_edited(family, point):
    model = tiny_language_model(family)
    hookpoint = {"update": "model.layers.1.update"}.get(point, f"layers.1.{point}")
    if point == "update":
        hookpoint = {
            "gpt2": "transformer.h.1.update",
            "bloom": "transformer.h.1.update",
            "falcon": "transformer.h.1.update",
            "mpt": "transformer.blocks.1.update",
            "gpt_neox": "gpt_neox.layers.1.update",
            "opt": "model.decoder.layers.1.update",
        }.get(family, hookpoint)
    level = ConceptLevel(1, "a", hookpoint, random_dictionary(32))
    plain = run(model)
    with steer(model, level, [Edit(1, c, 1.0) for c in range(48)]):
        assert torch.equal(run(model), plain)
    with steer(model, level, [Edit(1, c, add=0.0, scale=1.0, clamp=True) for c in range(48)]):
        assert torch.equal(run(model), plain)
    with steer(model, level, [Edit.set(1, 5, 3.0)]) as steering:
        assert not torch.equal(run(model), plain)
    assert steering.distance["a"].touched == IDS.shape[1]
    assert hooks(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edits_without_effect_are_exact_no_ops(levels, dtype):
    """Concepts that are not active can be scaled by anything; scale 1 changes nothing at all."""
    model = tiny_language_model("llama").to(dtype)
    plain = run(model)
    codes = levels[0].dictionary.encode(hidden(model, "model.layers.0").float())
    silent = codes.sum((0, 1)).eq(0).nonzero()[:, 0].tolist()
    assert silent
    with steer(model, levels, [Edit(1, c, 7.0) for c in silent]) as steering:
        assert torch.equal(run(model), plain)
    assert steering.distance["layer-00"].touched == 0
    with steer(model, levels, [Edit(1, c, 1.0) for c in range(48)]):
        assert torch.equal(run(model), plain)


def test_set_add_above_clamp_and_order(language_model, levels):
    concept, values = active(levels, language_model)

    def code(*edits):
        edits = [Edit(1, concept, **options) for options in edits]
        before = hidden(language_model, "model.layers.0")[0]
        with steer(language_model, levels, edits):
            after = hidden(language_model, "model.layers.0")[0]
        return values + (after - before) @ levels[0].dictionary.directions[concept]

    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(code({"value": 2.0}), torch.full_like(values, 2.0), **close)
    torch.testing.assert_close(code({"add": 0.5}), values + 0.5, **close)
    series = np.linspace(0, 1, 20)
    torch.testing.assert_close(code({"value": series}), torch.tensor(series).float(), **close)
    limit = float(values.max()) / 2
    expected = torch.where(values > limit, 0.0, values)
    torch.testing.assert_close(code({"scale": 0, "above": limit}), expected, **close)
    torch.testing.assert_close(code({"value": 9.0, "clamp": True}), values * 0 + 3, **close)
    torch.testing.assert_close(code({"scale": -1, "clamp": True}), values * 0, **close)
    torch.testing.assert_close(code({"add": 1.0}, {"scale": 2.0}), 2 * (values + 1), **close)


def test_chosen_positions_only(language_model, levels):
    before = hidden(language_model, "model.layers.0")
    for positions, expected in (((2, 5), [2, 5]), (slice(17, None), [17, 18, 19])):
        with steer(language_model, levels, [Edit.set(1, 3, 4.0, positions=positions)]):
            after = hidden(language_model, "model.layers.0")
        assert (after != before).any(-1)[0].nonzero()[:, 0].tolist() == expected


def test_several_levels_at_once(language_model, levels):
    """The upper level encodes what the edit of the lower level has left."""
    edits = [Edit.set(1, 3, 4.0), Edit.set(2, 7, 4.0)]
    with steer(language_model, levels, edits[:1]):
        between = hidden(language_model, "model.layers.1")
    dictionary = levels[1].dictionary
    codes = dictionary.encode(between)
    edited = codes.clone()
    edited[..., 7] = 4.0
    with steer(language_model, levels, edits):
        found = hidden(language_model, "model.layers.1")
    expected = between + dictionary.decode(edited) - dictionary.decode(codes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_generation_with_a_cache_equals_generation_without(language_model, levels):
    edits = [Edit.set(1, 3, 6.0, positions=slice(6, None)), Edit(2, 7, 0), Edit.set(1, 9, 2.0)]
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 3}
    with torch.inference_mode():
        plain = language_model.generate(IDS[:, :5], **options)
        with steer(language_model, levels, edits):
            cached = language_model.generate(IDS[:, :5], use_cache=True, **options)
            full = language_model.generate(IDS[:, :5], use_cache=False, **options)
        again = language_model.generate(IDS[:, :5], **options)
    assert torch.equal(cached, full)
    assert not torch.equal(cached, plain)
    assert torch.equal(again, plain)


def test_hooks_go_when_the_block_ends_or_raises(language_model, levels):
    with pytest.raises(KeyError), steer(language_model, levels, [Edit(1, 0, 0)]):  # noqa: PT012
        assert hooks(language_model)
        raise KeyError("the body fails")
    assert hooks(language_model) == 0
    narrow = ConceptLevel(1, "a", "layers.0.output", random_dictionary(16))
    with (
        pytest.raises(ValueError, match="width 32"),
        steer(language_model, narrow, [Edit(1, 0, 0)]),
    ):
        run(language_model)
    assert hooks(language_model) == 0
    with steer(language_model, levels, [Edit(1, 0, 0)]):
        pass


def test_nested_and_concurrent_use_is_refused(language_model, levels):
    edits = [Edit(1, 0, 0)]
    refused = []

    def other():
        try:
            with steer(language_model, levels, edits):
                pass
        except AlreadySteered as error:
            refused.append(str(error))

    with steer(language_model, levels, edits) as steering:
        with (
            pytest.raises(AlreadySteered, match="being steered"),
            steer(language_model, levels, edits),
        ):
            pass
        with pytest.raises(AlreadySteered), steering:
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert hooks(language_model)
    assert len(refused) == 1
    assert hooks(language_model) == 0
    with steering:
        pass


def test_a_trace_is_read_after_the_edits_and_serves_as_donor(language_model, levels):
    concept, values = active(levels, language_model)
    with trace(language_model, levels, {1: [concept]}) as donor:
        run(language_model)
    torch.testing.assert_close(donor.codes(1, concept)[0], values)
    other = IDS.flip(1)
    before = hidden(language_model, "model.layers.0", other)[0]
    codes = levels[0].dictionary.encode(before)
    with steer(language_model, levels, [Edit.swap(1, concept, donor)]):
        after = hidden(language_model, "model.layers.0", other)[0]
    moved = (values - codes[:, concept])[:, None] * levels[0].dictionary.directions[concept]
    torch.testing.assert_close(after, before + moved, rtol=1e-4, atol=1e-4)
    strong = [Edit.set(1, concept, 50.0)]
    chosen = {"layer-00": [concept]}
    with steer(language_model, levels, strong), trace(language_model, levels, chosen) as seen:
        run(language_model)
    assert float(seen.codes(1, concept).min()) > 10


def test_a_trace_follows_a_cache(language_model, levels):
    with trace(language_model, levels, {1: [3, 9]}) as seen, torch.inference_mode():
        text = language_model.generate(
            IDS[:, :5], max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=3
        )
    with trace(language_model, levels, {1: [3, 9]}) as whole:
        run(language_model, text[:, :-1])
    torch.testing.assert_close(seen.codes(1, 9), whole.codes(1, 9), rtol=1e-4, atol=1e-4)


def test_the_distance_from_the_data_is_reported(language_model, levels):
    concept, values = active(levels, language_model)
    sizes = []
    for scale in (0.0, 10.0, 100.0):
        with steer(language_model, levels, [Edit(1, concept, scale)], residual=True) as steering:
            run(language_model)
        sizes.append(steering.distance["layer-00"])
    assert all(size.touched == int((values > 0).sum()) for size in sizes)
    assert sizes[0].shift < sizes[1].shift < sizes[2].shift <= sizes[2].largest_shift
    assert sizes[2].norm_ratio > 1
    assert sizes[0].beyond == 0
    assert sizes[2].beyond > 0
    assert 0 < sizes[0].unexplained_before < 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"level": 3, "concept": 0}, "level 3 is not in the artifact"),
        ({"level": 1, "concept": 48}, "concepts are 0 to 47"),
        ({"level": 1, "concept": "2:4"}, "not of level 1"),
        ({"level": 1, "concept": "four"}, "no index and no id"),
        ({"level": 1, "concept": 0, "scale": float("nan")}, "not finite"),
        ({"level": 1, "concept": 0, "scale": 2, "value": 1}, "more than one source"),
        ({"level": 1, "concept": 0, "mask": [[1.0]], "scale": 0}, "of diffusion models"),
        ({"level": 2, "concept": 0, "value": 1.0, "clamp": True}, "no observed range"),
        ({"level": 1, "concept": 0, "positions": [-1], "scale": 0}, "none below 0"),
    ],
)
def test_bad_edits_are_refused_at_the_door(language_model, levels, edit, message):
    with pytest.raises(ValueError, match=message):
        steer(language_model, levels, [Edit(**edit)])
    assert hooks(language_model) == 0


def test_bad_models_and_places_are_refused(language_model):
    with pytest.raises(ValueError, match="causal language model"):
        steer(torch.nn.Linear(2, 2), [], [])
    level = ConceptLevel(1, "a", "layers.9.output", random_dictionary(32))
    with pytest.raises(ValueError, match=r"layers\.9\.output"):
        steer(language_model, level, [Edit(1, 0, 0)])
