import numpy as np
import pytest
import torch

from compute.dictionaries import Dictionary, fit_dictionary

D, N, K = 6, 10, 3


def weights(**changes):
    rng = np.random.default_rng(0)
    made = {
        "W_enc": rng.normal(size=(D, N)),
        "b_enc": rng.normal(size=N),
        "W_dec": rng.normal(size=(N, D)),
        "b_dec": rng.normal(size=D),
    }
    return {name: array.astype(np.float32) for name, array in (made | changes).items()}


def test_decoder_norms_are_moved_into_the_codes():
    raw = weights()
    # TopK chooses by code, so the same scaling of every row keeps the choice comparable.
    raw["W_dec"] *= 4 / np.linalg.norm(raw["W_dec"], axis=1, keepdims=True)
    dictionary = Dictionary.from_weights("topk", raw, k=K)
    x = np.random.default_rng(1).normal(size=(50, D)).astype(np.float32)
    pre = (x - raw["b_dec"]) @ raw["W_enc"] + raw["b_enc"]
    kept = np.where(pre >= np.sort(pre, axis=1)[:, -K, None], np.maximum(pre, 0), 0)
    np.testing.assert_allclose(
        dictionary.decode(dictionary.encode(x)), kept @ raw["W_dec"] + raw["b_dec"], atol=1e-4
    )
    np.testing.assert_allclose(dictionary.encode(x), 4 * kept, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_enc": np.zeros(N + 1)}, "b_enc has shape"),
        ({"W_dec": np.zeros((N, D))}, "row 0 of W_dec is zero"),
        ({"b_dec": np.full(D, np.nan)}, "not finite"),
        ({"threshold": np.zeros(N)}, "named"),
    ],
)
def test_damaged_weights_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Dictionary.from_weights("topk", weights(**changes), k=K)


def test_unknown_architectures_and_impossible_k_are_refused():
    with pytest.raises(ValueError, match="'relu' cannot be read"):
        Dictionary.from_weights("relu", weights(), k=K)
    with pytest.raises(ValueError, match="k = 11"):
        Dictionary.from_weights("topk", weights(), k=N + 1)


def test_wrong_axes_are_refused():
    dictionary = Dictionary.from_weights("topk", weights(), k=K)
    with pytest.raises(ValueError, match="last axis must be 6"):
        dictionary.encode(np.zeros((4, D + 1)))
    with pytest.raises(ValueError, match="last axis must be 10"):
        dictionary.decode(np.zeros((4, D)))
    with pytest.raises(ValueError, match="one shape"):
        dictionary.decode_sparse(np.zeros((4, 2), int), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="width = 11"):
        dictionary.encode_sparse(np.zeros((4, D)), width=N + 1)


def test_the_duck_type_of_saebench():
    dictionary = Dictionary.from_weights("topk", weights(), k=K)
    x = torch.randn(2, 5, D)
    torch.testing.assert_close(dictionary(x), dictionary.decode(dictionary.encode(x)))
    assert dictionary.W_enc.shape == (D, N)
    assert dictionary.W_dec.shape == (N, D)
    assert dictionary.b_enc.shape == (N,)
    assert dictionary.b_dec.shape == (D,)
    assert (dictionary.cfg.d_in, dictionary.cfg.d_sae) == (D, N)
    assert dictionary.dtype == torch.float32


def test_fit_refuses_what_it_cannot_learn_from():
    with pytest.raises(ValueError, match="at least one row"):
        fit_dictionary(np.zeros((0, 4)), 8, 2)
    x = np.zeros((10, 4))
    x[3, 1] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        fit_dictionary(x, 8, 2, steps=1)


def test_constant_rows_are_rebuilt():
    x = np.full((10, 4), 3.0)
    dictionary = fit_dictionary(x, 8, 2, steps=3)
    np.testing.assert_allclose(dictionary(x), x, atol=1e-3)
