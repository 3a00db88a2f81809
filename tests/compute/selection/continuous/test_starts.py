"""Starts: what dictionaries of several seeds share, and nothing else."""

import pytest
import torch

from compute.selection.continuous.concepts import Concepts, Statistics
from compute.selection.continuous.starts import Starts, shared_by_most
from compute.worlds import SelectionWorld


def unit(n: int, r: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, r, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def noisy(directions: torch.Tensor, seed: int) -> torch.Tensor:
    noise = torch.randn(directions.shape, generator=torch.Generator().manual_seed(seed))
    return directions + 0.3 * noise / directions.shape[1] ** 0.5


def test_what_most_have_is_grouped_and_what_one_has_is_not():
    common = unit(6, 64, 0)
    sets = [torch.cat([noisy(common, seed), unit(3, 64, seed + 10)]) for seed in (1, 2, 3)]
    # The second lists them the other way round; one of the common ones is in two sets only.
    sets[1] = sets[1].flip(0)
    sets[2] = sets[2][1:]
    groups = shared_by_most(sets)
    every = torch.cat(sets)
    assert sorted(len(group) for group in groups) == [2, 3, 3, 3, 3, 3]
    found = torch.stack([every[group].mean(0) for group in groups])
    cosines = torch.nn.functional.normalize(found, dim=1) @ common.T
    assert cosines.max(1).values.min() > 0.9
    assert len(set(cosines.argmax(1).tolist())) == 6


def test_no_direction_is_shared_by_unrelated_sets():
    assert shared_by_most([unit(8, 256, seed) for seed in (1, 2, 3)]) == []


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    world = SelectionWorld.vectors(sizes=(10, 4), dim=16, seed=3)
    x = torch.from_numpy(world.sample(3000, seed=1).activations[0]).float()
    return (x - x.mean(0)) / x.std()


def trained(rows: torch.Tensor, steps: int | None = None, seed: int = 0) -> Starts:
    starts = Starts(10, rows.shape[1], seed, rows.device)
    seen = 0
    while not starts.done and (steps is None or seen < steps):
        starts.see(rows)
        seen += 1
    return starts


def begun(starts: Starts, rows: torch.Tensor) -> Concepts:
    concepts = Concepts.none(rows.shape[1], rows.device)
    starts.begin(concepts, Statistics.none(rows.shape[1], rows.device), rows)
    return concepts


def test_starts_of_other_seeds_agree_on_what_is_there(rows):
    a, b = (begun(trained(rows, seed=seed), rows) for seed in (0, 1))
    likeness = a.directions @ b.directions.T
    assert 5 <= len(a) <= 12
    assert likeness.max(1).values.mean() > 0.9
    assert (a.mean > 0).all()
    assert torch.isfinite(a.log_odds).all()


def test_concepts_begin_as_frequent_and_strong_as_they_are():
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(6, 20, generator=generator), dim=1)
    active = torch.rand(3000, 6, generator=generator) < 0.15
    codes = torch.where(active, 4 + 0.5 * torch.randn(3000, 6, generator=generator), 0.0)
    x = codes @ directions + 0.3 * torch.randn(3000, 20, generator=generator)
    starts = Starts(6, 20, 0, x.device)
    while not starts.done:
        starts.see(x)
    concepts = begun(starts, x)
    plain = torch.nn.functional.normalize(concepts.directions * concepts.noise.sqrt(), dim=1)
    likeness, true = (plain @ directions.T).max(1)
    assert sorted(true[likeness > 0.95].tolist()) == list(range(6))
    assert concepts.log_odds.sigmoid().mean() == pytest.approx(0.15, abs=0.05)
    # Strengths count standard deviations of noise.
    strength = concepts.mean * (concepts.directions * concepts.noise.sqrt()).norm(dim=1)
    assert strength.mean() == pytest.approx(4, rel=0.3)


def test_going_on_from_a_state_ends_with_the_same_bytes(rows):
    whole = trained(rows)
    half = trained(rows, steps=4)
    again = Starts(10, rows.shape[1], 0, rows.device)
    again.restore(half.state())
    while not again.done:
        again.see(rows)
    assert torch.equal(begun(whole, rows).directions, begun(again, rows).directions)


def test_where_nothing_is_shared_no_concept_begins(rows, monkeypatch):
    starts = trained(rows)
    monkeypatch.setattr("compute.selection.continuous.starts.shared_by_most", lambda _: [])
    concepts = begun(starts, rows)
    assert len(concepts) == 0
    assert (concepts.noise < 1).any()
