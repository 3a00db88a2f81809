from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_models import tiny_language_model, tiny_pipeline, word_tokenizer


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def save_language_model(tmp_path_factory):
    """A tiny random model of a real class, saved with a tokenizer as a standard folder."""
    folders: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            tiny_language_model(family).save_pretrained(folders[family])
            word_tokenizer().save_pretrained(folders[family])
        return folders[family]

    return save


@pytest.fixture(scope="session")
def save_pipeline(tmp_path_factory):
    """A tiny random pipeline of a real class, saved as a standard folder."""
    folders: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            tiny_pipeline(family).save_pretrained(folders[family])
        return folders[family]

    return save
