"""Terms in products of codes are found where rows bend, and concepts that stood in for them go."""

from math import log

import pytest
import torch

from compute.selection import HierarchicalSelectionModel
from compute.selection.continuous.interactions import Interactions, needed_pairs
from compute.selection.continuous.level import SelectionLevel, least_squares
from compute.selection.continuous.refinement import best_fit, with_interactions
from compute.worlds import SelectionWorld

N, C, D = 3000, 5, 8


@pytest.fixture
def linear():
    """Codes (n, 5) and rows (n, 8) that are a linear function of them, and noise."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(N, C, generator=generator) < 0.3
    codes = active * (torch.rand(N, C, generator=generator) + 0.5)
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator))[0][:C]
    return codes, codes @ directions + 0.02 * torch.randn(N, D, generator=generator)


def test_pairs_that_bend_the_rows_are_found_and_no_others(linear):
    codes, x = linear
    noise, description_length = torch.tensor([0.02**2]), 0.5 * D * log(N)
    assert not len(needed_pairs(codes, x, noise, description_length)[0])
    bent = x + torch.outer(codes[:, 0] * codes[:, 3], torch.linspace(-0.3, 0.3, D))
    bent += torch.outer(codes[:, 2].square(), torch.linspace(0.2, -0.1, D))
    first, second = needed_pairs(codes, bent, noise, description_length)
    assert sorted(zip(first.tolist(), second.tolist())) == [(0, 3), (2, 2)]


def test_terms_of_dropped_concepts_go_and_others_follow_theirs():
    directions = torch.arange(6.0).reshape(3, 2)
    terms = Interactions(torch.tensor([0, 1, 2]), torch.tensor([3, 2, 2]), directions)
    left = terms.keep(torch.tensor([1, 2]))
    assert left.first.tolist() == [0, 1]
    assert left.second.tolist() == [1, 1]
    z = torch.tensor([[2.0, 3.0]])
    assert torch.equal(left(z), 6 * directions[1:2] + 9 * directions[2:3])


def test_a_level_has_terms_where_they_raise_its_score(linear):
    codes, x = linear

    def found(rows):
        def fit(most):
            solution = least_squares(codes, rows)
            directions = torch.nn.functional.normalize(solution[:-1], dim=1)
            start = SelectionLevel.start(rows, directions, solution[-1], codes)
            return best_fit([start], rows, None, 4, N, most)

        return with_interactions(fit, rows, None, N, C)

    assert found(x).terms is None
    # Along the directions of concepts, codes would take the term up.
    beside = torch.linalg.qr(torch.linalg.lstsq(codes, x).solution.T, mode="complete")[0][:, -1]
    level = found(x + torch.outer(codes[:, 0] * codes[:, 3], 0.4 * beside))
    assert level.n_concepts == C
    assert level.terms is not None
    assert (level.terms.first.tolist(), level.terms.second.tolist()) == ([0], [3])
    assert float(torch.cosine_similarity(level.terms.directions[0], beside, dim=0)) > 0.98


def test_as_many_concepts_are_found_where_activations_are_warped():
    world = SelectionWorld.vectors(sizes=(10, 4), dim=12, mixing="nonlinear", seed=1)
    rows = world.sample(3000)
    model = HierarchicalSelectionModel((20, 8), 3, steps=150, rounds=6).fit(rows.activations)
    parts, wholes = model.n_concepts_
    assert 9 <= parts <= 12
    assert 4 <= wholes <= 5
