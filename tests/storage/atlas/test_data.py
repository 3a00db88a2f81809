"""The door of the atlas: what it refuses, and in which words."""

import pytest
from pydantic import ValidationError

from storage.atlas import AtlasData, Concept, Edge, Histogram, ImageExample, Level, TokenExample
from storage.atlas.data import SteeringStrip


def _atlas(**changes):
    given = {
        "name": "toy",
        "version": 1,
        "created_at": "2026-03-01T02:00:00Z",
        "title": "Toy",
        "levels": (
            Level(level=0, name="tokens", n_concepts=1),
            Level(level=1, name="layer-07", n_concepts=2),
        ),
        "concepts": (
            Concept(id="0:0", level=0, index=0, label=" the", frequency=0.1),
            Concept(id="1:0", level=1, index=0, label="articles", frequency=0.05),
        ),
        "edges": (Edge(source="0:0", target="1:0", strength=0.5, confidence=0.9),),
    }
    return AtlasData(**(given | changes))


def test_a_sound_atlas_is_frozen_and_survives_json():
    atlas = _atlas()
    assert AtlasData.model_validate_json(atlas.model_dump_json()) == atlas
    with pytest.raises(ValidationError, match="frozen"):
        atlas.title = "Other"


@pytest.mark.parametrize("bad", ["2", "2:", ":3", "a:b", "2:03", "-1:2", "2:417 ", "2:4\n", "２:1"])
def test_ids_are_level_and_index(bad):
    with pytest.raises(ValueError, match="is not 'level:index'"):
        Edge(source=bad, target="1:0", strength=1, confidence=1)


def test_an_id_must_agree_with_its_level():
    with pytest.raises(ValueError, match="write '1:4'"):
        Concept(id="2:4", level=1, index=4, label="x", frequency=0)


def test_edges_point_upward_between_known_concepts():
    with pytest.raises(ValueError, match="does not point upward"):
        _atlas(edges=(Edge(source="1:0", target="0:0", strength=1, confidence=1),))
    with pytest.raises(ValueError, match="names concept '1:9'"):
        _atlas(edges=(Edge(source="0:0", target="1:9", strength=1, confidence=1),))


def test_ids_and_levels_are_unique_and_known():
    concept = Concept(id="0:0", level=0, index=0, label="x", frequency=0)
    with pytest.raises(ValueError, match="appears twice"):
        _atlas(concepts=(concept, concept), edges=())
    with pytest.raises(ValueError, match="repeat a level number"):
        _atlas(levels=(Level(level=0, name="a", n_concepts=1),) * 2)
    with pytest.raises(ValueError, match="which levels lacks"):
        _atlas(concepts=(Concept(id="7:0", level=7, index=0, label="x", frequency=0),), edges=())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1])
def test_shares_are_finite_and_between_0_and_1(value):
    with pytest.raises(ValidationError):
        Concept(id="1:0", level=1, index=0, label="x", frequency=value)


def test_examples_have_one_value_per_token_and_a_peak_among_them():
    with pytest.raises(ValueError, match="2 tokens and 1 values"):
        TokenExample(tokens=("a", "b"), values=(1.0,), peak=0, activation=1)
    with pytest.raises(ValueError, match="peak 2 is not among"):
        TokenExample(tokens=("a", "b"), values=(1.0, 0.0), peak=2, activation=1)


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.org/a.png",
        "javascript:alert(1)",
        "data:text/html;base64,PGI+",
        "data:image/svg+xml;base64,PHN2Zz4=",
        'data:image/png;base64,iVBO" onerror="alert(1)',
    ],
)
def test_images_are_embedded_bitmaps_and_nothing_else(uri):
    with pytest.raises(ValueError, match="is not a base64 data URI"):
        ImageExample(image=uri, activation=1)
    with pytest.raises(ValueError, match="is not a base64 data URI"):
        SteeringStrip(media="image", before=uri, after=uri)


def test_patches_are_a_grid():
    with pytest.raises(ValueError, match="ragged"):
        ImageExample(image="data:image/png;base64,AAAA", patches=((1, 2), (3,)), activation=1)


def test_histograms_have_one_edge_more_than_counts_and_rising_edges():
    with pytest.raises(ValueError, match="one edge more"):
        Histogram(edges=(0, 1), counts=(1, 2))
    with pytest.raises(ValueError, match="do not rise"):
        Histogram(edges=(0, 0, 1), counts=(1, 2))
