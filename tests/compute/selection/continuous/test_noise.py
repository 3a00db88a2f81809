"""Noise grows with the power of rows where it does, and is one number elsewhere."""

import pytest
import torch

from compute.selection.continuous.noise import Noise, fit_noise

N, D = 3000, 8


@pytest.fixture
def squares():
    """Power of rows (n,), and mean squares (n,) of noise of variance 1 in eight coordinates."""
    generator = torch.Generator().manual_seed(0)
    power = torch.rand(N, generator=generator) * 4
    return power, torch.randn(N, D, generator=generator).square().mean(1)


def test_noise_that_is_the_same_everywhere_does_not_grow(squares):
    power, one = squares
    assert fit_noise(0.3 * one, power, D, 1e-6) == Noise(float((0.3 * one).double().mean()))


def test_growth_is_that_of_the_rows(squares):
    power, one = squares
    found = fit_noise((0.1 + 0.05 * power) * one, power, D, 1e-6)
    assert found.floor == pytest.approx(0.1, rel=0.1)
    assert found.growth == pytest.approx(0.05, rel=0.1)
    rows = torch.full((2, D), 2.0)
    assert torch.allclose(found.rows(rows), torch.tensor(found.floor + 4 * found.growth))


def test_the_floor_stays(squares):
    power, one = squares
    found = fit_noise(0.05 * power * one, power, D, 0.2)
    assert found.floor == 0.2
    assert fit_noise(torch.zeros(N), power, D, 0.2) == Noise(0.2)
