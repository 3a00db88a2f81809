"""The model card says what the manifest says, and nothing can break out of its Markdown."""

from __future__ import annotations

from datetime import UTC, datetime

import yaml

from storage.artifacts import Registry
from storage.exports.model_card import model_card
from storage.registry.manifests import FileEntry, LevelEntry, Manifest, content_hash

FILES = {
    "dictionaries/low/cfg.json": FileEntry(sha256="0" * 64, bytes=1),
    "graph/graph.graphml": FileEntry(sha256="1" * 64, bytes=1),
}


def make_manifest(**changes):
    fields = {
        "name": "toy",
        "version": 7,
        "status": "published",
        "created_at": datetime(2026, 3, 1, 2, 30, tzinfo=UTC),
        "parent": 6,
        "fingerprint": "f",
        "lineage": {"model": "HuggingFaceTB/SmolLM2-135M", "settings": {"learn": {"k": 32}}},
        "levels": (
            LevelEntry(
                level=1,
                name="low",
                hookpoint="layers.7",
                n_concepts=64,
                d=8,
                metrics={"l0": 32.0, "denoising_loss_recovered": 0.625},
            ),
        ),
        "metrics": {"edges_f1": 0.912345},
        "counts": {"concepts": 64, "edges": 1200},
        "files": FILES,
        "content_hash": content_hash(FILES),
    } | changes
    return Manifest(**fields)


def front_matter(card):
    _, header, body = card.decode().split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_is_what_the_hub_expects():
    header, body = front_matter(model_card(make_manifest()))
    assert header["library_name"] == "saelens"
    assert header["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    for said in (
        "toy, version 7",
        "following version 6",
        "1,200 edges",
        "dictionaries/low",
        "layers.7",
        "settings.learn.k",
        "0.9123",
        "| width | l0 | denoising_loss_recovered |",
        "0.625",
        'SAE.load_from_disk("dictionaries/low")',
    ):
        assert said in body.replace("\\", "")


def test_a_path_is_not_taken_for_a_model_on_the_hub():
    header, _ = front_matter(model_card(make_manifest(lineage={"model": "/data/models/x.gguf"})))
    assert "base_model" not in header


def test_a_rejected_version_says_why():
    card = model_card(make_manifest(status="rejected", rejections=("dead share 0.4 is above 0.1",)))
    assert "Rejected" in card.decode()
    assert "dead share 0.4 is above 0.1" in card.decode()


def test_markdown_in_names_stays_text():
    hostile = "x|y\n# <script>alert(1)</script> [a](b)"
    card = model_card(make_manifest(lineage={hostile: hostile})).decode()
    assert "<script>" not in card.replace("\\<", "")
    rows = [line for line in card.splitlines() if "script" in line]
    assert len(rows) == 1
    assert not any(line.startswith("# ") and "script" in line for line in card.splitlines())


def test_every_version_has_a_card(tmp_path):
    registry = Registry(tmp_path)
    registry.publish("toy", {"a.txt": b"1"}, fingerprint="1")
    registry.publish("toy", {"a.txt": b"1", "README.md": b"mine"}, fingerprint="2")
    assert b"toy, version 1" in registry.load("toy", 1).read("README.md")
    assert registry.load("toy", 2).read("README.md") == b"mine"
