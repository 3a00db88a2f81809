"""What the pictures of the pages show, and how large they may be; the pictures need a real run."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from storage.graph.concept_graph import ConceptGraph
from tests.browser.pictures import MOST, save, telling_concept


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_a_picture_is_saved_with_the_colours_that_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.browser.pictures.MOST_BYTES", 4000)
    rows, columns = np.mgrid[:100, :100]
    smooth = np.stack([rows * 2, columns * 2, rows + columns], axis=-1).astype(np.uint8)
    save(png(smooth), tmp_path / "new" / "smooth.png")
    assert (tmp_path / "new" / "smooth.png").stat().st_size <= 4000
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"^noise\.png takes .* with 32 colours: show less\.$"):
        save(png(noise), tmp_path / "noise.png")
    assert not (tmp_path / "noise.png").exists()


def test_the_concept_that_is_shown_names_a_thing_and_has_few_named_kin():
    labels = {"0:0": "a", "1:0": "red", "1:1": "", "2:0": "tree · left", "2:1": "car · left"}
    labels |= {"2:2": "left", "2:3": "house · left", "2:4": "boat · left"}
    labels |= {f"3:{i}": "top" for i in range(MOST + 1)}
    edges = [("1:0", "2:0"), ("2:0", "3:0"), ("1:1", "2:1"), ("2:1", "3:1"), ("1:0", "2:2")]
    edges += [("0:0", "1:0"), ("0:0", "1:1"), ("2:2", "3:0"), ("2:4", "3:0")]
    edges += [("1:0", "2:3"), *(("2:3", f"3:{i}") for i in range(MOST + 1))]
    graph = ConceptGraph.from_columns(
        {
            "level": [int(name[0]) for name in labels],
            "index": [int(name[2:]) for name in labels],
            "label": list(labels.values()),
        },
        {
            "source": [source for source, _ in edges],
            "target": [target for _, target in edges],
            "strength": [1.0] * len(edges),
            "confidence": [1.0] * len(edges),
        },
    )
    # Not that with unnamed kin, nor that which names a place alone, has too much kin, or no parts.
    assert telling_concept(SimpleNamespace(graph=graph)) == "2:0"
