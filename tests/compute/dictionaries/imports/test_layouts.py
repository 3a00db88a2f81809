"""Dictionaries of other tools: the same codes and reconstructions as their own, or a refusal."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compute.dictionaries.imports import import_dictionary

D, N, K = 12, 40, 5


@pytest.fixture
def rows():
    return torch.from_numpy(np.random.default_rng(1).normal(size=(64, D)).astype(np.float32) * 2)


def tensors(architecture, seed=0, unit=False):
    """Tensors under SAELens' names, far from any that would hide a mistake."""
    rng = np.random.default_rng(seed)
    w_dec = rng.normal(size=(N, D))
    if unit:
        w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    found = {"W_enc": rng.normal(size=(D, N)) / 2, "W_dec": w_dec, "b_dec": rng.normal(size=D)}
    names = {
        "gated": ("b_gate", "b_mag", "r_mag"),
        "jumprelu": ("b_enc", "threshold"),
    }.get(architecture, ("b_enc",))
    for name in names:
        found[name] = rng.normal(size=N) * 0.3
    if "threshold" in found:
        found["threshold"] = np.abs(found["threshold"]) + 0.5
    return {
        name: torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32))
        for name, a in found.items()
    }


def put(folder, weights, config, file="sae_weights.safetensors", config_file="cfg.json"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in weights.items()}, folder / file)
    (folder / config_file).write_text(json.dumps(config))
    return str(folder)


def check(dictionary, rows, codes, decoded, w_dec):
    """The codes are theirs times the length of decoder rows, and the reconstructions theirs."""
    own = dictionary.encode(rows)
    torch.testing.assert_close(own, codes * w_dec.norm(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dictionary.decode(own), decoded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dictionary.directions.norm(dim=1), torch.ones(N))
    assert (own > 0).any()
    assert (own == 0).any()


def config_6(architecture, **more):
    about = {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.3.hook_z"}
    return {
        "architecture": architecture,
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": about,
    } | more


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("standard", {}),
        ("jumprelu", {}),
        ("gated", {}),
        ("topk", {"k": K}),
        ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ],
)
def test_saelens_dictionaries_are_what_saelens_loads(tmp_path, rows, architecture, more, subtract):
    from sae_lens import SAE

    by_norm = bool(more.get("rescale_acts_by_decoder_norm"))
    weights = tensors(architecture, unit=architecture == "topk" and not by_norm)
    config = config_6(architecture, apply_b_dec_to_input=subtract, **more)
    imported = import_dictionary(put(tmp_path / "sae", weights, config))
    theirs = SAE.load_from_disk(str(tmp_path / "sae"))
    with torch.no_grad():
        codes = theirs.encode(rows)
        scale = weights["W_dec"] if not by_norm else torch.eye(N)
        check(imported.dictionary, rows, codes, theirs.decode(codes), scale)
    assert imported.claims.model == "gpt2"
    assert imported.claims.hook == "blocks.3.hook_z"
    assert imported.k_is_known == (architecture == "topk")


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_old_configs_are_read_as_saelens_reads_them(tmp_path, rows, architecture):
    from sae_lens import SAE

    weights = tensors(architecture, unit=True)
    config = {
        "architecture": "standard",
        "activation_fn_str": "topk" if architecture == "topk" else "relu",
        "activation_fn_kwargs": {"k": K} if architecture == "topk" else {},
        "d_in": D,
        "d_sae": N,
        "dtype": "torch.float32",
        "hook_point": "blocks.2.hook_resid_post",
        "hook_layer": 2,
        "model_name": "gpt2-small",
        "normalize_activations": False,
    }
    put(tmp_path / "sae", weights | {"scaling_factor": torch.ones(N)}, config)
    imported = import_dictionary(str(tmp_path / "sae"))
    # Its own loader of the disk wants the dtype's short name and no spare tensor.
    put(tmp_path / "theirs", weights, config | {"dtype": "float32"})
    theirs = SAE.load_from_disk(str(tmp_path / "theirs"))
    with torch.no_grad():
        codes = theirs.encode(rows)
        check(imported.dictionary, rows, codes, theirs.decode(codes), weights["W_dec"])
    assert imported.dictionary.architecture == ("topk" if architecture == "topk" else "jumprelu")
    assert imported.claims.hook == "blocks.2.hook_resid_post"
    if architecture == "topk":
        assert imported.dictionary.k == K
        assert ((imported.dictionary.encode(rows) > 0).sum(-1) <= K).all()


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_unfinished_batchtopk_is_what_saelens_makes_of_it(tmp_path, rows, architecture, by_norm):
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class

    training_class, config_class = get_sae_training_class(architecture)
    more = {"matryoshka_widths": [10, N]} if architecture.startswith("m") else {}
    theirs = training_class(
        config_class(d_in=D, d_sae=N, k=K, rescale_acts_by_decoder_norm=by_norm, **more)
    )
    weights = tensors("standard") | {"topk_threshold": torch.tensor(1.5, dtype=torch.float64)}
    theirs.load_state_dict(weights)
    theirs.save_model(tmp_path / "training")
    theirs.save_inference_model(tmp_path / "inference")
    unfinished = import_dictionary(str(tmp_path / "training"))
    finished = import_dictionary(str(tmp_path / "inference"))
    inference = SAE.load_from_disk(str(tmp_path / "inference"))
    with torch.no_grad():
        codes = inference.encode(rows)
        for own in (unfinished, finished):
            check(own.dictionary, rows, codes, inference.decode(codes), inference.W_dec)
    assert unfinished.dictionary.k == K
    assert unfinished.k_is_known
    assert not finished.k_is_known


