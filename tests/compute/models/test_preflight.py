"""What a run needs is proved on the very model, and what does not hold is refused."""

import importlib.metadata

import pytest
import torch

from compute.models.language import LanguageModel
from compute.models.preflight import check_versions, preflight
from compute.models.readings import refuse_apart, tolerance
from tests.compute.models.test_language import TEXTS

NAMES = [
    "shapes",
    "finite",
    "padded = unpadded",
    "packed = unpacked",
    "hooked = unhooked",
    "input + attn + mlp = output",
    "batch = single",
]


def loaded(folder, levels=("layers.0.mlp", "layers.1.output"), **options):
    options = {"dtype": "float32", "device": "cpu", "context_length": 20, "batch_size": 4} | options
    adapter = LanguageModel.load(folder, levels=levels, **options)
    return adapter, adapter.contexts(adapter.tokenize(TEXTS))


def refused(adapter, items, message):
    with pytest.raises(ValueError, match=message):
        preflight("language", adapter, items)


@pytest.mark.parametrize(("family", "packs"), [("llama", True), ("falcon", True), ("bloom", False)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_good_capture_is_proved(save_language_model, family, packs, dtype):
    adapter, items = loaded(save_language_model(family), dtype=dtype)
    found = preflight("language", adapter, items)
    assert [proof.name for proof in found.proofs] == NAMES
    assert [p.name for p in found.proofs if not p.holds] == ([] if packs else ["packed = unpacked"])
    assert found.proofs[-2].told == "in layers.0"
    rows = adapter.extract(items)
    assert found.rows == len(rows)
    assert found.largest == {
        name: float(values.abs().max()) for name, values in rows.activations.items()
    }
    assert (found.dtype, found.device) == (dtype, "cpu")
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_a_model_that_sees_what_follows_is_refused(save_language_model):
    adapter, items = loaded(save_language_model("bert"), ["bert.encoder.layer.0.output"])
    refused(adapter, items, r"bert models see what stands behind a token, padding too")


def test_a_model_whose_rows_depend_on_their_batch_is_refused(save_language_model):
    adapter, items = loaded(save_language_model("llama"))
    layer = adapter.model.model.layers[0].mlp
    layer.register_forward_hook(lambda module, args, output: output + output.mean(0))
    refused(adapter, items, r"read in one batch are not what each is alone: rows of level 'layer")


def test_a_model_that_says_something_else_where_it_is_read_is_refused(save_language_model):
    adapter, items = loaded(save_language_model("llama"))
    layer = adapter.model.model.layers[1]
    plain = layer.forward
    layer.forward = lambda *args, **kwargs: (
        plain(*args, **kwargs) * (2 if layer._forward_hooks else 1)
    )
    refused(adapter, items, r"says something else where it is read \(logits")


def test_values_that_are_not_finite_are_refused(save_language_model):
    adapter, items = loaded(save_language_model("llama"))
    with torch.no_grad():
        adapter.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    refused(adapter, items, r"level 'layer-01' has values that are not finite")


def test_parts_that_do_not_add_up_are_refused(save_language_model):
    adapter, items = loaded(save_language_model("llama"))
    layer = adapter.model.model.layers[0]
    plain = layer.forward
    # As where a family multiplies what a layer gives, once its parts are added.
    layer.forward = lambda *args, **kwargs: 2 * plain(*args, **kwargs)
    refused(adapter, items, r"'layers.0.mlp' is not what 'llama' adds")


@pytest.mark.parametrize("bad", ["4.57.1", "99.0"])
def test_a_library_of_a_bad_version_is_refused(monkeypatch, bad):
    here = importlib.metadata.version

    def version(name):
        return bad if name == "transformers" else here(name)

    assert check_versions()["torch"] == here("torch")
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda _: ['transformers<6,>=5.20; extra == "pipeline"']
    )
    with pytest.raises(ValueError, match=rf"transformers {bad} is installed, .* install such"):
        check_versions()


def test_rows_are_held_together_by_their_own_norms():
    """A huge row beside small ones hides no error, and an empty one makes none."""
    rows = torch.tensor([[3000.0, 0.0], [3.0, 4.0], [0.0, 5.0], [1e-9, 0.0]])
    other = rows.clone()
    other[3, 0] = 2e-9
    assert refuse_apart({"a": other}, {"a": rows}) < 1e-6
    other[1, 0] = 3.5
    with pytest.raises(ValueError, match=r"rows of level 'a' differ by 10\.0% of their norm"):
        refuse_apart({"a": other}, {"a": rows})
    other[1] = torch.nan
    with pytest.raises(ValueError, match="level 'a' differ"):
        refuse_apart({"a": other}, {"a": rows})
    assert refuse_apart({"a": rows[:0]}, {"a": rows[:0]}) == 0
    assert tolerance(torch.float32) < tolerance(torch.bfloat16) < 0.2
