"""The permutation is a bijection, fixed by its seed, and mixes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.tables.permutation import Permutation


@given(st.integers(0, 3000), st.integers(0, 2**32))
def test_is_a_bijection(n, seed):
    image = Permutation(n, seed)(np.arange(n))
    assert sorted(image.tolist()) == list(range(n))


@given(st.integers(1, 10**12), st.integers(0, 2**32))
def test_stays_in_a_large_domain_and_is_injective(n, seed):
    points = np.unique(np.linspace(0, n - 1, 257).astype(np.int64))
    image = Permutation(n, seed)(points)
    assert image.min() >= 0
    assert image.max() < n
    assert len(np.unique(image)) == len(points)


def test_seed_fixes_the_result():
    points = np.arange(1000)
    assert (Permutation(1000, 7)(points) == Permutation(1000, 7)(points)).all()
    assert (Permutation(1000, 7)(points) != Permutation(1000, 8)(points)).mean() > 0.99


@pytest.mark.parametrize("n", [1_000, 65_536, 100_000])
def test_neighbours_are_scattered_evenly(n):
    image = Permutation(n, 3)(np.arange(n))
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.1
    # The first tenth of the inputs falls evenly on tenths of the output: chi-square with 9 degrees
    # of freedom exceeds 40 with probability below 1e-5.
    counts = np.bincount(image[: n // 10] * 10 // n, minlength=10)
    assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 40
