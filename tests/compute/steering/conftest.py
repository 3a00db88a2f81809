"""Tiny random models with hand-made levels, so that every edit can be worked out by hand."""

import numpy as np
import pytest
import torch

from compute.dictionaries import Dictionary
from compute.steering import ConceptLevel
from tests.tiny_models import tiny_language_model, tiny_pipeline


def random_dictionary(d, n=48, k=6, architecture="topk", seed=0):
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n, d)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = {
        "W_enc": directions.T.copy(),
        "b_enc": np.full(n, 0.01, np.float32),
        "W_dec": directions,
        "b_dec": rng.standard_normal(d).astype(np.float32) / 10,
    }
    if architecture == "jumprelu":
        weights["threshold"] = np.full(n, 0.3, np.float32)
    if architecture == "gated":
        del weights["b_enc"]
        weights |= {
            "b_gate": np.full(n, -0.2, np.float32),
            "b_mag": np.full(n, 0.1, np.float32),
            "r_mag": np.full(n, 0.05, np.float32),
        }
    return Dictionary.from_weights(architecture, weights, k=k)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def language_model():
    return tiny_language_model("llama")


@pytest.fixture(scope="session")
def levels():
    """Two levels of the tiny language model."""
    return (
        ConceptLevel(
            1,
            "layer-00",
            "layers.0.output",
            random_dictionary(32),
            largest=np.full(48, 3.0, np.float32),
        ),
        ConceptLevel(2, "layer-01", "layers.1.output", random_dictionary(32, seed=1)),
    )


def quiet(family):
    pipeline = tiny_pipeline(family)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def pipeline():
    return quiet("ddim")


@pytest.fixture(scope="session")
def prompted():
    return quiet("sd")


@pytest.fixture(scope="session")
def diffusion_levels():
    return (
        ConceptLevel(1, "late", "up_blocks.0", random_dictionary(32), timestep=200),
        ConceptLevel(2, "early", "mid_block", random_dictionary(32, seed=1), timestep=700),
    )
