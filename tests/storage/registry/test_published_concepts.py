"""A concept of a published version, and what versions, graphs and concepts show in a notebook."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from storage.artifacts import Registry
from storage.exports.notebook import shaded
from storage.graph.concept_graph import ConceptGraph
from storage.registry.published_concepts import UnknownConcept
from tests.storage.registry.test_artifacts import LEVELS, make_files

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class ConceptTags(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def version(tmp_path):
    """A version whose every text is hostile, so far as the format lets texts be."""
    graph = ConceptGraph.from_columns(
        {
            "level": [0, 1, 1, 2],
            "index": [0, 0, 1, 5],
            "label": [HOSTILE, HOSTILE, "quiet", None],
            "frequency": [0.5, 0.25, 0.125, 0.0625],
            "kind": [None, HOSTILE, None, "selection"],
        },
        {
            "source": ["1:0", "1:1", "0:0"],
            "target": ["2:5", "2:5", "1:0"],
            "strength": [-0.2, 0.9, 0.4],
            "confidence": [0.9, 0.8, 0.7],
        },
    )
    examples = [
        {"index": 0, "tokens": ["a", HOSTILE], "values": [0.0, 2.0], "activation": 2.0},
        {"index": 0, "tokens": ["b"], "values": [3.0], "activation": 3.0},
    ]
    files = make_files()
    files |= {f"graph/{path}": data for path, data in graph.files().items()}
    files["examples/low.json"] = json.dumps(examples).encode()
    files["report.html"] = b"<!doctype html>"
    levels = [level | {"hookpoint": HOSTILE} for level in LEVELS]
    Registry(tmp_path).publish("toy", files, fingerprint="f", levels=levels)
    return Registry(tmp_path).load("toy")


def test_a_concept_knows_what_the_files_say_of_it(version):
    whole = version.concept("2:5")
    assert (whole.level, whole.index, whole.label) == (2, 5, "")
    assert whole.metrics == {"frequency": 0.0625, "kind": "selection"}
    # Strongest first, whatever the sign.
    assert [part.id for part in whole.parents] == ["1:1", "1:0"]
    assert [edge["strength"] for edge in whole.edges] == [-0.2, 0.9]
    assert whole.examples == []
    part = version.concept("1:0")
    assert [example["activation"] for example in part.examples] == [3.0, 2.0]
    assert [(child.id, child.level) for child in part.children] == [("2:5", 2)]
    np.testing.assert_array_equal(part.direction, version.dictionary(1).directions[0])


def test_observed_variables_have_no_direction_and_no_examples(version):
    observed = version.concept("0:0")
    assert observed.examples == []
    with pytest.raises(ValueError, match=r"^0:0 is an observed variable and has no direction\.$"):
        observed.direction  # noqa: B018


@pytest.mark.parametrize("unknown", ["2:6", "9:0", "2", "nonsense", ""])
def test_an_unknown_concept_is_refused_in_a_sentence(version, unknown):
    with pytest.raises(UnknownConcept) as caught:
        version.concept(unknown)
    assert str(caught.value) == (
        f"concept {unknown!r} is not in the graph: give an id LEVEL:INDEX such as '2:5', with one "
        "of the levels 0, 1, 2."
    )


def test_what_an_example_or_a_dictionary_leaves_out_is_no_error(tmp_path):
    """Records may leave anything out; graphs and dictionaries come from different hands."""
    graph = ConceptGraph.from_columns(
        {"level": [1, 1, 3], "index": [0, 99, 0]},
        {name: [] for name in ("source", "target", "strength", "confidence")},
    )
    examples = [
        {"index": None, "tokens": ["nobody"]},
        {"tokens": ["nobody"]},
        {"index": 0, "tokens": None, "values": None, "activation": None},
        {"index": 0, "tokens": ["a"], "values": [1.0, 2.0], "activation": 1.0},
    ]
    files = make_files()
    files |= {f"graph/{path}": data for path, data in graph.files().items()}
    files["examples/low.json"] = json.dumps(examples).encode()
    Registry(tmp_path).publish("toy", files, fingerprint="f", levels=LEVELS)
    version = Registry(tmp_path).load("toy")
    concept = version.concept("1:0")
    assert concept.examples == [examples[3], examples[2]]
    assert "nobody" not in concept._repr_html_()
    for each in ("1:99", "3:0"):
        with pytest.raises(KeyError, match=r"has no (direction|level)"):
            version.concept(each).direction  # noqa: B018
        assert version.concept(each).examples == []


def test_a_levels_files_are_read_once(version, monkeypatch):
    read = []
    plain = version.read
    monkeypatch.setattr(
        version, "read", lambda path, **most: read.append(path) or plain(path, **most)
    )
    for _ in range(3):
        version.concept("1:0").direction  # noqa: B018
        version.concept("1:1").examples  # noqa: B018
    assert len(read) == len(set(read))


def test_hostile_texts_stay_text_in_a_notebook(version):
    shown = [
        version,
        version.graph,
        *(version.concept(i) for i in version.graph.nodes["id"].to_pylist()),
    ]
    for each in shown:
        page = ConceptTags()
        page.feed(each._repr_html_())
        page.close()
        known = {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "ol", "li", "span"}
        assert page.tags <= known, each
        assert page.attributes <= {"style"}, each
        assert "script" not in page.tags
    for each in (version.concept("1:0"), version.graph, version):
        page = ConceptTags()
        page.feed(each._repr_html_())
        # What was said is all there, as text.
        assert HOSTILE in page.text, each


def test_a_notebook_shades_tokens_by_their_activation():
    told = shaded({"tokens": ["dark", "light"], "values": [4.0, 1.0]})
    assert '0.60)">dark' in told
    assert '0.15)">light' in told
    assert shaded({"tokens": ["a caption"], "values": [0.0] * 16}) == "a caption"
    assert "inf" not in shaded({"tokens": ["none"], "values": [0.0]})
    assert shaded({}) == ""
