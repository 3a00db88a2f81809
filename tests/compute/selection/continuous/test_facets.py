"""Facets of rows: found whatever else is active, as thick as the noise, none from the others."""

import numpy as np
import pytest
import torch

from compute.selection.continuous.facets import facet_codes

N_CONCEPTS, NOISE = 6, 0.02


def dense_rows(seed: int, last: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (n, 6), each active in most rows, and their mixture in as many coordinates."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.tensor([0.6] * (N_CONCEPTS - 1) + [last])
    active = torch.rand(3000, N_CONCEPTS, generator=generator) < share
    codes = active * (torch.rand(3000, N_CONCEPTS, generator=generator) + 0.3)
    directions = torch.linalg.qr(torch.randn(N_CONCEPTS, N_CONCEPTS, generator=generator))[0]
    directions = directions * torch.linspace(0.5, 2, N_CONCEPTS)
    x = codes @ directions + NOISE * torch.randn(3000, N_CONCEPTS, generator=generator)
    return codes, x


def white(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in white coordinates, and the variance of the noise along each."""
    centred = x - x.mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred / len(x))
    return centred @ (axes / values.sqrt()), NOISE**2 / values


def correlations(codes: torch.Tensor, found: torch.Tensor) -> np.ndarray:
    """Correlations (6, f) of true codes (n, 6) with those that were found (n, f)."""
    together = np.corrcoef(np.concatenate([codes.numpy(), found.numpy()], axis=1).T)
    return together[:N_CONCEPTS, N_CONCEPTS:]


@pytest.mark.parametrize("seed", range(3))
def test_concepts_that_are_active_in_most_rows_are_found(seed):
    codes, x = dense_rows(seed)
    found = facet_codes(*white(x), seed=0)
    assert found.shape == (3000, N_CONCEPTS)
    assert correlations(codes, found).max(1).min() > 0.99


def test_what_is_found_is_zero_where_the_concept_is_inactive():
    codes, x = dense_rows(0)
    found = facet_codes(*white(x), seed=0)
    partner = correlations(codes, found).argmax(1)
    assert (found[:, partner][codes == 0] == 0).float().mean() > 0.99
    assert (found[:, partner][codes > 0] > 0).float().mean() > 0.99


def test_the_one_concept_with_next_to_no_facet_is_what_the_others_leave():
    codes, x = dense_rows(0, last=0.97)
    found = facet_codes(*white(x), seed=0)
    assert found.shape == (3000, N_CONCEPTS)
    # Which of its ends is that of absence is a guess.
    together = np.abs(correlations(codes, found))
    assert together.max(1).min() > 0.99
    assert together[-1].argmax() == N_CONCEPTS - 1


def test_same_seed_same_codes():
    x, noise = white(dense_rows(0)[1])
    torch.testing.assert_close(facet_codes(x, noise, 3), facet_codes(x, noise, 3), atol=0, rtol=0)


def test_rows_without_facets_give_no_more_codes_than_coordinates():
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    found = facet_codes(x, torch.full((3,), 1e-4), seed=0)
    assert found.shape[1] <= 3
    assert torch.isfinite(found).all()
