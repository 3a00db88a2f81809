from __future__ import annotations

import os

import pytest

import compute
from compute.models.weight_files import resolve_source, weight_files


def test_folders_below_a_package_are_found_by_dotted_names():
    folder = resolve_source("package:compute.models").folder
    assert folder is not None
    assert folder.samefile(f"{compute.__path__[0]}/models")


@pytest.mark.parametrize(
    "name",
    ["compute.none", "compute...etc", "compute./etc", "compute.settings", ".", "", "none.a"],
)
def test_names_that_are_no_folder_of_a_package_are_refused(name):
    with pytest.raises(ValueError, match="names no installed package"):
        resolve_source(f"package:{name}")


def test_only_files_are_weights(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    os.mkfifo(tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").mkdir()
    assert weight_files(tmp_path) == [tmp_path / "a.safetensors"]
