"""Reading one version: what lies there is looked at before it is read, by every way of reading."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import storage.registry.manifests
from storage.artifacts import CorruptArtifact, Registry, UnknownArtifact
from storage.exports.formats import FORMATS, export
from storage.exports.saelens import to_saelens
from storage.graph.concept_graph import ConceptGraph
from storage.records import canonical_json, digest
from storage.registry.manifests import Manifest, check_files

LEVEL = {"level": 1, "name": "low", "n_concepts": 4, "d": 3}


def files(**changes):
    w_dec = np.eye(4, 3, dtype=np.float32) + np.eye(4, 3, k=-3, dtype=np.float32)
    weights = {"W_enc": w_dec.T, "W_dec": w_dec, "b_enc": np.zeros(4), "b_dec": np.zeros(3)}
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    graph = ConceptGraph.from_columns(
        {"level": [1, 2], "index": [0, 0]},
        {"source": ["1:0"], "target": ["2:0"], "strength": [1.0], "confidence": [1.0]},
    )
    found = {f"graph/{path}": data for path, data in graph.files().items()}
    found |= {
        f"dictionaries/low/{path}": data
        for path, data in to_saelens(weights, architecture="topk", k=2).items()
    }
    found["examples/low.json"] = canonical_json(
        [{"index": 0, "tokens": ["a"], "values": [1.0], "activation": 1.0}]
    )
    return found | changes


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


@pytest.fixture
def artifact(registry):
    registry.publish("toy", files(), fingerprint="1", levels=[LEVEL])
    return registry.load("toy")


PATH = "dictionaries/low/sae_weights.safetensors"


def grow(path):
    with path.open("r+b") as stream:
        stream.truncate(10**13)


def replace(by):
    def act(path):
        data = path.read_bytes()
        path.unlink()
        by(path, data)

    return act


def link(path, data):
    aside = path.parent.parent.parent.parent / "aside"
    aside.write_bytes(data)
    path.symlink_to(aside)


def folder_link(path):
    aside = path.parent.parent.parent.parent / "aside"
    path.parent.rename(aside)
    path.parent.symlink_to(aside)


DAMAGES = {
    "a sparse 10 TB": (grow, "has 10,000,000,000,000 bytes instead of"),
    "a pipe": (replace(lambda path, _: os.mkfifo(path)), "no regular file"),
    "a device": (replace(lambda path, _: path.symlink_to("/dev/zero")), "no regular file"),
    "a link to the same bytes": (replace(link), "no regular file"),
    "a folder that is a link": (folder_link, "no regular file"),
    "a folder": (replace(lambda path, _: path.mkdir()), "no regular file"),
    "missing": (replace(lambda path, _: None), "is missing"),
    "one byte less": (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes instead of"),
    "one byte changed": (
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"~"),
        "does not match its digest",
    ),
}
READERS = {
    "verify": lambda artifact, _: artifact.verify(),
    "read": lambda artifact, _: artifact.read(PATH),
    "open": lambda artifact, _: artifact.open(PATH),
    "dictionary": lambda artifact, _: artifact.dictionary(1),
    "save_to": lambda artifact, folder: artifact.save_to(folder / "copy"),
    "export to hub": lambda artifact, folder: export(artifact, "hub", folder / "copy"),
    "export to saelens": lambda artifact, folder: export(artifact, "saelens", folder / "copy"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_before_it_does_harm(artifact, tmp_path, damage, reader):
    harm, message = DAMAGES[damage]
    harm(artifact.path / PATH)
    with pytest.raises(CorruptArtifact, match=message) as caught:
        READERS[reader](artifact, tmp_path)
    if damage == "a folder that is a link":
        assert caught.value.files[0].startswith("dictionaries/low/")
    else:
        assert PATH in caught.value.files
    assert not [path.name for path in tmp_path.iterdir() if "copy" in path.name]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_the_registry_s_own_files_are_looked_at_too(registry, artifact, damage, name):
    if damage == "a folder that is a link":
        pytest.skip("these files lie in no folder")
    DAMAGES[damage][0](artifact.path / name)
    with pytest.raises(CorruptArtifact, match=name):
        registry.load("toy")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", ["a sparse 10 TB", "a pipe", "a device", "a folder"])
def test_a_record_is_looked_at_too(registry, artifact, damage):
    DAMAGES[damage][0](registry.location.local_path / "toy/records/00000001.json")
    # What is no file is no record either.
    refused = CorruptArtifact if damage == "a sparse 10 TB" else UnknownArtifact
    with pytest.raises(refused, match="toy"):
        Registry(registry.url).load("toy")


@pytest.mark.timeout(60)
def test_what_is_not_listed_is_named_however_deep_or_many(artifact):
    deep = artifact.path
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (artifact.path / "loop").symlink_to(".")
    for number in range(300):
        (artifact.path / f"stranger-{number}").touch()
    with pytest.raises(CorruptArtifact, match="is not listed") as caught:
        artifact.verify()
    assert 100 < len(caught.value.files) < 120


def test_a_copy_is_whole_or_is_not_there(artifact, tmp_path):
    copy = artifact.save_to(tmp_path / "new" / "copy")
    assert {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()} == {
        *artifact.files,
        "SHA256SUMS",
        "manifest.json",
    }
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    for form in FORMATS:
        export(artifact, form, tmp_path / form)
    with pytest.raises(FileExistsError, match="is not empty"):
        export(artifact, "hub", tmp_path / "hub")


def test_a_file_is_hashed_once_for_as_long_as_it_is_not_written(artifact, monkeypatch):
    path = artifact.path / PATH
    hashed = []
    real = storage.registry.manifests.hash_file
    monkeypatch.setattr(
        "storage.registry.versions.hash_file", lambda source: hashed.append(1) or real(source)
    )
    old = path.stat().st_mtime - 60

    def read():
        with artifact.open(PATH) as found:
            return b"".join(found.blocks())

    # A file's change of status is what no writer can set: seen as of long ago.
    monkeypatch.setattr("time.time_ns", lambda: int((old + 3600) * 1e9))
    assert read() == read() == path.read_bytes()
    assert len(hashed) == 1
    path.write_bytes(path.read_bytes()[:-1] + b"~")
    os.utime(path, (old, old))
    with pytest.raises(CorruptArtifact, match="does not match its digest"):
        read()


# ---- manifests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a/x", "A/y"], "'a' and 'A' differ only in case"),
        (["a/x", "a/X"], "differ only in case"),
        (["a", "A/x"], "differ only in case"),
        (["a", "a/x"], "a file and a folder at once"),
        (["aux"], "device on Windows"),
        (["x/NUL.txt"], "device on Windows"),
        ([f"f{n}" for n in range(10_001)], "more than 10,000"),
        (["/".join("a" * 9)], "deeper than 8"),
    ],
)
def test_paths_that_some_disk_could_not_hold_are_refused(paths, message):
    with pytest.raises(ValueError, match=message):
        check_files(paths)


def test_levels_do_not_differ_in_case_alone(registry):
    both = {path.replace("/low/", "/LOW/"): data for path, data in files().items()} | files()
    levels = [LEVEL, LEVEL | {"level": 2, "name": "LOW"}]
    with pytest.raises(ValueError, match="only in case"):
        registry.publish("toy", both, fingerprint="1", levels=levels)


def test_what_no_reader_takes_is_not_published(registry):
    deep: list[object] = []
    for _ in range(40):
        deep = [deep]
    with pytest.raises(ValueError, match="lineage is not plain JSON"):
        registry.publish("toy", {"x": b""}, fingerprint="1", lineage={"deep": deep})
    lineage = {"long": "x" * 2**24}
    with pytest.raises(ValueError, match="manifest would have"):
        registry.publish("toy", {"x": b""}, fingerprint="1", lineage=lineage)
    with pytest.raises(TypeError, match="'metric' is nothing that can be said"):
        registry.publish("toy", {"x": b""}, fingerprint="1", metric={})
    assert registry.names() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"version": 1', '"version": 1, "version": 1'),
        lambda text: text.replace('"counts": {', '"counts": {"concepts": NaN, '),
        lambda text: text.replace('"lineage": {', '"lineage": {"x": ' + "[" * 10**5 + ", "),
        lambda text: text.replace('"lineage": {', '"lineage": {"x": 1e999, '),
        lambda text: text.replace('"lineage": {', '"lineage": {"x": ' + "9" * 5000 + ", "),
        lambda text: text.replace('"lineage": {', '"lineage": {"x": "\\ud800", '),
        lambda text: text.replace('"parent": null', '"parent": []'),
        lambda text: "[]",
        lambda text: "null",
        lambda text: "",
    ],
)
def test_a_hostile_manifest_is_refused(artifact, change):
    data = change((artifact.path / "manifest.json").read_text()).encode()
    assert data != artifact.manifest.to_bytes()
    with pytest.raises(CorruptArtifact, match=r"manifest\.json is not valid"):
        Manifest.from_bytes(data)


ODD = [
    None,
    True,
    0,
    -1,
    2**63,
    10**19,
    1e308,
    "",
    "../x",
    "\x1b[2J",
    "con",
    "\u202e",
    [],
    {},
    [None],
]
ODD += [{"a": {}}, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "x" * 64, "2026-01-01"]


def places(value, path=()):
    """Every place of a JSON value, as the keys that lead there."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def test_odd_values_anywhere_in_a_manifest_are_read_or_refused(artifact):
    sound = artifact.manifest.to_bytes()
    read = refused = 0
    for path in places(json.loads(sound)):
        for odd in ODD:
            changed = {"": json.loads(sound)}
            place = changed
            for key in ("", *path)[:-1]:
                place = place[key]
            place[("", *path)[-1]] = odd
            try:
                manifest = Manifest.from_bytes(json.dumps(changed[""]).encode())
            except CorruptArtifact:
                refused += 1
            else:
                assert Manifest.from_bytes(manifest.to_bytes()) == manifest
                read += 1
    assert read > 50
    assert refused > 500


