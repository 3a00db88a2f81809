"""Identity over time: dictionaries whose true correspondence is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from storage.graph.alignment import align, carry_ids


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def relearnt(true, rng, noise=0.3):
    """Directions found anew: permuted, and off by a noise of the given length."""
    order = rng.permutation(len(true))
    found = unit(true[order] + noise * unit(rng.normal(size=true.shape)))
    return found, order


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "d"), [(94, 128), (2000, 256), (300, 64)])
def test_relearnt_concepts_keep_their_partners(n, d, seed):
    rng = np.random.default_rng(seed)
    true = unit(rng.normal(size=(n, d)))
    (a, order_a), (b, order_b) = relearnt(true, rng), relearnt(true, rng)
    found = align(a, b)
    right = order_a[found.old] == order_b[found.new]
    assert right.sum() >= 0.95 * n
    assert (~right).sum() <= 0.02 * n
    assert len(found.gone) == len(found.born) == n - len(found.old)


@pytest.mark.parametrize("seed", range(3))
def test_replaced_concepts_are_born_and_gone(seed):
    rng = np.random.default_rng(seed)
    n, d = 1000, 128
    old_true = unit(rng.normal(size=(n, d)))
    replaced = rng.choice(n, n // 10, replace=False)
    new_true = old_true.copy()
    new_true[replaced] = unit(rng.normal(size=(len(replaced), d)))
    (a, order_a), (b, order_b) = relearnt(old_true, rng), relearnt(new_true, rng)
    found = align(a, b)
    for fate, order in ((found.gone, order_a), (found.born, order_b)):
        true, said = set(replaced.tolist()), set(order[fate].tolist())
        assert 2 * len(true & said) / (len(true) + len(said)) >= 0.9


def test_the_assignment_is_optimal():
    rng = np.random.default_rng(0)
    base = unit(rng.normal(size=(40, 6)))
    a, b = unit(base + 0.2 * rng.normal(size=(40, 6))), unit(base + 0.2 * rng.normal(size=(40, 6)))
    found = align(a, b)
    gain = np.maximum((a @ b.T).astype(float) - found.threshold, 0)
    i, j = linear_sum_assignment(-gain)
    assert (found.score - found.threshold).sum() == pytest.approx(gain[i, j].sum(), abs=1e-4)
    assert len(set(found.old.tolist())) == len(set(found.new.tolist())) == len(found.old)


def test_codes_tell_concepts_of_one_direction_apart():
    """Two pairs of near twins by direction; only their codes say who is who."""
    rng = np.random.default_rng(0)
    base = unit(rng.normal(size=(20, 64)))
    base[1] = unit(base[0] + 0.05 * unit(rng.normal(size=64)))
    codes = rng.random((2000, 20)) * (rng.random((2000, 20)) < 0.1)
    order = np.arange(20)
    order[[0, 1]] = [1, 0]
    new = unit(base + 0.3 * unit(rng.normal(size=base.shape)))
    found = align(
        base, new, old_codes=sparse.csr_matrix(codes), new_codes=sparse.csr_matrix(codes[:, order])
    )
    partner = dict(zip(found.new.tolist(), found.old.tolist()))
    assert partner[0] == 1
    assert partner[1] == 0


def test_concepts_of_the_same_codes_are_two_if_their_directions_are():
    """The last concept is gone, and another, which is active in the very same rows, is born."""
    rng = np.random.default_rng(0)
    old, _ = np.linalg.qr(rng.normal(size=(64, 21)))
    codes = sparse.csr_matrix(rng.random((2000, 20)) * (rng.random((2000, 20)) < 0.1))
    new = np.concatenate([old.T[:19], old.T[20:]])
    found = align(old.T[:20], new, old_codes=codes, new_codes=codes)
    assert found.new.tolist() == list(range(19))
    assert found.gone.tolist() == found.born.tolist() == [19]


def test_dead_concepts_have_no_fate():
    rng = np.random.default_rng(0)
    a = unit(rng.normal(size=(50, 32)))
    alive = np.arange(50) >= 10
    found = align(a, a, old_alive=alive, new_alive=alive)
    assert found.new.tolist() == list(range(10, 50))
    assert not len(found.born)
    assert not len(found.gone)


def test_thousands_of_concepts():
    rng = np.random.default_rng(0)
    true = unit(rng.normal(size=(4096, 64)).astype(np.float32))
    b, order = relearnt(true, rng)
    found = align(true, b)
    assert (order[found.new] == found.old).mean() > 0.98


@pytest.mark.parametrize("n", [0, 1])
def test_tiny_dictionaries(n):
    a = np.eye(4)[:n]
    found = align(a, np.eye(4)[:2])
    assert found.old.tolist() == list(range(n))
    assert len(found.born) == 2 - n


def test_ids_are_carried_and_new_ones_are_unique():
    rng = np.random.default_rng(0)
    a = unit(rng.normal(size=(30, 64)))
    first = carry_ids(None, [], 30, level=2, origin="aaaa")
    assert first[7] == "2:7@aaaa"
    b = a[::-1].copy()
    b[4] = unit(rng.normal(size=64))
    second = carry_ids(align(a, b), first, 30, level=2, origin="bbbb")
    assert second[0] == "2:29@aaaa"
    assert second[4] == "2:4@bbbb"
    assert len(set(second)) == 30
    with pytest.raises(ValueError, match="origin"):
        carry_ids(align(a, b), first, 30, level=2, origin="aaaa")


def test_bad_input_is_refused():
    a = np.eye(4)
    for options, message in (
        ({"new": np.eye(5)}, "width"),
        ({"new": np.full((4, 4), np.nan)}, "finite"),
        ({"old_codes": np.eye(4)}, "one dictionary only"),
        ({"old_codes": np.eye(4), "new_codes": np.eye(5)}, "shapes"),
        ({"old_alive": np.ones(3, bool)}, "old_alive"),
    ):
        with pytest.raises(ValueError, match=message):
            align(**({"old": a, "new": a} | options))
