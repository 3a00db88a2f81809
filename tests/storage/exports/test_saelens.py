"""The SAELens layout: round trips through our reader and through the real library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from storage.exports.saelens import (
    fold_decoder_norms,
    from_saelens,
    read_saelens_folder,
    to_saelens,
)

ARCHITECTURES = ("topk", "jumprelu", "gated", "standard", "transcoder")
D, N, D_OUT, K = 12, 40, 7, 5
METADATA = {
    "model_name": "toy",
    "hook_name": "blocks.3",
    "level": 2,
    "timestep": None,
    "widths": [8, 40],
    "nested": {"ünï": "code"},
}


def make_weights(architecture, seed=0, dtype=np.float32, unit=True):
    rng = np.random.default_rng(seed)
    d_out = D_OUT if architecture == "transcoder" else D
    w_dec = rng.normal(size=(N, d_out))
    if unit:
        w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    weights = {"W_enc": rng.normal(size=(D, N)), "W_dec": w_dec, "b_dec": rng.normal(size=d_out)}
    if architecture == "gated":
        for name in ("b_gate", "b_mag", "r_mag"):
            weights[name] = rng.normal(size=N) * 0.3
    else:
        weights["b_enc"] = rng.normal(size=N)
    if architecture == "jumprelu":
        weights["threshold"] = rng.uniform(0.1, 2, size=N)
    return {name: array.astype(dtype) for name, array in weights.items()}


def write(weights, architecture, folder, **options):
    k = K if architecture == "topk" else None
    files = to_saelens(weights, architecture=architecture, k=k, metadata=METADATA, **options)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


@pytest.fixture(scope="module")
def sae_class():
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_MODE", "disabled")
    patch.setenv("HF_HUB_OFFLINE", "1")
    from sae_lens import SAE

    yield SAE
    patch.undo()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_real_saelens_loads_what_we_write(architecture, sae_class, tmp_path):
    import torch

    weights = make_weights(architecture)
    frequency = np.linspace(0, 1, N)
    write(weights, architecture, tmp_path / "ours", frequency=frequency)
    ours = read_saelens_folder(tmp_path / "ours")
    sae = sae_class.load_from_disk(tmp_path / "ours")
    x = np.random.default_rng(1).normal(size=(64, D)).astype(np.float32)

    with torch.no_grad():
        theirs = sae.encode(torch.from_numpy(x))
        np.testing.assert_allclose(ours.encode(x), theirs.numpy(), atol=1e-5)
        np.testing.assert_allclose(
            ours.decode(ours.encode(x)), sae.decode(theirs).numpy(), atol=1e-5
        )
        np.testing.assert_allclose(sae.W_dec.norm(dim=-1).numpy(), 1, atol=1e-5)
    assert (ours.encode(x) > 0).any()
    assert sae.cfg.architecture() == architecture
    assert {key: sae.cfg.metadata[key] for key in METADATA} == METADATA

    sae.save_model(tmp_path / "theirs")
    back = read_saelens_folder(tmp_path / "theirs")
    assert back.architecture == architecture
    assert back.k == ours.k
    assert {key: back.metadata[key] for key in METADATA} == METADATA
    for name, array in weights.items():
        np.testing.assert_array_equal(back.weights[name], array)
    np.testing.assert_allclose(ours.log10_frequency[1:], np.log10(frequency[1:]), atol=1e-6)
    assert ours.log10_frequency[0] == -10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bytes_are_a_function_of_the_dictionary(architecture):
    weights = make_weights(architecture)
    k = K if architecture == "topk" else None
    first = to_saelens(weights, architecture=architecture, k=k, metadata=METADATA)
    shuffled = dict(sorted(weights.items(), reverse=True))
    fortran = {name: np.asfortranarray(array) for name, array in shuffled.items()}
    again = to_saelens(
        fortran, architecture=architecture, k=k, metadata=dict(sorted(METADATA.items()))
    )
    assert first == again


@pytest.mark.parametrize("architecture", ["jumprelu", "gated", "standard", "transcoder"])
def test_folding_norms_keeps_reconstructions(architecture):
    weights = make_weights(architecture, unit=False, dtype=np.float32)
    weights["W_dec"][3] = 0
    files = to_saelens(fold_decoder_norms(weights, architecture), architecture=architecture)
    folded = from_saelens(files)
    from storage.exports.saelens import SaeLensDictionary

    plain = SaeLensDictionary(architecture, weights)
    x = np.random.default_rng(2).normal(size=(50, D)).astype(np.float32)
    np.testing.assert_allclose(
        folded.decode(folded.encode(x)), plain.decode(plain.encode(x)), atol=2e-4
    )
    np.testing.assert_allclose(np.linalg.norm(folded.directions, axis=1), 1, atol=1e-5)


def test_folding_refuses_topk_of_unequal_norms():
    with pytest.raises(ValueError, match="topk"):
        fold_decoder_norms(make_weights("topk", unit=False), "topk")


def broken(change):
    weights = make_weights("topk")
    change(weights)
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("b_enc"), "lack"),
        (lambda w: w.update(extra=w["b_enc"]), "extra"),
        (lambda w: w.update(W_dec=w["W_dec"] * 2), "norm"),
        (lambda w: w.update(b_enc=w["b_enc"].astype(np.float64)), "float64"),
        (lambda w: w.update(b_dec=w["b_dec"][:-1]), "b_dec"),
        (lambda w: w["W_enc"].__setitem__((0, 0), np.nan), "finite"),
    ],
)
def test_bad_weights_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        to_saelens(broken(change), architecture="topk", k=K)


@pytest.mark.parametrize("k", [0, N + 1, None, True, 3.0])
def test_bad_k_is_refused(k):
    with pytest.raises(ValueError, match="k ="):
        to_saelens(make_weights("topk"), architecture="topk", k=k)


def test_reserved_or_unserialisable_metadata_is_refused():
    for metadata in ({"keys": 1}, {"x": float("nan")}, {"x": object()}):
        with pytest.raises(ValueError, match="metadata"):
            to_saelens(make_weights("topk"), architecture="topk", k=K, metadata=metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "matching_pursuit"},
        {"normalize_activations": "layer_norm"},
        {"rescale_acts_by_decoder_norm": True},
        {"apply_b_dec_to_input": False},
        {"d_sae": N + 1},
        {"k": None},
    ],
)
def test_folders_of_another_meaning_are_refused(change):
    files = to_saelens(make_weights("topk"), architecture="topk", k=K)
    config = json.loads(files["cfg.json"]) | change
    with pytest.raises(ValueError, match=r"."):
        from_saelens({**files, "cfg.json": json.dumps(config).encode()})


def test_garbage_is_refused_with_the_file_name(tmp_path: Path):
    files = to_saelens(make_weights("topk"), architecture="topk", k=K)
    with pytest.raises(ValueError, match="sae_weights"):
        from_saelens({**files, "sae_weights.safetensors": b"\xff" * 64})
    with pytest.raises(ValueError, match=r"cfg\.json"):
        from_saelens({**files, "cfg.json": b"[" * 100_000})
    with pytest.raises(ValueError, match=r"cfg\.json"):
        read_saelens_folder(tmp_path)
