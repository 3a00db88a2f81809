import numpy as np
import pytest
import torch

from compute.dictionaries import fit_dictionary
from compute.dictionaries.evaluation import (
    Evaluator,
    consistency,
    evaluate,
    match_directions,
    mean_correlation,
    recurrence,
)


@pytest.fixture(scope="module")
def rows():
    return torch.randn(300, 8, generator=torch.Generator().manual_seed(0)) * 2 + 100


@pytest.fixture(scope="module")
def dictionary(rows):
    return fit_dictionary(rows, 32, 4, steps=30, batch_size=64)


def test_evaluation_is_that_of_all_rows_at_once(rows, dictionary):
    codes = dictionary.encode(rows)
    error = (dictionary.decode(codes) - rows).double().square().sum()
    expected = 1 - error / (rows - rows.mean(0)).double().square().sum()
    for size in (7, 300):
        found = evaluate(dictionary, rows.split(size))
        assert found.explained_variance == pytest.approx(float(expected), abs=1e-5)
        assert found.n_rows == 300
        assert found.l0 == pytest.approx(float((codes > 0).sum(1).double().mean()))
        np.testing.assert_allclose(found.frequencies, (codes > 0).double().mean(0))
        np.testing.assert_allclose(found.maxima, codes.amax(0), rtol=1e-5)
        assert found.dead_share == pytest.approx(float(((codes > 0).sum(0) == 0).double().mean()))


def test_batches_of_unequal_means_do_not_flatter(dictionary, rows):
    """The mean of per-batch values would call the difference between batches explained or not."""
    ordered = rows[rows[:, 0].argsort()]
    assert evaluate(dictionary, ordered.split(30)).explained_variance == pytest.approx(
        evaluate(dictionary, rows.split(30)).explained_variance, abs=1e-5
    )


def test_an_empty_stream_is_refused(dictionary):
    with pytest.raises(ValueError, match="no row"):
        evaluate(dictionary, [])


def test_matching_finds_a_permutation_whatever_signs_and_lengths():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20, 30))
    order = rng.permutation(20)
    found = match_directions(-3 * true[order], true)
    np.testing.assert_array_equal(found.second, order)
    assert found.mcc == pytest.approx(1)


def test_each_direction_is_matched_once():
    true = np.eye(4)
    assert mean_correlation(np.repeat(true[:1], 4, axis=0), true) == pytest.approx(1 / 4)


def test_consistency_is_the_mean_over_pairs(dictionary):
    other = torch.randn(32, 8, generator=torch.Generator().manual_seed(5))
    pair = mean_correlation(dictionary.directions, other)
    assert consistency([dictionary, other]) == pytest.approx(pair)
    assert consistency([dictionary, dictionary, other]) == pytest.approx((1 + 2 * pair) / 3)
    with pytest.raises(ValueError, match="at least two"):
        consistency([dictionary])


def test_directions_of_other_dimension_are_refused():
    with pytest.raises(ValueError, match="one d"):
        mean_correlation(np.eye(3), np.eye(4))


def test_other_codes_than_its_own_can_be_evaluated(dictionary, rows):
    own, other = Evaluator(dictionary), Evaluator(dictionary)
    own.update(rows)
    other.update(rows, dictionary.encode(rows))
    assert other.result().summary() == own.result().summary()
    none = Evaluator(dictionary)
    none.update(rows, torch.zeros(len(rows), dictionary.n_concepts))
    assert none.result().l0 == 0
    assert none.result().explained_variance < own.result().explained_variance


def test_what_comes_again_is_matched_once_and_what_does_not_counts_nothing():
    eye = torch.eye(4)
    assert recurrence(eye[:3], [eye[[1, 0, 2]], -eye[:3]]) == pytest.approx([1, 1, 1])
    assert recurrence(eye[:3], [eye[:2], eye[:3]]) == pytest.approx([1, 1, 0.5])
