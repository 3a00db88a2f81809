"""The fit of a level: what starts lack is taken from one another, what is too much is dropped."""

import pytest
import torch

from compute.dictionaries.evaluation import match_directions
from compute.selection.continuous.level import SelectionLevel, least_squares
from compute.selection.continuous.refinement import best_fit

N, D, C = 1500, 8, 5


@pytest.fixture
def rows():
    """Rows (n, 8) of five sparse concepts, and their directions (5, 8)."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator))[0][:C]
    active = torch.rand(N, C, generator=generator) < 0.2
    codes = active * (torch.rand(N, C, generator=generator) + 0.5)
    return codes @ directions + 0.02 * torch.randn(N, D, generator=generator), directions, codes


def start(x, codes):
    solution = least_squares(codes, x)
    directions = torch.nn.functional.normalize(solution[:-1], dim=1)
    return SelectionLevel.start(x, directions, solution[-1], codes)


def likeness(level, directions):
    return float(match_directions(level.directions, directions).cosines.sum()) / C


def test_starts_that_lack_different_concepts_are_crossed(rows):
    x, directions, codes = rows
    starts = [start(x, codes[:, :4]), start(x, codes[:, 1:])]
    assert best_fit([start(x, codes[:, :4])], x, None, 6, N, C).n_concepts == 4
    found = best_fit(starts, x, None, 6, N, C)
    assert found.n_concepts == C
    assert likeness(found, directions) > 0.99


def test_a_concept_that_is_there_twice_is_dropped(rows):
    x, directions, codes = rows
    generator = torch.Generator().manual_seed(1)
    half = torch.rand(N, 1, generator=generator) < 0.5
    split = torch.cat([codes[:, :4], codes[:, 4:] * half, codes[:, 4:] * ~half], 1)
    found = best_fit([start(x, split)], x, None, 6, N, 2 * C)
    assert found.n_concepts == C
    assert likeness(found, directions) > 0.99


def test_no_more_concepts_stay_than_may(rows):
    x, _, codes = rows
    assert best_fit([start(x, codes)], x, None, 6, N, 3).n_concepts == 3


def test_nothing_to_start_from_is_refused(rows):
    with pytest.raises(ValueError, match="give at least one level"):
        best_fit([], rows[0], None, 6, N, C)
