"""Codes are the most probable ones of a row, whatever rows they are searched with."""

from itertools import product

import numpy as np
import pytest
import torch

from compute.selection.continuous.coding import SpikeAndSlab, SufficientStatistics

NOISE = torch.tensor([0.05**2])


@pytest.fixture
def four():
    """Rows (200, 6) of four orthogonal concepts, their codes, the directions and the prior."""
    rng = np.random.default_rng(0)
    directions = torch.from_numpy(np.linalg.qr(rng.normal(size=(6, 6)))[0][:4].astype(np.float32))
    true = rng.lognormal(0, 0.2, (200, 4)) * (rng.random((200, 4)) < 0.4)
    x = torch.from_numpy((true @ directions.numpy()).astype(np.float32))
    x += 0.05 * torch.from_numpy(rng.normal(size=(200, 6)).astype(np.float32))
    return x, true, directions, SpikeAndSlab(torch.zeros(4), torch.ones(4), torch.full((4,), 0.1))


def log_posterior(x, z, directions, prior, noise):
    """Of one row, against that of no active concept, by the formula."""
    active = z > 0
    log_bayes_factor = prior.log_odds - 0.5 * torch.log1p(prior.variance / noise)
    own = log_bayes_factor - (z - prior.mean).square() / (2 * prior.variance)
    left = x - z @ directions
    return (x.square().sum() - left.square().sum()) / (2 * noise) + own[active].sum()


def test_codes_are_the_most_probable_ones(four):
    x, true, directions, prior = four
    found = SufficientStatistics.of(x, directions, NOISE).codes(prior)
    assert ((found.codes.numpy() > 0) == (true > 0)).mean() > 0.99
    assert np.abs(found.codes.numpy() - true).max() < 0.35
    # Orthogonal directions make coordinates independent: no code off or on would be better.
    for j in range(4):
        off = SufficientStatistics.of(x, directions, NOISE).codes(prior.without(j))
        assert (found.log_posterior >= off.log_posterior - 1e-2).all()
        assert (off.codes[:, j] == 0).all()


def test_scores_are_log_posteriors(four):
    x, _, directions, prior = four
    found = SufficientStatistics.of(x, directions, NOISE).codes(prior)
    for row, z, score in zip(x[:20], found.codes, found.log_posterior):
        assert float(score) == pytest.approx(
            float(log_posterior(row, z, directions, prior, NOISE[0])), rel=1e-4, abs=1e-3
        )


def test_codes_of_like_directions_are_as_good_as_those_of_every_set():
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=1)
    active = torch.rand(60, 5, generator=generator) < 0.3
    x = (active * (1 + 0.2 * torch.randn(60, 5, generator=generator))) @ directions
    x += 0.1 * torch.randn(60, 4, generator=generator)
    noise = torch.tensor([0.01])
    prior = SpikeAndSlab(torch.full((5,), -0.8), torch.ones(5), torch.full((5,), 0.04))
    found = SufficientStatistics.of(x, directions, noise).codes(prior)
    best = torch.full((60,), -torch.inf)
    for some in product((False, True), repeat=5):
        own = torch.tensor(some)
        precision = directions[own] @ directions[own].T / noise
        precision += torch.diag(1 / prior.variance[own])
        wanted = x @ directions[own].T / noise + (prior.mean / prior.variance)[own]
        z = torch.zeros(60, 5)
        z[:, own] = torch.linalg.solve(precision, wanted.T).T
        for i in torch.nonzero((z[:, own] > 0).all(1))[:, 0]:
            best[i] = max(best[i], log_posterior(x[i], z[i], directions, prior, noise[0]))
    # The search is greedy: for most rows it ends at the best set of all.
    assert (found.log_posterior <= best + 1e-2).all()
    assert (found.log_posterior > best - 0.1).float().mean() > 0.9


def test_a_row_has_the_same_codes_in_other_company(four):
    x, _, directions, prior = four
    log_odds = torch.randn(200, 4, generator=torch.Generator().manual_seed(2))
    by_row = SpikeAndSlab(log_odds, prior.mean.expand(200, 4), prior.variance)
    noise = torch.linspace(0.001, 0.01, 200)
    statistics = SufficientStatistics.of(x.repeat(8, 1), directions, noise.repeat(8))
    several = SpikeAndSlab(log_odds.repeat(8, 1), by_row.mean.repeat(8, 1), prior.variance)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = statistics.codes(several)
    finally:
        torch.set_num_threads(threads)
    for i in (0, 57, 199):
        index = torch.tensor([i])
        alone = SufficientStatistics.of(x, directions, noise).some(index).codes(by_row.rows(index))
        for copy in range(8):
            assert torch.equal(found.codes[copy * 200 + i], alone.codes[0])


def test_a_row_of_much_noise_has_no_active_concepts(four):
    x, _, directions, prior = four
    noise = torch.full((200,), 0.0025)
    noise[:100] = 100.0
    sparse = prior._replace(log_odds=torch.full((4,), -2.0))
    codes = SufficientStatistics.of(x, directions, noise).codes(sparse).codes
    assert (codes[:100] == 0).all()
    assert (codes[100:] > 0).any(1).float().mean() > 0.8
