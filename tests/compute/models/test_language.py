from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from compute.models.adapter import ModelLevel
from compute.models.conformance import check_adapter
from compute.models.hooks import Hookpoint, Recorder
from compute.models.language import Context, LanguageModel, contexts
from compute.models.weight_files import weights_hash

TEXTS = [
    "the cat sat on the mat and then it ran",
    "a big red dog",
    "the dog ran in the house and the small cat sat on a blue mat and it was big",
]
FAMILIES = (
    "gpt2", "llama", "gemma2", "gemma3_text", "qwen2", "qwen3", "mistral", "gpt_neox", "opt",
    "olmo2", "granite", "falcon", "bloom", "mpt",
)  # fmt: skip
# A bias over distances in place of positions; no mask keeps packed documents apart there.
UNPACKED = ("bloom", "mpt")
LEVELS = ("layers.0.output", "layers.1.attn", "layers.1.mlp", "layers.1.output")


def load(folder, levels=LEVELS, **options):
    options = {"dtype": "float32", "device": "cpu", "context_length": 12, "batch_size": 2} | options
    return LanguageModel.load(folder, levels=levels, **options)


def hidden_states(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(torch.as_tensor(ids)[None], output_hidden_states=True).hidden_states


@pytest.mark.parametrize("family", FAMILIES)
class TestLanguageFamilies:
    def test_keeps_the_contract(self, save_language_model, family):
        adapter = load(save_language_model(family))
        check_adapter(adapter, adapter.contexts(adapter.tokenize(TEXTS)))

    def test_reads_the_residual_stream(self, save_language_model, family):
        folder = save_language_model(family)
        adapter = load(folder, context_length=32)
        tokens = adapter.tokenize(TEXTS)
        rows = adapter.extract(adapter.contexts(tokens))
        for document, ids in enumerate(tokens):
            mine = rows.sample == document
            for layer in (0, 1):
                expected = hidden_states(folder, ids)[layer + 1][0]
                found = rows.activations[f"layer-{layer:02d}"][mine]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert rows.position[mine].tolist() == list(range(len(ids)))
            assert rows.observed[mine].tolist() == ids.tolist()

    def test_parts_of_a_layer_add_up(self, save_language_model, family):
        """Residual families write attention and feed-forward parts into one stream."""
        names = ("layers.1.input", "layers.1.attn", "layers.1.mlp", "layers.1.output")
        adapter = load(save_language_model(family), names)
        rows = adapter.extract(adapter.contexts(adapter.tokenize(TEXTS))).activations
        before, attn, mlp, after = rows.values()
        assert (after - before).abs().max() > 0.01
        torch.testing.assert_close(before + attn + mlp, after, rtol=1e-4, atol=1e-4)

    def test_packed_documents_do_not_see_one_another(self, save_language_model, family):
        adapter = load(save_language_model(family), context_length=48)
        tokens = adapter.tokenize(TEXTS)
        packed, apart = adapter.contexts(tokens, pack=True), adapter.contexts(tokens)
        if family in UNPACKED:
            with pytest.raises(ValueError, match=f"{family} models do not keep packed documents"):
                adapter.extract(packed)
            return
        assert len(packed) == 1
        assert len(apart) == 3
        together, alone = adapter.extract(packed), adapter.extract(apart)
        assert np.array_equal(together.sample, alone.sample)
        assert np.array_equal(together.position, alone.position)
        assert np.array_equal(together.observed, alone.observed)
        for name, expected in alone.activations.items():
            torch.testing.assert_close(
                together.activations[name], expected, rtol=1e-3, atol=1e-4 * expected.abs().max()
            )

    def test_a_beginning_token_is_seen_and_dropped(self, save_language_model, family):
        folder = save_language_model(family)
        adapter = load(folder, context_length=48, bos=True)
        tokens = adapter.tokenize(TEXTS)
        rows = adapter.extract(adapter.contexts(tokens))
        assert len(rows) == sum(map(len, tokens))
        expected = hidden_states(folder, [1, *tokens[1]])[2][0, 1:]
        found = rows.activations["layer-01"][rows.sample == 1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if family in UNPACKED:
            return
        packed = adapter.extract(adapter.contexts(tokens, pack=True))
        for name, tensor in rows.activations.items():
            torch.testing.assert_close(
                packed.activations[name], tensor, rtol=1e-3, atol=1e-4 * tensor.abs().max()
            )


class TestMeaning:
    """What a level holds is what was there, and what its name says."""

    def test_a_value_is_what_it_was_when_the_model_passed_it(self, save_language_model):
        """Falcon adds the attention's output into the feed-forward part's, in place."""
        folder = save_language_model("falcon")
        alone = load(folder, ["layers.0.mlp"])
        beside = load(folder, ["layers.0.mlp", "layers.0.output"])
        items = alone.contexts(alone.tokenize(TEXTS))
        expected = alone.extract(items).activations["layers-0-mlp"]
        assert torch.equal(beside.extract(items).activations["layers-0-mlp"], expected)

    def test_an_update_is_taken_from_what_came_in(self):
        """A module may write into its own input."""
        module = torch.nn.Sequential(torch.nn.ReLU(inplace=True))
        with Recorder(module, [Hookpoint("x", "0", "update")], stop=False) as recorder:
            module(torch.tensor([[-2.0, 3.0]]))
            assert recorder.take()["x"].tolist() == [[2.0, 0.0]]

    def test_parts_that_do_not_add_up_are_refused(self, save_language_model, monkeypatch):
        monkeypatch.setattr("compute.models.hooks._POST_NORMS", ())
        with pytest.raises(ValueError, match=r"'layers.1.mlp' is not what 'gemma2' adds"):
            load(save_language_model("gemma2"), ["layers.1.mlp"])

    def test_the_input_of_a_part_that_is_read_behind_a_norm_is_refused(self, save_language_model):
        facts = LanguageModel.inspect(save_language_model("gemma2"))
        with pytest.raises(ValueError, match=r"'layers.1.mlp.input' is not defined"):
            facts.check(["layers.1.mlp.input"])
        assert facts.check(["model.layers.1.mlp.input"])

    @pytest.mark.parametrize(
        ("family", "place", "width"),
        [
            ("qwen3_moe", "model.layers.0.mlp.gate", 4),
            ("qwen3", "model.layers.0.self_attn.k_norm", 16),
        ],
    )
    def test_places_with_a_row_per_token_are_levels(
        self, save_language_model, family, place, width
    ):
        adapter = load(save_language_model(family), [place])
        assert list(adapter.widths.values()) == [width]
        assert adapter.facts.width(place) == width
        check_adapter(adapter, adapter.contexts(adapter.tokenize(TEXTS)))

    @pytest.mark.parametrize(
        ("family", "place"),
        [("gemma3n_text", "layers.0.output"), ("gpt2", "transformer.wpe")],
    )
    def test_places_without_are_refused(self, save_language_model, family, place):
        folder = save_language_model(family)
        with pytest.raises(ValueError, match=f"'{place}' gives .* not one row per token"):
            load(folder, [place])
        with pytest.raises(ValueError, match="not one row per token"):
            LanguageModel.inspect(folder).width(place)


class TestTokens:
    def test_a_pad_id_beyond_the_vocabulary_is_not_used(self, save_language_model, monkeypatch):
        adapter = load(save_language_model("llama"))
        monkeypatch.setattr(type(adapter.facts.tokenizer), "pad_token_id", 99, raising=False)
        check_adapter(adapter, adapter.contexts(adapter.tokenize(TEXTS)))

    def test_a_text_that_begins_with_its_beginning_is_given_no_other(self, save_language_model):
        folder = save_language_model("llama")
        marked = load(folder, bos=True).extract([Context(0, 0, (5, 6, 7))])
        own = load(folder, bos=True).extract([Context(0, 0, (1, 5, 6, 7))])
        assert own.position.tolist() == [1, 2, 3]
        assert own.observed.tolist() == marked.observed.tolist()
        for name, rows in marked.activations.items():
            assert torch.equal(own.activations[name], rows)

    def test_a_special_token_is_context_of_those_behind_it(self, save_language_model):
        folder = save_language_model("llama")
        ids = [4, 2, 5, 1, 6]
        rows = load(folder).extract([Context(0, 0, tuple(ids))])
        expected = hidden_states(folder, ids)[2][0, [0, 2, 4]]
        torch.testing.assert_close(rows.activations["layer-01"], expected, rtol=1e-4, atol=1e-5)

    def test_a_token_beyond_the_vocabulary_is_refused(self, save_language_model):
        adapter = load(save_language_model("llama"))
        adapter.facts.tokenizer.add_tokens([f"new{i}" for i in range(20)])
        tokens = adapter.tokenize(["the cat new19"])
        with pytest.raises(ValueError, match=r"token 41 \('new19'\) .* beyond the 32"):
            adapter.extract(adapter.contexts(tokens))

    def test_a_full_context_leaves_no_room_for_a_beginning(self, save_language_model, monkeypatch):
        folder = save_language_model("gpt2")
        full = load(folder, context_length=64, bos=False)
        assert len(full.extract([Context(0, 0, (5,) * 64)])) == 64
        assert len(load(folder, context_length=63, bos=True).extract([Context(0, 0, (5,) * 63)]))
        monkeypatch.setattr("compute.models.language.load_weights", None)
        with pytest.raises(ValueError, match="holds 64 tokens: choose one less"):
            load(folder, context_length=64, bos=True)


class TestLevels:
    @pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
    def test_places_come_in_the_order_in_which_the_model_passes_them(
        self, save_language_model, family
    ):
        """Also where a family cannot run without weights, as where values choose experts."""
        places = ["layers.0.output", "layers.1.mlp", "layers.2.output"]
        facts = LanguageModel.inspect(save_language_model(family))
        assert list(facts.widths(places[::-1])) == places

    def test_the_forward_ends_after_the_last_level(self, save_language_model):
        adapter = load(save_language_model("llama"), ["layers.0.output"])
        adapter.model.model.layers[1].forward = None  # calling it would raise
        assert len(adapter.extract(adapter.contexts(adapter.tokenize(TEXTS))))

    def test_patterns_and_module_paths(self, save_language_model):
        folder = save_language_model("llama")
        adapter = load(folder, ["layers.*.output"])
        assert [level.name for level in adapter.levels] == ["layer-00", "layer-01", "layer-02"]
        adapter = load(folder, ["model.layers.1.mlp.up_proj", ModelLevel("x", "layers.2.output")])
        assert adapter.widths == {"model-layers-1-mlp-up_proj": 48, "x": 32}
        assert adapter.facts.width("model.layers.1.mlp.up_proj") == 48
        assert adapter.facts.width("layers.2.output") == 32

    @pytest.mark.parametrize("name", ["layers.7.output", "layers.1.attention", "nothing.*"])
    def test_a_place_the_model_lacks_is_refused_before_loading(
        self, save_language_model, monkeypatch, name
    ):
        monkeypatch.setattr("compute.models.language.load_weights", None)
        with pytest.raises(ValueError, match=r"not in this model \(layers 0 to 2\); the nearest"):
            load(save_language_model("llama"), [name])

    def test_two_levels_of_one_name_are_refused(self, save_language_model):
        with pytest.raises(ValueError, match="used twice"):
            load(save_language_model("llama"), ["layers.1.output", "layers.[1-2].output"])


class TestContexts:
    def test_windows_follow_one_another(self):
        windows = contexts([np.arange(10), np.arange(3)], 4)
        assert [(w.document, w.start, len(w.tokens)) for w in windows] == [
            (0, 0, 4), (0, 4, 4), (0, 8, 2), (1, 0, 3),
        ]  # fmt: skip

    def test_packing_loses_nothing(self):
        documents = [np.arange(n) + 100 * i for i, n in enumerate([3, 9, 0, 1, 5])]
        windows = contexts(documents, 4, pack=True)
        assert [len(w.tokens) for w in windows] == [4, 4, 4, 4, 2]
        pieces = [
            (document, start + i, int(window.tokens[begin + i]))
            for window in windows
            for document, start, begin, end in window.segments()
            for i in range(end - begin)
        ]
        assert pieces == [
            (i, p, int(t)) for i, ids in enumerate(documents) for p, t in enumerate(ids)
        ]

    def test_special_tokens_yield_no_rows(self, save_language_model):
        adapter = load(save_language_model("llama"))
        item = Context(7, 20, (4, 1, 5, 2, 6))
        assert adapter.rows_of(item) == 3
        rows = adapter.extract([item])
        assert rows.sample.tolist() == [7, 7, 7]
        assert rows.position.tolist() == [20, 22, 24]
        assert rows.observed.tolist() == [4, 5, 6]

    @pytest.mark.parametrize("length", [0, 13])
    def test_a_window_of_the_wrong_length_is_refused(self, save_language_model, length):
        adapter = load(save_language_model("llama"))
        with pytest.raises(ValueError, match=f"holds {length} tokens; it must hold 1 to 12"):
            adapter.rows_of(Context(0, 0, tuple(range(length))))


class TestLoading:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_rows_keep_the_models_dtype(self, save_language_model, dtype):
        adapter = load(save_language_model("llama"), dtype=dtype)
        rows = adapter.extract(adapter.contexts(adapter.tokenize(TEXTS)))
        assert rows.activations["layer-01"].dtype == getattr(torch, dtype)

    def test_provenance(self, save_language_model):
        folder = save_language_model("llama")
        described = load(folder).describe()
        assert described["class"] == "LlamaForCausalLM"
        assert described["weights_sha256"] == weights_hash(folder)
        assert described["parameters"] == sum(
            p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dtype": "int8"}, "dtype 'int8' is unknown"),
            ({"device": "toaster"}, "device 'toaster' is unknown"),
            ({"context_length": 65}, "context_length is 65; .* holds 1 to 64"),
            ({"gguf_file": "x.gguf"}, "gguf_file 'x.gguf' is not in"),
        ],
    )
    def test_bad_options_are_refused(self, save_language_model, options, message):
        with pytest.raises(ValueError, match=message):
            load(save_language_model("llama"), **options)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("/no/such/folder", "is not a folder on this machine"),
            ("package:no_such_package", "names no installed package"),
            ("package:os.path", "names no installed package"),
        ],
    )
    def test_a_source_that_is_not_there_is_refused(self, source, message):
        with pytest.raises(ValueError, match=message):
            LanguageModel.inspect(source)

    def test_an_empty_folder_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"neither a config\.json nor one GGUF file"):
            LanguageModel.inspect(tmp_path)
        with pytest.raises(ValueError, match="no weight file"):
            weights_hash(tmp_path)
