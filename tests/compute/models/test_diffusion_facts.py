"""What is read of a model's description, which other people have written."""

import os

import pytest

from compute.models.diffusion_facts import read_json
from compute.models.weight_files import resolve_source


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff", None])
def test_a_description_that_is_none_is_named(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_bytes(content or b"{}")
    if content is None:
        os.truncate(file, 10 * 2**40)
    with pytest.raises(ValueError, match=r"^config\.json of .* (is not readable|has 10,995,1)"):
        read_json(resolve_source(str(tmp_path)), "config.json")
