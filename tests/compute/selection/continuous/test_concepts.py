"""Online estimates are those of all rows at once, with and without products of all pairs."""

import math

import pytest
import torch

from compute.selection.continuous import concepts as module
from compute.selection.continuous.concepts import Concepts, Statistics, learn, turn_axes
from compute.selection.continuous.coordinates import White
from compute.selection.continuous.population import begin, price, remove, unneeded

CPU = torch.device("cpu")


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(6, 20, generator=generator)
    active = torch.rand(3000, 6, generator=generator) < 0.15
    codes = torch.where(active, 2 + 0.5 * torch.randn(3000, 6, generator=generator), 0.0)
    noise = 0.3 * torch.randn(3000, 20, generator=generator)
    white = White.of_blocks([codes @ directions + noise + 5])
    return white, white.rows(codes @ directions + noise + 5), directions, codes


def trained(rows, k, rounds=20, batch=3000):
    white, x, directions, _ = rows
    own, statistics = Concepts.none(20, CPU), Statistics.none(20, CPU)
    starts = (directions @ white.into)[:k] + 0.1 * torch.randn(
        k, 20, generator=torch.Generator().manual_seed(1)
    )
    own.add(10 * starts, -2.0)
    statistics.add(k)
    steps = 0
    for _ in range(rounds):
        for part in x.split(batch):
            steps += 1
            found = own.infer(part, losses=True)
            learn(own, statistics, part, found, max(1 / steps, batch / 3000))
    return own, statistics


def cosines(own, rows):
    white, _, directions, _ = rows
    written = (own.directions * own.noise.sqrt()) @ white.back
    return torch.nn.functional.cosine_similarity(written, directions[: len(own)])


def test_directions_frequencies_and_noise_are_found(rows):
    own, _ = trained(rows, 6)
    assert cosines(own, rows).min() > 0.99
    assert own.log_odds.sigmoid() == pytest.approx(torch.full((6,), 0.15), abs=0.03)
    assert own.noise.min() < 0.3
    # What holds noise alone is as quiet as the precision of the coordinates leaves it.
    assert own.noise.max() > 0.5


def test_batches_come_to_the_same_as_all_rows(rows):
    own, _ = trained(rows, 6, batch=500)
    assert cosines(own, rows).min() > 0.99


def test_more_concepts_than_are_solved_for_together_take_steps(rows, monkeypatch):
    monkeypatch.setattr(module, "EXACT", 2)
    own, statistics = trained(rows, 6, batch=500)
    assert statistics.gram.numel() == 0
    assert cosines(own, rows).min() > 0.98


def test_what_stands_twice_leaves_once(rows):
    own, statistics = trained(rows, 6)
    own.add(20 * own.directions[:1], -2.0)
    statistics.add(1)
    _, x, _, _ = rows
    for _ in range(3):
        learn(own, statistics, x, own.infer(x, losses=True), 1.0)
    gone = unneeded(own, statistics, 3000, None, torch.zeros(7, dtype=torch.float64))
    assert len(gone) == 1
    assert int(gone) in (0, 6)
    remove(own, statistics, gone)
    assert len(own) == 6
    assert statistics.gram.shape == (7, 7)


def test_too_many_leave_though_they_are_worth_it(rows):
    own, statistics = trained(rows, 6)
    fixed = torch.zeros(6, dtype=torch.float64)
    assert len(unneeded(own, statistics, 3000, 6, fixed)) == 0
    assert len(unneeded(own, statistics, 3000, 5, fixed)) == 1


def test_edges_are_part_of_what_a_concept_costs(rows):
    own, statistics = trained(rows, 6)
    fixed = torch.tensor([0.0, 1e9, 0, 0, 0, 0], dtype=torch.float64)
    assert unneeded(own, statistics, 3000, None, fixed).tolist() == [1]


def test_concepts_begin_where_rows_are_left_with_most():
    left = torch.zeros(50, 4)
    left[7] = torch.tensor([30.0, 0, 0, 0])
    own, statistics = Concepts.none(4, CPU), Statistics.none(4, CPU)
    assert begin(own, statistics, left, 3, torch.Generator()) == 1
    assert own.directions.tolist() == [[1, 0, 0, 0]]


def test_a_concept_costs_half_a_logarithm_for_each_number():
    assert price(7, 100) == pytest.approx(5 * math.log(100))


def test_white_coordinates_come_of_blocks(rows):
    white, x, _, _ = rows
    raw = x @ white.back + white.mean
    values = torch.linalg.eigvalsh(raw.double().T.cov())
    whitened = values / (values + 0.02 * values.mean())
    assert torch.allclose(x.T.cov(), whitened.float().diag(), atol=1e-3)
    again = White.of_blocks(raw.split(700))
    assert torch.allclose(again.rows(raw), x, atol=1e-2)


def test_what_does_not_vary_is_no_coordinate():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, torch.ones(100, 1)], 1)
    assert White.of_blocks([x]).into.shape == (4, 3)


def test_turned_axes_change_no_row_and_no_code(rows):
    white, x, *_ = rows
    own, statistics = trained(rows, 6)
    # A turn by itself: the noise stays as it is where it is alike in all directions.
    own.noise = torch.full_like(own.noise, 0.5)
    before = own.infer(x)
    generator = torch.Generator().manual_seed(3)
    axes = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q
    size = turn_axes(own, statistics, axes, own.noise.clone())
    assert size == pytest.approx(torch.ones(6), abs=1e-4)
    after = own.infer(white.turned(axes).rows(x @ white.back + white.mean))
    torch.testing.assert_close(after.dense(6), before.dense(6), atol=1e-2, rtol=1e-2)


def test_noise_of_any_covariance_is_independent_along_what_is_left():
    generator = torch.Generator().manual_seed(4)
    mixed = torch.randn(4000, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    white = White.of_blocks([mixed])
    x = white.rows(mixed)
    own, statistics = Concepts.none(12, CPU), Statistics.none(12, CPU)
    left = own.residuals(x, own.infer(x)) * own.noise.sqrt()
    values, axes = torch.linalg.eigh(left.T @ left / len(left))
    turn_axes(own, statistics, axes, values)
    turned = white.turned(axes).rows(mixed)
    covariance = turned.T @ turned / len(turned)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-4
