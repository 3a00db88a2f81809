"""Whitened training: folded into the weights, resumed exactly, better at quiet concepts."""

import pytest
import torch
from pydantic import ValidationError

from compute.dictionaries import Dictionary, DictionarySettings, DictionaryTrainer, fit_dictionary
from compute.dictionaries.architectures import Normalization, architecture_named
from compute.dictionaries.evaluation import match_directions
from compute.dictionaries.normalization import estimate_whitening, signal_rank

WHITENED = ("batchtopk", "jumprelu", "matryoshka", "gated")
D, N, K = 24, 24, 3


def true_directions() -> torch.Tensor:
    directions = torch.randn(N, D, generator=torch.Generator().manual_seed(9))
    return torch.nn.functional.normalize(directions, dim=1)


def loud_rows(n: int, seed: int) -> torch.Tensor:
    """Sparse rows, in which three concepts are ten times as strong as the others."""
    generator = torch.Generator().manual_seed(seed)
    codes = (torch.rand(n, N, generator=generator) + 0.5) * (
        torch.rand(n, N, generator=generator) < K / N
    )
    codes[:, :3] *= 10
    return codes @ true_directions() + 0.02 * torch.randn(n, D, generator=generator) + 7


def trained(architecture: str, taken: int) -> DictionaryTrainer:
    settings = DictionarySettings(
        architecture=architecture,
        n_concepts=N,
        k=K,
        steps=60,
        batch_size=256,
        dead_after=3000,
        whiten=True,
    )
    trainer = DictionaryTrainer(settings)
    for step in range(taken):
        trainer.step(loud_rows(256, step))
    return trainer


def test_whitened_rows_have_a_covariance_near_identity():
    x = loud_rows(20_000, 0)
    norm = estimate_whitening(x)
    covariance = torch.cov(norm.rows(x).T)
    assert torch.cov(x.T).diagonal().max() > 30 * torch.linalg.eigvalsh(torch.cov(x.T)).min()
    assert float(torch.linalg.eigvalsh(covariance).max()) == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(norm.into @ norm.back, torch.eye(D), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.rows(x).mean(0), torch.zeros(D), atol=1e-3, rtol=0)


def test_constant_and_huge_rows_are_no_trouble():
    assert torch.isfinite(estimate_whitening(torch.ones(50, 4)).into).all()
    x = loud_rows(1000, 0)
    x[0] *= 1e4
    torch.testing.assert_close(
        estimate_whitening(x).mean, estimate_whitening(x[1:]).mean, atol=1e-4, rtol=1e-4
    )


def spread_rows(rank: int, share: float) -> torch.Tensor:
    """Rows of ``rank`` concepts, each active in a share of them, under noise in 20 coordinates."""
    generator = torch.Generator().manual_seed(rank)
    codes = torch.randn(4000, rank, generator=generator)
    codes *= torch.rand(4000, rank, generator=generator) < share
    noise = 0.02 * torch.randn(4000, 20, generator=generator)
    return codes @ torch.randn(rank, 20, generator=generator) + noise + 1


@pytest.mark.parametrize("rank", [1, 2, 7, 17])
def test_coordinates_of_noise_alone_are_counted_and_left_out(rank):
    x = spread_rows(rank, 0.5)
    assert signal_rank(torch.linalg.eigvalsh(torch.cov(x.T)).double().numpy(), len(x)) == rank
    norm = estimate_whitening(x, without_noise=True)
    assert norm.into.shape == (20, rank)
    assert norm.back.shape == (rank, 20)
    again = norm.mean + norm.directions(norm.rows(x))
    assert float((again - x).square().mean().sqrt()) < 0.02


def test_infinite_shrinkage_scales_all_coordinates_alike():
    norm = estimate_whitening(spread_rows(4, 1.0), float("inf"), without_noise=True)
    rows = norm.rows(spread_rows(4, 1.0))
    assert norm.into.shape == (20, 4)
    gram = norm.into.T @ norm.into
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(4), atol=1e-4, rtol=1e-4)
    assert float(rows.var(0).mean()) == pytest.approx(1.0, rel=1e-3)


def test_what_varies_in_one_row_of_a_hundred_is_not_noise():
    x = spread_rows(4, 0.01)
    assert estimate_whitening(x, without_noise=True).into.shape == (20, 4)


@pytest.mark.parametrize("d", [1, 2, 12])
def test_no_noise_is_told_where_no_variances_are_alike(d):
    variances = 3.0 ** -torch.arange(d).double().numpy()
    assert signal_rank(variances, 4000) == d
    x = torch.randn(4000, d, generator=torch.Generator().manual_seed(0))
    x *= torch.from_numpy(variances**0.5)
    whole = estimate_whitening(x)
    assert torch.equal(estimate_whitening(x, without_noise=True).into, whole.into)


@pytest.mark.parametrize("architecture", WHITENED)
def test_whitening_is_folded_into_the_weights(architecture):
    trainer = trained(architecture, 60)
    norm, x = trainer.normalization, loud_rows(300, 1000)
    as_trained = Normalization(torch.zeros(D), torch.ones(()))
    name, weights = architecture_named(architecture).publish(
        trainer.parameters, trainer.buffers, as_trained
    )
    within = Dictionary(name, weights, k=K).encode(norm.rows(x))
    lengths = norm.directions(trainer.parameters["decoder"]).norm(dim=1)
    found = trainer.dictionary.encode(x)
    assert (found > 0).any()
    torch.testing.assert_close(found, within * lengths, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("architecture", WHITENED)
def test_resume_is_bit_exact(architecture):
    whole, part = trained(architecture, 60), trained(architecture, 40)
    resumed = DictionaryTrainer.from_checkpoint(part.checkpoint())
    for step in range(40, 60):
        resumed.step(loud_rows(256, step))
    expected, found = whole.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    assert {"into", "back"} <= expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_quiet_concepts_are_found_beside_loud_ones():
    x = loud_rows(8000, 0)
    plain, whitened = (
        match_directions(
            fit_dictionary(x, N, K, 400, 0, "batchtopk", whiten=whiten).directions,
            true_directions(),
        ).mcc
        for whiten in (False, True)
    )
    assert whitened > 0.9 > plain + 0.1


def test_topk_is_refused():
    with pytest.raises(ValidationError, match="whiten = true goes with every architecture but"):
        DictionarySettings(architecture="topk", whiten=True)


def test_a_given_normalization_is_used_whatever_the_first_batch_is():
    x = loud_rows(4000, 0)
    given = estimate_whitening(x)
    trainer = DictionaryTrainer(
        DictionarySettings(architecture="batchtopk", n_concepts=8, k=2, whiten=True, steps=10),
        normalization=given,
    )
    trainer.step(x[:64])
    assert torch.equal(trainer.normalization.into, given.into)
    resumed = DictionaryTrainer.from_checkpoint(trainer.checkpoint())
    assert torch.equal(resumed.normalization.into, given.into)
