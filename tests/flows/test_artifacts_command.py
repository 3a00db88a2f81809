"""`strata artifacts`: what its commands print, write and refuse."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from storage.artifacts import Registry
from storage.exports.saelens import read_saelens_folder, to_saelens
from storage.graph.concept_graph import ConceptGraph
from storage.records import canonical_json, digest

RNG = np.random.default_rng(0)
DIRECTIONS = np.linalg.qr(RNG.normal(size=(16, 16)))[0].astype(np.float32)


def version_files(n_concepts, strength):
    weights = {
        "W_enc": DIRECTIONS[:n_concepts].T.copy(),
        "W_dec": DIRECTIONS[:n_concepts],
        "b_enc": np.zeros(n_concepts, np.float32),
        "b_dec": np.zeros(16, np.float32),
    }
    graph = ConceptGraph.from_columns(
        {
            "level": [0, *[1] * n_concepts],
            "index": [0, *range(n_concepts)],
            "label": ["cat", *(f"c{i}" for i in range(n_concepts))],
            "concept": [None, *(f"1:{i}@first" for i in range(n_concepts))],
            "recurrence": [None, *(0.5 + i / 16 for i in range(n_concepts))],
        },
        {"source": ["0:0"], "target": ["1:0"], "strength": [strength], "confidence": [1.0]},
    )
    examples = pa.Table.from_pylist(
        [{"index": 1, "activation": 2.0, "tokens": ["a", "cat"], "values": [0.0, 2.0]}]
    )
    sink = io.BytesIO()
    pq.write_table(examples, sink)
    dictionary = to_saelens(weights, architecture="topk", k=2, frequency=np.full(n_concepts, 0.1))
    return {
        **{f"dictionaries/low/{path}": data for path, data in dictionary.items()},
        **{f"graph/{path}": data for path, data in graph.files().items()},
        "examples/low.parquet": sink.getvalue(),
    }


@pytest.fixture
def store(tmp_path):
    registry = Registry(tmp_path / "store" / "artifacts")
    for number, (n_concepts, strength) in enumerate([(4, 1.0), (5, 2.0)], 1):
        seeds = {"agreement": 0.75} if number == 2 else {}
        registry.publish(
            "toy",
            version_files(n_concepts, strength),
            fingerprint=str(number),
            levels=[
                {"level": 1, "name": "low", "hookpoint": "layers.0.output"}
                | {
                    "n_concepts": n_concepts,
                    "d": 16,
                    "metrics": {"l0": 2.0, "cross_entropy_recovered": 0.875} | seeds,
                }
            ],
        )
    return tmp_path / "store"


@pytest.fixture
def strata(store):
    def run(*arguments, code=0):
        done = CliRunner().invoke(app, ["artifacts", *arguments, "--store", str(store)])
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_versions_are_listed_and_shown(strata):
    assert [v["version"] for v in json.loads(strata("list", "--json"))] == [1, 2]
    assert "latest" in strata("list")
    shown = strata("show", "toy", "v1")
    assert "toy v1" in shown
    assert "2.000" in shown
    assert "cross-entropy" in shown
    assert "0.875" in shown
    # What no level has is no column.
    assert "agreement" not in shown
    assert "0.750" in strata("show", "toy", "v2")


def test_versions_are_compared(strata):
    told = json.loads(strata("compare", "toy", "v1", "v2", "--json"))
    assert told["counts"] == {
        "concepts": {"kept": 4, "changed": 0, "born": 1, "gone": 0},
        "edges": {"kept": 0, "changed": 1, "born": 0, "gone": 0},
    }
    text = strata("compare", "toy", "1")
    assert "strength 1 → 2" in text
    assert "level 1 low: 4 concepts in both, mean |cosine| 1.000, agreement" in text


STEERS = "\x1b]0;mine\x07\u009b2J\u202e"


def test_no_word_of_another_steers_a_terminal(strata, store):
    """Labels, reasons, names of files and what an error repeats are of whoever wrote the store."""
    registry = Registry(store / "artifacts")
    label = f"[/b]{STEERS}"
    for number in (1.0, 2.0):
        graph = ConceptGraph.from_columns(
            {"level": [1], "index": [0], "label": [f"{label}{number}"], "concept": ["1:0@x"]},
            {name: [] for name in ("source", "target", "strength", "confidence")},
        )
        files = {f"graph/{path}": data for path, data in graph.files().items()}
        registry.publish(
            "odd", files, fingerprint=f"{number}", rejections=[label], status="rejected"
        )
    registry.publish("odd", {"x.txt": b"1"}, fingerprint="3")
    registry.promote("odd", 3, reason=label)
    said = strata("compare", "odd", "1", "2") + strata("compare", "odd", "1", "2", "--json")
    said += strata("show", "odd", "1") + strata("history", "odd", "production")
    said += strata("history", "odd", "production", "--json") + strata("compare", "odd", "3", code=2)
    record = store / "artifacts/odd/records/00000003.json"
    body = json.loads(record.read_bytes()) | {"artifact": label}
    del body["digest"]
    record.write_bytes(canonical_json(body | {"digest": digest(canonical_json(body))}))
    said += strata("show", "odd", code=2)
    (store / f"artifacts/odd/{STEERS}").write_text("")
    done = CliRunner().invoke(app, ["doctor", str(store)])
    assert done.exit_code == 1
    said += done.output
    assert said.isascii() or not {"\x1b", "\x07", "\u009b", "\u202e"} & set(said)
    assert said.count("mine") > 6


def test_one_damaged_artifact_hides_no_other(strata, store):
    registry = Registry(store / "artifacts")
    registry.publish("a-bad", {"x.txt": b"1"}, fingerprint="1")
    record = store / "artifacts/a-bad/records/00000001.json"
    record.write_text("{}")
    (store / "artifacts/a-link").symlink_to("toy")
    listed = strata("list", "--json", code=2)
    assert "a-bad/records/00000001.json is damaged" in listed
    assert '"name": "toy"' in listed
    said = strata("clean", "--keep-last", "1", code=2)
    assert "is damaged" in said
    assert [version.version for version in registry.versions("toy")] == [2]


def test_what_a_version_lacks_is_said_in_a_sentence(strata, store):
    Registry(store / "artifacts").publish("bare", {"x.txt": b"1"}, fingerprint="1")
    for command in (["compare", "bare", "1"], ["export", "bare", "--format", "graphml"]):
        assert strata(*command, code=2).startswith("error: bare version 1 has no")


def test_aliases_move_and_keep_their_history(strata):
    assert "production → v1" in strata("promote", "toy", "1", "--reason", "looks good")
    assert "before v1" in strata("promote", "toy", "2", "--expected", "1")
    strata("promote", "toy", "1", "--expected", "1", code=2)
    assert json.loads(strata("alias", "toy", "--json")) == {"latest": 2, "production": 2}
    moves = json.loads(strata("history", "toy", "production", "--json"))
    assert [(move["previous"], move["version"]) for move in moves] == [(None, 1), (1, 2)]
    strata("withdraw", "toy", "production")
    assert "production" not in strata("alias", "toy")


def test_exports_are_loaded_by_others(strata, tmp_path):
    for form in ("saelens", "hub", "graphml", "neuronpedia"):
        strata("export", "toy", "--format", form, "--to", str(tmp_path / form))
    assert read_saelens_folder(tmp_path / "saelens" / "low").k == 2
    assert (tmp_path / "hub" / "README.md").read_text().startswith("---\nlibrary_name: saelens")
    read = nx.read_graphml(tmp_path / "graphml" / "graph.graphml")
    assert read.has_edge("0:0", "1:0")
    # How a concept comes again from other seeds goes along, of a concept and of its level.
    assert read.nodes["1:1"]["recurrence"] == 0.5625
    graph = json.loads((tmp_path / "neuronpedia" / "graph.json").read_text())
    assert len(graph["nodes"]) == 6
    assert [node["recurrence"] for node in graph["nodes"] if node["node_id"] == "1_1_0"] == [0.5625]
    release = tmp_path / "neuronpedia" / "toy" / "1-strata" / "release.jsonl"
    assert "mean |cosine| of 0.750" in json.loads(release.read_text())["description"]
    features = tmp_path / "neuronpedia" / "toy" / "1-strata" / "features" / "batch-0.jsonl.gz"
    row = json.loads(gzip.decompress(features.read_bytes()))
    assert row["index"] == "1"
    assert row["frac_nonzero"] == pytest.approx(0.1)


def test_damage_is_found_and_named(strata, store):
    assert "is whole" in strata("verify", "toy", "1")
    damaged = next((store / "artifacts").glob("toy/versions/*/graph/graph.json"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b" ")
    version = json.loads((damaged.parents[1] / "manifest.json").read_text())["version"]
    assert "graph/graph.json does not match its digest" in strata(
        "verify", "toy", str(version), code=2
    )


def test_old_versions_are_removed_on_request(strata):
    strata("promote", "toy", "2")
    assert "would remove toy v1" in strata("clean", "--keep-last", "1", "--dry-run")
    strata("clean", "toy", "--keep-last", "1")
    assert [v["version"] for v in json.loads(strata("list", "--json"))] == [2]


def test_a_registry_of_the_older_form_is_renewed(store, monkeypatch):
    """With a key its aliases are refused until somebody has looked at them and says so."""
    monkeypatch.setenv("STRATA_WITNESS", "off")
    old = Path(__file__).parents[1] / "storage" / "registry" / "registry_of_form_1"
    shutil.rmtree(store / "artifacts" / "toy")
    shutil.copytree(old / "toy", store / "artifacts" / "toy")

    def run(*arguments):
        return CliRunner().invoke(app, ["artifacts", *arguments, "--store", str(store)])

    assert json.loads(run("alias", "toy", "--json").output) == {"latest": 2, "production": 2}
    for variable in ("STRATA_SIGNING_KEY", "STRATA_TRUSTED_KEYS"):
        monkeypatch.setenv(variable, "hmac-sha256:" + "ab" * 16)
    refused = run("list")
    assert refused.exit_code == 2
    assert "run `strata artifacts renew toy`" in refused.output
    assert "toy latest → v2, production → v2" in run("renew", "toy").output
    listed = run("list").output
    assert [line.split()[1] for line in listed.splitlines()[1:]] == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("show", "nope"), "no artifact 'nope'"),
        (("show", "toy", "7"), "version 7 does not exist"),
        (("compare", "toy", "old", "new"), "no alias 'old'"),
        (("verify", "../toy"), "not a safe name"),
        (("promote", "toy", "1", "--alias", "v3"), "reads like a version number"),
        (("withdraw", "toy", "production"), "no alias 'production'"),
        (("history", "toy", "production"), "no alias 'production'"),
        (("renew", "toy"), "set STRATA_SIGNING_KEY"),
        (("export", "toy", "--format", "onnx"), "format 'onnx' is unknown"),
        (("clean", "--keep-last", "0"), "keep_last = 0"),
        (("clean", "--keep-days", "2"), "keep_days is given without keep_last"),
        (("serve", "--host", "0.0.0.0"), "reachable from elsewhere"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(strata, arguments, reason):
    said = strata(*arguments, code=2)
    assert reason in said
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1


def test_words_of_a_publisher_do_not_steer_the_terminal(tmp_path):
    hostile = "\x1b[2J[/] [bold]x\r"
    registry = Registry(tmp_path / "store" / "artifacts")
    registry.publish(
        "toy",
        {"dictionaries/low/cfg.json": b"{}"},
        fingerprint="1",
        levels=[{"level": 1, "name": "low", "n_concepts": 1, "d": 1, "metrics": {"l0": [hostile]}}],
        counts={hostile: 3},
        status="rejected",
        rejections=[hostile],
    )
    registry.publish("toy", {"x": b""}, fingerprint="2")
    registry.promote("toy", 2, reason=hostile)
    for command in (["show", "toy", "1"], ["history", "toy", "production"], ["list"]):
        done = CliRunner().invoke(app, ["artifacts", *command, "--store", str(tmp_path / "store")])
        assert done.exit_code == 0, done.output
        assert not {"\x1b", "\r"} & set(done.output)


@pytest.mark.parametrize("command", [["list"], ["show", "toy"], ["verify", "toy"], ["serve"]])
def test_no_refusal_repeats_a_secret(command):
    url = "s3://me:hunter2@bucket/x?X-Amz-Signature=hunter2"
    done = CliRunner().invoke(app, ["artifacts", *command, "--store", url])
    assert done.exit_code == 2
    assert "s3://bucket/x" in done.output
    assert "hunter2" not in done.output


def test_a_host_that_the_service_answers_to_is_a_name(store):
    done = CliRunner().invoke(
        app, ["artifacts", "serve", "--allowed-host", "http://x", "--store", str(store)]
    )
    assert done.exit_code == 2
    assert "give it without scheme, port or path" in done.output
