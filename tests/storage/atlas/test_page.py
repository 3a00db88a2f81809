"""The page as text: complete, self-contained, and deaf to hostile strings."""

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.atlas import AtlasData, Concept, Level, render
from storage.atlas.packing import DETAIL_BLOCK, pack
from tests.storage.atlas.synthetic import synthetic_atlas

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{counts}}\"'&\u2028"


def unpack(block: str):
    return json.loads(zlib.decompress(base64.b64decode(block), wbits=-15))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.text = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def tags_of(page: str) -> Tags:
    parser = Tags()
    parser.feed(page)
    return parser


def single(text: str) -> AtlasData:
    return AtlasData(
        name=text,
        version=1,
        created_at="2026-03-01T02:00:00+00:00",
        title=text,
        description=text,
        facts=((text, text),),
        steps=((text, 1.0),),
        levels=(Level(level=1, name=text, hookpoint=text, n_concepts=1),),
        concepts=(Concept(id="1:0", level=1, index=0, label=text, frequency=0.5),),
    )


def test_rendering_is_deterministic():
    data = synthetic_atlas()
    assert render(data) == render(data)


def test_every_concept_edge_and_example_is_in_the_blocks():
    data = synthetic_atlas(sizes=(40, 150, 30), n_edges=200)
    blocks = {name: unpack(block) for name, block in pack(data).items()}
    core = blocks["core"]
    assert core["concepts"]["label"] == [c.label for c in data.concepts]
    ids = [f"{a}:{b}" for a, b in zip(core["concepts"]["level"], core["concepts"]["index"])]
    edges = {(ids[s], ids[t]) for s, t in zip(core["edges"]["source"], core["edges"]["target"])}
    assert edges == {(e.source, e.target) for e in data.edges}
    assert core["edges"]["strength"] == sorted(core["edges"]["strength"], reverse=True)
    for row, concept in enumerate(data.concepts):
        detail = blocks[f"detail-{row // DETAIL_BLOCK}"][row % DETAIL_BLOCK]
        shown = [tuple(example["tokens"]) for example in detail.get("examples", [])]
        assert shown == [example.tokens for example in concept.examples]


def test_rounding_keeps_four_digits():
    data = synthetic_atlas(n_edges=50)
    strengths = unpack(pack(data)["core"])["edges"]["strength"]
    exact = sorted((e.strength for e in data.edges), reverse=True)
    assert strengths == pytest.approx(exact, rel=5e-4)


def test_the_page_refers_to_nothing_outside_itself():
    page = tags_of(render(synthetic_atlas()))
    for tag, attributes in page.found:
        assert tag not in {"iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, name, value)


def test_the_policy_names_exactly_the_scripts_and_styles_that_are_there():
    page = render(synthetic_atlas())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src 'none'" in policy
    inline = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", page, re.S)
    inline += re.findall(r"<style>(.*?)</style>", page, re.S)
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in inline}
    assert hashes == set(re.findall(r"'sha256-([^']+)'", policy))
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "text", [HOSTILE, "<!--", "]]>", "<svg/onload=alert(1)>", "\\u003c/script>"]
)
def test_hostile_text_adds_no_element(text):
    harmless = [tag for tag, _ in tags_of(render(single("plain"))).found]
    hostile = tags_of(render(single(text)))
    assert [tag for tag, _ in hostile.found] == harmless
    assert not any(name.startswith("on") for _, attributes in hostile.found for name in attributes)


def test_a_title_that_looks_like_a_placeholder_stays_a_title():
    assert "{{counts}}" in render(single("{{counts}}"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_unchanged(text):
    core = unpack(pack(single(text))["core"])
    assert core["concepts"]["label"] == [text]
    assert core["run"]["title"] == text


def test_an_empty_hierarchy_renders():
    data = single("plain").model_copy(update={"concepts": (), "levels": ()})
    assert unpack(pack(data)["core"])["concepts"]["label"] == []
    assert "<main>" in render(data)
