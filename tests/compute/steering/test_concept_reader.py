"""Codes of a few concepts equal the whole encoding's, whatever the screen holds."""

import numpy as np
import pytest
import torch

from compute.steering.concept_reader import ConceptReader
from tests.compute.steering.conftest import random_dictionary


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_whole_encoding(architecture, seed):
    dictionary = random_dictionary(24, n=2000, k=8, architecture=architecture, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    concepts = np.random.default_rng(seed).choice(2000, 12, replace=False)
    reader = ConceptReader(dictionary, concepts)
    for size in (1, 64, 300, 300, 1, 500):
        x = torch.randn(size, 24, generator=generator)
        x += 2 * dictionary.directions[concepts[:1]] * torch.rand(size, 1, generator=generator)
        expected = dictionary.encode(x)[:, concepts]
        torch.testing.assert_close(reader.codes(x), expected, rtol=1e-5, atol=1e-6)
        assert expected.any() or size == 1
    if architecture == "topk":
        assert reader._screen is not None
