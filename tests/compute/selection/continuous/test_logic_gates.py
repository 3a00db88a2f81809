"""Gates: when a whole is active, and how strongly, given its parts."""

import numpy as np
import pytest
import torch

from compute.dictionaries.evaluation import mean_correlation
from compute.selection.continuous.logic_gates import fit_logic_gates, pure_directions
from compute.worlds import SelectionWorld

N = 2000


def parts_and_sum(seed, noise=0.0):
    """Codes (n, 4) of parts and (n, 1) of a whole: the sum of the first three over a threshold."""
    rng = np.random.default_rng(seed)
    parts = (rng.random((N, 4)) < 0.5) * rng.uniform(0.5, 1.5, size=(N, 4))
    total = parts[:, :3] @ [1.0, 2.0, 0.5] - 2.0
    whole = np.maximum(total, 0) + (total > 0) * noise * rng.standard_normal(N)
    return parts.astype(np.float32), whole[:, None].astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_strength_of_a_sum_over_a_threshold_is_predicted(noise):
    parts, whole = parts_and_sum(0, noise)
    gates, variance = fit_logic_gates(parts, whole, [np.array([1, 0, 2])])
    other, expected = parts_and_sum(1, noise)
    prior = gates.prior(other, torch.from_numpy(variance))
    active = expected[:, 0] > 0
    error = expected[active, 0] - prior.mean.numpy()[active, 0]
    assert np.square(error).mean() ** 0.5 == pytest.approx(noise, abs=0.03)
    floor = (0.05 * expected[active, 0].mean()) ** 2
    assert variance[0] == pytest.approx(max(noise**2, floor), rel=0.2)
    assert (prior.log_odds.numpy()[active] > 0).mean() > 0.9


def test_without_parents_a_gate_knows_the_mean():
    parts, whole = parts_and_sum(0)
    gates, variance = fit_logic_gates(parts, whole, [np.empty(0, np.int64)])
    prior = gates.prior(parts, torch.from_numpy(variance))
    own = whole[whole > 0]
    np.testing.assert_allclose(prior.mean.numpy(), own.mean(), rtol=1e-5)
    assert variance[0] == pytest.approx(own.var(), rel=1e-2)


def test_few_active_rows_show_no_slope():
    parts, whole = parts_and_sum(0)
    rows = np.concatenate([np.flatnonzero(whole[:, 0] > 0)[:10], np.flatnonzero(whole[:, 0] == 0)])
    gates, _ = fit_logic_gates(parts[rows], whole[rows], [np.array([1, 0, 2])])
    assert not gates.slopes[0].any()


def test_kept_gates_are_those_of_their_concepts():
    parts, whole = parts_and_sum(0)
    both = np.concatenate([whole, parts[:, 3:]], axis=1)
    gates, variance = fit_logic_gates(parts, both, [np.array([1, 0, 2]), np.array([3])])
    kept = gates.keep(np.array([1])).prior(parts, torch.from_numpy(variance[1:]))
    all_of_them = gates.prior(parts, torch.from_numpy(variance))
    np.testing.assert_array_equal(kept.mean.numpy(), all_of_them.mean.numpy()[:, 1:])
    np.testing.assert_array_equal(kept.log_odds.numpy(), all_of_them.log_odds.numpy()[:, 1:])


def test_gates_predict_wholes_of_patterns():
    rng = np.random.default_rng(0)
    parts = (rng.random((4000, 3)) < 0.4).astype(np.float32)
    whole = (parts[:, 0] * parts[:, 1]) * rng.lognormal(0, 0.1, 4000).astype(np.float32)
    gates, variance = fit_logic_gates(parts, whole[:, None], [np.array([0, 1])])
    prior = gates.prior(parts, torch.from_numpy(variance))
    certain = prior.log_odds.numpy()[:, 0]
    assert (certain[whole > 0] > 4).all()
    assert (certain[whole == 0] < -4).all()


def test_compositions_point_to_wholes_that_share_parts():
    world = SelectionWorld.vectors(sizes=(16, 7), dim=20, seed=1)
    rows = world.sample(2500)
    found = pure_directions(rows.codes[0], rows.activations[1], 14)
    assert mean_correlation(found.directions, world.directions[1]) > 0.95
    assert np.linalg.norm(found.bias) < 0.1
