"""Concepts found by contrast, by example and by word."""

import numpy as np
import pytest
import torch

from compute.steering import contrast, find_by_word, mean_codes, saeuron_scores, strongest


def test_mean_codes_are_the_encoding_s(language_model, levels):
    ids = torch.arange(4, 20).reshape(2, 8)
    found = mean_codes(language_model, levels, [lambda: language_model(ids)])
    seen = []
    handle = language_model.model.layers[0].register_forward_hook(
        lambda m, a, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        language_model(ids)
    handle.remove()
    expected = levels[0].dictionary.encode(seen[0]).mean(1)
    np.testing.assert_allclose(found[1], expected, atol=1e-5)
    assert found[2].shape == (2, 48)


def test_contrast_and_example_find_what_was_planted():
    rng = np.random.default_rng(0)
    absent = {1: rng.random((40, 30)).astype(np.float32)}
    present = {1: rng.random((40, 30)).astype(np.float32)}
    present[1][:, 7] += 1.0
    for score in ("separation", "saeuron"):
        found = contrast(present, absent, score=score, limit=3)
        assert found[0].id == "1:7"
        assert found[0].score > 2 * found[1].score
    shares = present[1].mean(0) / present[1].mean(0).sum()
    others = absent[1].mean(0) / absent[1].mean(0).sum()
    np.testing.assert_allclose(saeuron_scores(present[1], absent[1]), shares - others, atol=1e-6)
    assert strongest(present, limit=1)[0].index == 7


def test_words_are_found_in_labels_and_examples(artifact):
    nodes = [n for n in artifact.graph.nodes.to_pylist() if n["level"] and n["label"]]
    word = nodes[0]["label"].split()[0].strip(".,")
    found = find_by_word(artifact, word)
    assert found
    assert all(word.lower() in f.label.lower() or f.score <= 1 for f in found)
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    assert find_by_word(artifact, "no-such-word-anywhere") == []
    with pytest.raises(ValueError, match="empty"):
        find_by_word(artifact, "  ")
