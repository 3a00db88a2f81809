"""Rows with terms in products of codes are searched as those without, and to a maximum."""

import pytest
import torch

from compute.selection.continuous.coding import SpikeAndSlab, SufficientStatistics
from compute.selection.continuous.interactions import Interactions

N, C, D = 200, 6, 10


@pytest.fixture
def case():
    """Rows (n, 10) of 6 concepts, three terms among them, their noise and the prior."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    directions = torch.nn.functional.normalize(normal(C, D), dim=1)
    terms = Interactions(torch.tensor([0, 1, 2]), torch.tensor([3, 2, 2]), 0.5 * normal(3, D))
    prior = SpikeAndSlab(torch.full((C,), -1.0), 1 + 0.1 * normal(C), torch.full((C,), 0.2))
    active = torch.rand(N, C, generator=generator) < 0.4
    codes = active * (1 + 0.4 * normal(N, C)).clamp(min=0.2)
    noise = 0.02 + 0.02 * torch.rand(N, generator=generator)
    x = codes @ directions + terms(codes) + noise.sqrt()[:, None] * normal(N, D)
    return x, directions, terms, noise, prior, codes


def log_posterior(x, directions, terms, noise, prior, z):
    """Against that of no active concept, (n,): the formula, written out."""
    left = x - z @ directions - terms(z)
    score = (x.square().sum(1) - left.square().sum(1)) / (2 * noise)
    own = prior.log_odds - 0.5 * torch.log1p(prior.variance / noise[:, None])
    own = own - (z - prior.mean).square() / (2 * prior.variance)
    return score + torch.where(z > 0, own, 0.0).sum(1)


def test_no_change_of_one_code_raises_the_log_posterior(case):
    x, directions, terms, noise, prior, truth = case
    found = SufficientStatistics.of(x, directions, noise, terms).codes(prior)
    formula = (x, directions, terms, noise, prior)
    assert torch.allclose(found.log_posterior, log_posterior(*formula, found.codes), atol=1e-3)
    for j in range(C):
        for value in torch.linspace(0, 3, 61):
            other = found.codes.clone()
            other[:, j] = value
            assert (log_posterior(*formula, other) < found.log_posterior + 0.02).all()
    # Searched as if there were no terms, rows that have them are misread.
    plain = SufficientStatistics.of(x, directions, noise).codes(prior).codes
    wrong = ((found.codes > 0) != (truth > 0)).float().mean()
    assert wrong < 0.8 * ((plain > 0) != (truth > 0)).float().mean()


def test_a_search_goes_on_from_its_start_and_never_down(case):
    x, directions, terms, noise, prior, truth = case
    statistics = SufficientStatistics.of(x, directions, noise, terms)
    before = statistics.codes(prior, truth, most_steps=0)
    assert torch.equal(before.codes, truth)
    assert torch.allclose(
        before.log_posterior, log_posterior(x, directions, terms, noise, prior, truth), atol=1e-3
    )
    assert (statistics.codes(prior, truth).log_posterior >= before.log_posterior).all()


def test_terms_along_nothing_change_nothing(case):
    x, directions, terms, noise, prior, _ = case
    nothing = terms._replace(directions=torch.zeros_like(terms.directions))
    found = SufficientStatistics.of(x, directions, noise, nothing).codes(prior)
    plain = SufficientStatistics.of(x, directions, noise).codes(prior)
    assert torch.allclose(found.log_posterior, plain.log_posterior, atol=2e-2)
    assert torch.allclose(found.codes, plain.codes, atol=2e-2)