def test_a_known_scale_of_activations_is_folded_as_saelens_folds_it(tmp_path, rows):
    from sae_lens import SAE

    weights, scale = tensors("standard"), 0.3
    config = config_6("standard", normalize_activations="expected_average_only_in")
    put(tmp_path / "theirs", weights, config)
    theirs = SAE.load_from_disk(str(tmp_path / "theirs"))
    theirs.fold_activation_norm_scaling_factor(scale)
    imported = import_dictionary(
        put(tmp_path / "ours", weights, config | {"norm_scaling_factor": scale})
    )
    with torch.no_grad():
        codes = theirs.encode(rows)
        check(imported.dictionary, rows, codes, theirs.decode(codes), theirs.W_dec)


def test_a_finetuned_scale_of_codes_is_folded(tmp_path, rows):
    weights, factors = tensors("standard"), torch.linspace(0.5, 2, N)
    config = config_6("standard", finetuning_scaling_factor=True)
    put(tmp_path / "sae", weights | {"scaling_factor": factors}, config)
    codes = ((rows - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
    w_dec = weights["W_dec"] * factors[:, None]
    imported = import_dictionary(str(tmp_path / "sae"))
    check(imported.dictionary, rows, codes, codes @ w_dec + weights["b_dec"], w_dec)


def test_a_concept_without_a_direction_is_never_active(tmp_path, rows):
    weights = tensors("standard")
    weights["W_dec"][3] = 0
    imported = import_dictionary(put(tmp_path / "sae", weights, config_6("standard")))
    assert (imported.dictionary.encode(rows)[:, 3] == 0).all()
    codes = ((rows - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
    assert (codes[:, 3] > 0).any()
    decoded = codes @ weights["W_dec"] + weights["b_dec"]
    torch.testing.assert_close(imported.dictionary(rows), decoded, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_read(tmp_path, rows, dtype):
    weights = {name: t.to(dtype) for name, t in tensors("topk", unit=True).items()}
    own = import_dictionary(put(tmp_path / "sae", weights, config_6("topk", k=K))).dictionary
    w = {name: t.float() for name, t in weights.items()}
    top = ((rows - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu().topk(K)
    codes = torch.zeros(len(rows), N).scatter_(-1, top.indices, top.values)
    torch.testing.assert_close(own(rows), codes @ w["W_dec"] + w["b_dec"], rtol=0.05, atol=0.05)


def gemma_codes(w, rows):
    pre = rows @ w["W_enc"] + w["b_enc"]
    return (pre > w["threshold"]) * pre.relu()


def test_gemma_scope(tmp_path, rows):
    """The formula of its tutorial: the encoder sees activations as they are."""
    weights = tensors("jumprelu")
    folder = tmp_path / "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: t.numpy() for name, t in weights.items()})
    codes = gemma_codes(weights, rows)
    for source in (folder, folder / "params.npz"):
        imported = import_dictionary(str(source))
        decoded = codes @ weights["W_dec"] + weights["b_dec"]
        check(imported.dictionary, rows, codes, decoded, weights["W_dec"])
        assert imported.claims.model == "gemma-2-2b"
        assert imported.claims.hook == "blocks.12.hook_resid_post"
        assert imported.likely_k == N  # 82 are claimed, and there are no more than 40


def test_gemma_scope_2(tmp_path, rows):
    weights = tensors("jumprelu")
    theirs = {re.sub("^W_", "w_", name): t for name, t in weights.items()}
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-270m-pt",
        "hf_hook_point_in": "model.layers.5.output",
    }
    source = put(tmp_path / "sae", theirs, config, "params.safetensors", "config.json")
    imported, codes = import_dictionary(source), gemma_codes(weights, rows)
    decoded = codes @ weights["W_dec"] + weights["b_dec"]
    check(imported.dictionary, rows, codes, decoded, weights["W_dec"])
    assert imported.claims.model == "gemma-3-270m-pt"
    assert imported.claims.hook == "model.layers.5.output"


def test_sparsify(tmp_path, rows):
    """``SparseCoder.encode`` and ``decode`` of eai-sparsify 1.3.3, written out."""
    weights = tensors("topk", unit=True)
    theirs = {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": weights["b_enc"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    config = {"d_in": D, "k": K, "num_latents": N, "normalize_decoder": True, "activation": "topk"}
    source = put(tmp_path / "layers.3.mlp", theirs, config, "sae.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m"}))
    pre = torch.nn.functional.linear(
        rows - theirs["b_dec"], theirs["encoder.weight"], theirs["encoder.bias"]
    ).relu()
    top = pre.topk(K)
    codes = torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
    imported = import_dictionary(source)
    decoded = codes @ theirs["W_dec"] + theirs["b_dec"]
    check(imported.dictionary, rows, codes, decoded, weights["W_dec"])
    assert imported.claims.told() == {
        "layout": "sparsify",
        "model": "EleutherAI/pythia-70m",
        "hook": "layers.3.mlp",
    }


def learned_elsewhere(name, w):
    """State of a class of dictionary_learning 0.1, and its codes as its ``encode`` has them."""
    linear = {"encoder.weight": w["W_enc"].T, "decoder.weight": w["W_dec"].T}
    full = {"W_enc": w["W_enc"], "W_dec": w["W_dec"], "b_enc": w.get("b_enc"), "b_dec": w["b_dec"]}
    threshold = torch.tensor(0.7)
    if name == "AutoEncoder":
        state = linear | {"encoder.bias": w["b_enc"], "bias": w["b_dec"]}
        return state, lambda x: ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    if name == "AutoEncoderNew":
        state = linear | {"encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]}
        return state, lambda x: (x @ w["W_enc"] + w["b_enc"]).relu()
    if name == "JumpReluAutoEncoder":
        return full | {"threshold": w["threshold"]}, lambda x: gemma_codes(w, x)
    if name == "GatedAutoEncoder":
        state = linear | {"decoder_bias": w["b_dec"], "r_mag": w["r_mag"]}
        state |= {"gate_bias": w["b_gate"], "mag_bias": w["b_mag"]}

        def gated(x):
            seen = (x - w["b_dec"]) @ w["W_enc"]
            return (seen + w["b_gate"] > 0) * (w["r_mag"].exp() * seen + w["b_mag"]).relu()

        return state, gated
    few = {"k": torch.tensor(K), "threshold": threshold}
    state = linear | {"encoder.bias": w["b_enc"], "b_dec": w["b_dec"]} | few
    if name == "MatryoshkaBatchTopKSAE":
        state = full | few | {"group_sizes": torch.tensor([10, 30])}

    def chosen(x):
        codes = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        if name == "AutoEncoderTopK":
            top = codes.topk(K)
            return torch.zeros_like(codes).scatter_(-1, top.indices, top.values)
        return codes * (codes > threshold)

    return state, chosen


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("AutoEncoder", "standard"),
        ("AutoEncoderNew", "standard"),
        ("AutoEncoderTopK", "topk"),
        ("BatchTopKSAE", "standard"),
        ("MatryoshkaBatchTopKSAE", "standard"),
        ("JumpReluAutoEncoder", "jumprelu"),
        ("GatedAutoEncoder", "gated"),
    ],
)
def test_dictionary_learning(tmp_path, rows, name, architecture):
    weights = tensors(architecture, unit=name == "AutoEncoderTopK")
    state, encode = learned_elsewhere(name, weights)
    torch.save(state, tmp_path / "ae.pt")
    trainer = {"dict_class": name, "layer": 8, "lm_name": "EleutherAI/pythia-160m"}
    trainer |= {"submodule_name": "resid_post_layer_8"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    (tmp_path / "eval_results.json").write_text('{"frac_variance_explained": 0.8, "l0": 21.5}')
    imported, codes = import_dictionary(str(tmp_path)), encode(rows)
    decoded = codes @ weights["W_dec"] + weights["b_dec"]
    check(imported.dictionary, rows, codes, decoded, weights["W_dec"])
    assert imported.claims.hook == "resid_post_layer_8"
    assert imported.claims.explained_variance == 0.8
    assert imported.likely_k == (K if imported.k_is_known else 22)
    assert imported.k_is_known == ("TopK" in name)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_no_object_is_ever_unpickled(tmp_path, write):
    write({"encoder.weight": Trap(tmp_path / "mark")}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    with pytest.raises(ValueError, match="holds more than tensors"):
        import_dictionary(str(tmp_path))
    assert not (tmp_path / "mark").exists()


def test_no_object_hides_in_arrays(tmp_path):
    arrays = {"W_enc": np.array([Trap(tmp_path / "mark")], dtype=object)}
    np.savez(tmp_path / "params.npz", **arrays)
    with pytest.raises(ValueError, match=r"params\.npz is not a readable file of arrays"):
        import_dictionary(str(tmp_path))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"architecture": "jumprelu_transcoder"}, "reads one place and writes another"),
        ({"architecture": "skip_transcoder"}, "reads one place and writes another"),
        ({"architecture": "abstopk", "k": K}, "codes of another kind"),
        ({"architecture": "temporal"}, "codes of another kind"),
        ({"architecture": "matching_pursuit"}, "codes of another kind"),
        ({"architecture": "topk"}, "gives no k"),
        ({"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu'"),
        ({"normalize_activations": "layer_norm"}, "normalises each row by itself"),
        ({"normalize_activations": "constant_norm_rescale"}, "normalises each row by itself"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"normalize_activations": True}, "norm_scaling_factor"),
        ({"normalize_activations": "expected_average_only_in"}, "norm_scaling_factor"),
        ({"d_in": 99}, "mixes two dictionaries"),
        ({"architecture": "gated"}, "has the tensors"),
        ({"architecture": "topk", "k": K}, "norms from"),
    ],
)
def test_what_cannot_be_had_of_saelens_is_refused(tmp_path, more, told):
    source = put(tmp_path / "sae", tensors("standard"), config_6("standard") | more)
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        import_dictionary(source)
    assert source in str(refused.value)


@pytest.mark.parametrize(
    "more",
    [{"transcode": True}, {"skip_connection": True}, {"activation": "groupmax"}, {"k": None}],
)
def test_what_cannot_be_had_of_sparsify_is_refused(tmp_path, more):
    weights = tensors("topk", unit=True)
    config = {"d_in": D, "k": K} | more
    with pytest.raises(ValueError, match=next(iter(more)).split("_")[0]):
        import_dictionary(put(tmp_path / "layers.3", weights, config, "sae.safetensors"))


def test_transcoders_of_gemma_scope_are_refused(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_9"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{n: t.numpy() for n, t in tensors("jumprelu").items()})
    with pytest.raises(ValueError, match="it is a transcoder"):
        import_dictionary(str(folder))


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (N, D, 1)])
def test_tensors_that_do_not_fit_together_are_refused(tmp_path, architecture, shape):
    whole = tensors(architecture, unit=True)
    for name in whole:
        config = config_6(architecture, k=K)
        source = put(tmp_path / name, whole | {name: torch.ones(shape)}, config)
        with pytest.raises(ValueError, match=r"cannot be taken: .*shape"):
            import_dictionary(source)


ODD = "architecture d_in k activation_fn activation_fn_kwargs metadata normalize_activations"
ODD += " reshape_activations model_name hook_name timestep"


@pytest.mark.parametrize("value", [None, 7, [], {}, "x", True])
@pytest.mark.parametrize("name", ODD.split())
def test_odd_configs_are_taken_or_refused_and_never_crash(tmp_path, name, value):
    config = config_6("topk", k=K) | {name: value}
    source = put(tmp_path, tensors("topk", unit=True), config)
    try:
        told = import_dictionary(source).claims.told()
    except ValueError as error:
        told = {"refused": str(error).partition(f"the dictionary {source!r} cannot be taken: ")[2]}
    assert told
    assert all(isinstance(value, str | int | float) and value != "" for value in told.values())


def test_the_layer_of_an_old_place_is_filled_in(tmp_path):
    config = {"d_in": D, "hook_point": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 4}
    imported = import_dictionary(put(tmp_path, tensors("standard"), config))
    assert imported.claims.hook == "blocks.4.hook_resid_pre"


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", None])
def test_damaged_files_are_refused_in_a_sentence(tmp_path, file, data):
    source = put(tmp_path / "sae", tensors("standard"), config_6("standard"))
    path = tmp_path / "sae" / file
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot be taken|holds no dictionary"):
        import_dictionary(source)


def test_each_level_has_its_own_folder_below_the_source(tmp_path):
    for number, level in enumerate(("low", "high")):
        put(tmp_path / level, tensors("standard", seed=number), config_6("standard"))
    low, high = (import_dictionary(str(tmp_path), level) for level in ("low", "high"))
    assert not torch.equal(low.dictionary.directions, high.dictionary.directions)
    with pytest.raises(ValueError, match="holds no dictionary, neither in it nor in 'middle'"):
        import_dictionary(str(tmp_path), "middle")


def test_two_dictionaries_in_one_folder_are_told_apart_by_their_files(tmp_path):
    put(tmp_path / "sae", tensors("standard"), config_6("standard"))
    put(tmp_path / "sae", tensors("standard"), config_6("standard"), "sae.safetensors")
    with pytest.raises(ValueError, match="name the file that is meant"):
        import_dictionary(str(tmp_path / "sae"))
    import_dictionary(str(tmp_path / "sae/sae_weights.safetensors"))


@pytest.mark.parametrize("source", ["./nowhere", "nowhere", "/no/where", "a//b"])
def test_a_place_that_is_not_there_is_said_with_where_it_was_looked_for(source):
    with pytest.raises(ValueError, match=r"is no folder or file at /"):
        import_dictionary(source)


def test_the_hub_is_asked_once_for_the_files_of_one_dictionary(tmp_path, monkeypatch):
    put(tmp_path / "layer_3/low", tensors("standard"), config_6("standard"))
    asked = []

    def download(repository, *, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert import_dictionary("somebody/saes/layer_3", "low").dictionary.d == D
    ((repository, wanted),) = asked
    assert repository == "somebody/saes"
    assert "layer_3/low/sae_weights.safetensors" in wanted
    assert "layer_3/params.npz" in wanted


def test_without_a_network_one_sentence_tells_it():
    with pytest.raises(ValueError, match="could not be fetched from the Hugging Face Hub"):
        import_dictionary("somebody/no-such-saes/layer_3")