def test_a_manifest_that_is_too_long_is_not_read(registry, artifact):
    data = artifact.manifest.to_bytes() + b" " * 2**24
    (artifact.path / "manifest.json").write_bytes(data)
    record = registry.location.local_path / "toy/records/00000001.json"
    entry = json.loads(record.read_bytes())["entry"] | {"manifest_sha256": digest(data)}
    body = {"entry": entry, "signature": None}
    record.write_bytes(canonical_json(body | {"digest": digest(canonical_json(body))}))
    with pytest.raises(CorruptArtifact, match=r"manifest\.json has .* which is more than"):
        Registry(registry.url).load("toy")


# ---- content -----------------------------------------------------------------------------------


def parquet(columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def load(registry, changes):
    name = f"toy-{digest(canonical_json(sorted(changes)))[:8]}-{os.urandom(4).hex()}"
    registry.publish(name, files(**changes), fingerprint="1", levels=[LEVEL])
    return registry.load(name, verify=False)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("dictionaries/low/cfg.json", b"{"),
        ("dictionaries/low/cfg.json", b"[" * 10**5),
        ("dictionaries/low/cfg.json", b"[]"),
        (
            "dictionaries/low/cfg.json",
            b'{"architecture": "topk", "d_in": 3, "d_sae": 4, "k": 2, "metadata": [1]}',
        ),
        ("dictionaries/low/cfg.json", b'{"architecture": [], "d_in": {}, "d_sae": 1}'),
        (PATH, b""),
        (PATH, b"\xff" * 100),
        (PATH, (2**63 - 1).to_bytes(8, "little") + b"{}"),
        (PATH, (2).to_bytes(8, "little") + b"{}"),
        (PATH, (60).to_bytes(8, "little") + b'{"W_enc":{"dtype":"F32","shape":[9999999999999],'),
    ],
)
def test_a_hostile_dictionary_is_named(registry, path, data):
    artifact = load(registry, {path: data})
    with pytest.raises(CorruptArtifact) as caught:
        artifact.dictionary(1)
    assert path in caught.value.files
    with pytest.raises(CorruptArtifact):
        export(artifact, "neuronpedia", registry.location.local_path / "out")


