"""The compiled search does what the eager one says, and neither is better by a single change."""

import numpy as np
import pytest
import torch

from compute.selection.continuous import search as module
from compute.selection.continuous.coding import SpikeAndSlab
from compute.selection.continuous.search import search


def rows_of(n, k, r, seed=0, by_row=False):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(k, r, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    active = torch.rand(n, k, generator=generator) < 3 / k
    codes = torch.where(active, 6 + torch.randn(n, k, generator=generator), 0.0)
    rows = codes @ directions + torch.randn(n, r, generator=generator)
    shape = (n, k) if by_row else (k,)
    odds = -3 + 0.3 * torch.randn(shape, generator=generator)
    prior = SpikeAndSlab(odds, torch.full(shape, 6.0), torch.full((k,), 1.5))
    return rows, directions, prior, active


@pytest.mark.parametrize(("k", "by_row"), [(12, False), (12, True), (200, False), (200, True)])
def test_the_compiled_search_is_the_eager_one(k, by_row):
    rows, directions, prior, _ = rows_of(200, k, 24, by_row=by_row)
    fast = search(rows, directions, prior, losses=True)
    slow = search(rows, directions, prior, losses=True, compiled=False)
    same = (fast.dense(k) - slow.dense(k)).abs().amax(1) < 1e-3
    # Two changes that gain the same may come in another order.
    assert same.float().mean() > 0.98
    torch.testing.assert_close(fast.score[same], slow.score[same], rtol=1e-3, atol=1e-2)
    assert np.corrcoef(fast.losses, slow.losses)[0, 1] > 0.999


def test_products_are_the_same_whether_they_are_kept(monkeypatch):
    rows, directions, prior, _ = rows_of(100, 40, 16)
    kept = search(rows, directions, prior, losses=True)
    monkeypatch.setattr(module, "MOST_PRODUCTS", 1)
    taken = search(rows, directions, prior, losses=True)
    torch.testing.assert_close(kept.values, taken.values, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(kept.losses, taken.losses, rtol=1e-3, atol=1e-2)


def test_active_concepts_are_found_and_no_code_would_rather_change():
    k = 20
    rows, directions, prior, active = rows_of(300, k, 40)
    codes = search(rows, directions, prior)
    z = codes.dense(k)
    assert ((z > 0) == active).float().mean() > 0.99
    left = rows @ directions.T - z @ (directions @ directions.T)
    pull = left + z
    spread = prior.variance + 1
    on = (
        prior.log_odds
        - 0.5 * spread.log()
        + 0.5 * pull**2
        - 0.5 * (pull - prior.mean) ** 2 / spread
    )
    best = torch.where((pull > 0) & (on > 0), on, 0.0)
    away = (z - prior.mean) ** 2 / (2 * prior.variance)
    base = prior.log_odds - 0.5 * spread.log() - prior.mean**2 / (2 * spread)
    held = base + prior.mean**2 / (2 * spread) - away
    now = torch.where(z > 0, held + z * pull - 0.5 * z**2, 0.0)
    assert (best - now).max() < 0.011


def test_a_loss_is_what_the_score_falls_without_the_concept():
    k, gone = 8, 3
    rows, directions, prior, _ = rows_of(200, k, 24)
    codes = search(rows, directions, prior, losses=True)
    without = prior._replace(log_odds=prior.log_odds.clone())
    without.log_odds[gone] = -1e9
    rest = search(rows, directions, without)
    assert float(codes.losses[gone]) == pytest.approx(
        float((codes.score - rest.score).sum()), rel=0.02
    )


def test_no_concepts_and_no_rows_have_codes():
    empty = SpikeAndSlab(*(torch.zeros(0) for _ in range(3)))
    codes = search(torch.randn(5, 4), torch.zeros(0, 4), empty, losses=True)
    assert codes.dense(0).shape == (5, 0)
    assert (codes.score == 0).all()
