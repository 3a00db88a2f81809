"""One-hot rows of observed variables, of which there may be none."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from compute.steps.observed import ObservedVariables

ROWS = np.array([3, 7, 9, 3, 8])
SAMPLES = np.array([0, 0, 1, 1, 0])
WORDS = csr_matrix(np.array([[1, 0], [0, 1]], dtype=np.float32))


@pytest.mark.parametrize(
    ("values", "hot"),
    [
        ([3, 8], [[1, 0], [0, 0], [0, 0], [1, 0], [0, 1]]),
        ([9], [[0], [0], [1], [0], [0]]),
        ([], [[], [], [], [], []]),
    ],
)
def test_rows_are_one_where_the_variable_is(values, hot):
    values = np.array(values, dtype=np.int64)
    labels = tuple(map(str, values))
    alone = ObservedVariables(values, labels).matrix(ROWS, SAMPLES)
    assert alone.shape == (5, len(labels))
    np.testing.assert_array_equal(alone.toarray(), np.array(hot).reshape(5, -1))
    both = ObservedVariables(values, (*labels, "a", "b"), WORDS).matrix(ROWS, SAMPLES)
    np.testing.assert_array_equal(both.toarray()[:, : len(labels)], alone.toarray())
    np.testing.assert_array_equal(both.toarray()[:, len(labels) :], WORDS[SAMPLES].toarray())