@pytest.mark.parametrize(
    "records",
    [
        b"{}",
        b"[1]",
        b'[{"index": "0"}]',
        b'[{"index": true}]',
        b'[{"index": -1}]',
        b'[{"index": 1e400}]',
        b'[{"index": 0, "tokens": "abc"}]',
        b'[{"index": 0, "tokens": [1], "values": [1]}]',
        b'[{"index": 0, "tokens": ["a"], "values": ["1"]}]',
        b'[{"index": 0, "tokens": ["a"], "values": [null]}]',
        b'[{"index": 0, "activation": {}}]',
        b'[{"index": 0, "document": []}]',
        b"[" * 10**5,
        b'[{"index": 0, "index": 1}]',
    ],
)
def test_hostile_examples_are_named(registry, records):
    artifact = load(registry, {"examples/low.json": records})
    with pytest.raises(CorruptArtifact) as caught:
        artifact.examples(1)
    assert caught.value.files == ("examples/low.json",)


def test_examples_of_a_concept_that_is_not_there_are_refused(registry, tmp_path):
    records = b'[{"index": 99, "tokens": ["a"], "values": [1]}]'
    artifact = load(registry, {"examples/low.json": records})
    with pytest.raises(ValueError, match="speak of concept 99, and its dictionary has 4"):
        export(artifact, "neuronpedia", tmp_path / "out")
    assert not (tmp_path / "out").exists()


CELLS = st.one_of(
    st.none(),
    st.integers(-(2**40), 2**40),
    st.floats(),
    st.text(max_size=4),
    st.booleans(),
    st.binary(max_size=3),
    st.lists(st.integers(0, 3) | st.text(max_size=2), max_size=2),
)


@st.composite
def tables(draw, names):
    rows = draw(st.integers(0, 3))
    columns = {}
    for name in draw(st.lists(st.sampled_from([*names, "extra"]), unique=True)):
        values = draw(st.lists(CELLS, min_size=rows, max_size=rows))
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError):
            columns[name] = pa.nulls(rows)
    return parquet(columns)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    tables(["id", "level", "index", "label", "frequency", "kind"]),
    tables(["source", "target", "strength", "confidence", "verdict", "sign"]),
)
def test_any_columns_make_a_graph_or_are_named(nodes, edges):
    registry = Registry(f"memory://{os.urandom(8).hex()}")
    changes = {"graph/nodes.parquet": nodes, "graph/edges.parquet": edges}
    artifact = load(registry, changes)
    named = ()
    try:
        canonical_json(artifact.graph.to_node_link())
    except CorruptArtifact as error:
        named = error.files
    assert set(named) <= set(changes)
