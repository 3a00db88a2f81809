"""What every architecture owes its users: a new one joins ARCHITECTURES, and nothing else."""

import os

import numpy as np
import pytest
import torch

from compute.dictionaries import Dictionary, DictionarySettings, DictionaryTrainer, fit_dictionary

ARCHITECTURES = ("topk", "batchtopk", "jumprelu", "matryoshka", "gated")
D, N, K = 24, 64, 4

pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES, scope="module")


def sparse_rows(n: int, seed: int) -> torch.Tensor:
    """Rows made of K of N directions, off centre and in other units than one."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(N, D, generator=torch.Generator().manual_seed(99)), dim=1
    )
    codes = torch.rand(n, N, generator=generator) + 0.5
    codes *= torch.rand(n, N, generator=generator) < K / N
    return 7.0 * codes @ directions + 3.0


def settings(architecture: str, **changes) -> DictionarySettings:
    chosen = {"n_concepts": N, "k": K, "steps": 200, "batch_size": 128, "dead_after": 2000}
    return DictionarySettings(architecture=architecture, **(chosen | changes))


def trained(architecture: str, taken: int = 200, **changes) -> DictionaryTrainer:
    trainer = DictionaryTrainer(settings(architecture, **changes))
    for step in range(taken):
        trainer.step(sparse_rows(128, step))
    return trainer


@pytest.fixture(scope="module")
def dictionary(architecture) -> Dictionary:
    return trained(architecture).dictionary


def test_it_learns(architecture, dictionary):
    x = sparse_rows(2000, 10_000)
    error = (dictionary.decode(dictionary.encode(x)) - x).square().sum()
    assert 1 - error / (x - x.mean(0)).square().sum() > 0.6


def test_k_concepts_are_active(architecture, dictionary):
    l0 = (dictionary.encode(sparse_rows(2000, 10_000)) > 0).sum(1).float()
    assert K / 2 < l0.mean() < 1.5 * K
    if architecture == "topk":
        assert l0.max() <= K


def test_codes_are_nonnegative_and_directions_unit(architecture, dictionary):
    assert dictionary.encode(sparse_rows(100, 1)).min() >= 0
    norms = dictionary.directions.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(N))


def test_numpy_and_any_leading_axes_are_accepted(architecture, dictionary):
    x = sparse_rows(12, 1)
    flat = dictionary.encode(x)
    torch.testing.assert_close(dictionary.encode(x.numpy()), flat)
    torch.testing.assert_close(dictionary.encode(x.double().numpy()), flat)
    torch.testing.assert_close(dictionary.encode(x.reshape(3, 4, D)), flat.reshape(3, 4, N))
    torch.testing.assert_close(dictionary.encode(x[0]), flat[0])
    assert dictionary.decode(flat.reshape(3, 4, N)).shape == (3, 4, D)
    assert dictionary.encode_sparse(x.reshape(3, 4, D)).indices.shape == (3, 4, K)


def test_sparse_codes_are_the_dense_ones(architecture, dictionary):
    x = sparse_rows(200, 1)
    dense = dictionary.encode(x)
    width = max(K, int((dense > 0).sum(1).max()))
    indices, values = dictionary.encode_sparse(x, width=width)
    assert torch.equal(torch.zeros_like(dense).scatter_(1, indices, values), dense)
    torch.testing.assert_close(
        dictionary.decode_sparse(indices, values), dictionary.decode(dense), atol=1e-4, rtol=1e-5
    )


def test_active_concepts_have_their_codes_before_selection(architecture, dictionary):
    x = sparse_rows(50, 4)
    codes, before = dictionary.encode(x), dictionary.pre_activations(x)
    assert before.shape == codes.shape
    torch.testing.assert_close(before[codes > 0], codes[codes > 0])
    assert (before[codes == 0] < codes.max()).all()


def test_weights_make_the_same_dictionary(architecture, dictionary):
    x = sparse_rows(200, 1)
    again = Dictionary.from_weights(dictionary.architecture, dictionary.weights(), k=dictionary.k)
    assert torch.equal(again.encode(x), dictionary.encode(x))
    for array in dictionary.weights().values():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_sae_lens_computes_the_same(architecture, dictionary):
    os.environ.update(WANDB_MODE="disabled", HF_HUB_OFFLINE="1")
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(dictionary.architecture)
    config = {"d_in": D, "d_sae": N, "apply_b_dec_to_input": True}
    if dictionary.architecture == "topk":
        config["k"] = dictionary.k
    sae = sae_class(config_class(**config))
    sae.load_state_dict(
        {name: torch.from_numpy(array) for name, array in dictionary.weights().items()}
    )
    x = sparse_rows(200, 1)
    with torch.no_grad():
        codes = sae.encode(x)
        torch.testing.assert_close(codes, dictionary.encode(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            sae.decode(codes), dictionary.decode(dictionary.encode(x)), atol=1e-5, rtol=1e-5
        )


def test_units_of_the_activations_do_not_matter(architecture):
    """Shifted and scaled rows give shifted and scaled codes, because normalisation is folded."""
    x = sparse_rows(1000, 1)
    plain, moved = (
        fit_dictionary(y, N, K, steps=30, architecture=architecture, batch_size=128)
        for y in (x, 16 * x + 5)
    )
    torch.testing.assert_close(plain.encode(x) * 16, moved.encode(16 * x + 5), atol=2e-2, rtol=1e-3)


def test_same_seed_same_bits(architecture):
    x = sparse_rows(500, 1)
    one, two = (fit_dictionary(x, N, K, 20, 3, architecture, batch_size=64) for _ in range(2))
    other = fit_dictionary(x, N, K, 20, 4, architecture, batch_size=64)
    assert torch.equal(one.directions, two.directions)
    assert not torch.equal(one.directions, other.directions)


def test_resume_is_bit_exact(architecture):
    whole = trained(architecture, 60, dead_after=300)
    part = trained(architecture, 35, dead_after=300)
    resumed = DictionaryTrainer.from_checkpoint(part.checkpoint())
    for step in range(35, 60):
        resumed.step(sparse_rows(128, step))
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_step_descends(architecture):
    """Steps on one batch lower the loss on it."""
    trainer = DictionaryTrainer(settings(architecture, learning_rate=1e-4, warm_up=0, decay=0))
    x = sparse_rows(512, 0)
    losses = [float(trainer.step(x).loss) for _ in range(30)]
    assert losses[-1] < losses[0]


def test_dead_concepts_come_back(architecture):
    """Concepts whose bias forbids them to fire return by the auxiliary loss, and only by it."""
    alive = {}
    for aux_weight in (0.0, 1 / 4):
        trainer = trained(architecture, 5, dead_after=500, aux_weight=aux_weight, steps=2000)
        for name in ("encoder_bias", "gate_bias"):
            if name in trainer.parameters:
                trainer.parameters[name][: N // 2] -= 3.0
        for step in range(300):
            trainer.step(sparse_rows(128, step))
        alive[aux_weight] = int((~trainer.dead[: N // 2]).sum())
    assert alive[1 / 4] > alive[0.0] + N // 16
