"""Gates find the parents of ANDs, k-of-n gates and vetoes, and know when to stop."""

import pytest
import torch

from compute.selection.continuous.coding import SpikeAndSlab
from compute.selection.continuous.links import fit_links


def world(n=4000, p=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, p, generator=generator) < 0.25
    parts = torch.where(active, (0.3 * torch.randn(n, p, generator=generator)).exp(), 0.0)
    on = torch.stack(
        [
            active[:, 0] & active[:, 1],
            active[:, 2:6].sum(1) >= 2,
            active[:, 6] & ~active[:, 7],
            torch.rand(n, generator=generator) < 0.2,
        ],
        1,
    )
    strength = (0.2 * torch.randn(n, 4, generator=generator)).exp()
    strength[:, 2] *= 1 + parts[:, 6]
    return parts, torch.where(on, strength, 0.0)


@pytest.fixture
def fitted():
    parts, wholes = world()
    means = parts.sum(0) / (parts > 0).sum(0)
    slab = SpikeAndSlab(torch.zeros(4), torch.ones(4), torch.ones(4))
    return parts, wholes, means, fit_links(parts, wholes, means, slab, 4000, 0)


def test_parents_are_found_and_no_others(fitted):
    links = fitted[3]
    found = set(zip(links.concepts.tolist(), links.parts.tolist(), strict=True))
    assert found == {(0, 0), (0, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 6), (2, 7)}


def test_the_prior_tells_who_is_active_and_how_strongly(fitted):
    parts, wholes, means, links = fitted
    prior = links.prior(parts, means)
    told = prior.log_odds[:, :3] > 0
    assert (told == (wholes[:, :3] > 0)).float().mean() > 0.99
    active = wholes[:, 2] > 0
    pair = torch.stack([prior.mean[active, 2], wholes[active, 2]])
    assert torch.corrcoef(pair)[0, 1] > 0.6


def test_parts_that_leave_take_their_edges(fitted):
    parts, _, means, links = fitted
    left = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11])
    links.keep_parts(left, 12)
    assert links.parts[links.concepts == 2].tolist() == [6]
    assert links.prior(parts[:, left], means[left]).log_odds.shape == (4000, 4)


def test_strengths_follow_their_units(fitted):
    parts, _, means, links = fitted
    before = links.prior(parts, means)
    links.rescale(torch.tensor([2.0, 1, 1, 1]))
    after = links.prior(parts, means)
    torch.testing.assert_close(after.mean[:, 0], 2 * before.mean[:, 0])
    torch.testing.assert_close(after.variance[0], 4 * before.variance[0])


def test_few_rows_have_fewer_edges_than_many():
    parts, wholes = (codes[:120] for codes in world())
    means = parts.sum(0) / (parts > 0).sum(0).clamp(min=1)
    slab = SpikeAndSlab(torch.zeros(4), torch.ones(4), torch.ones(4))
    few = fit_links(parts, wholes, means, slab, 120, 0)
    assert len(few.parts) < 8
