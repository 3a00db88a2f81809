"""The registry: publishing, reading, aliases, retention, damage and hostile names."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.artifacts import (
    AliasMoved,
    CorruptArtifact,
    Registry,
    Retention,
    UnknownArtifact,
    UnknownVersion,
)
from storage.exports.saelens import to_saelens
from storage.graph.concept_graph import ConceptGraph

N, D = 8, 5


def make_files(seed=0, levels=("low", "high")):
    rng = np.random.default_rng(seed)
    files = {}
    for level in levels:
        w_dec = rng.normal(size=(N, D))
        w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
        weights = {
            "W_enc": w_dec.T,
            "W_dec": w_dec,
            "b_enc": np.zeros(N),
            "b_dec": np.zeros(D),
        }
        weights = {name: array.astype(np.float32) for name, array in weights.items()}
        for path, data in to_saelens(weights, architecture="topk", k=2).items():
            files[f"dictionaries/{level}/{path}"] = data
    graph = ConceptGraph.from_columns(
        {"level": [1] * N + [2] * N, "index": [*range(N), *range(N)]},
        {
            "source": ["1:0", "1:1"],
            "target": ["2:0", "2:0"],
            "strength": [0.5, 0.25],
            "confidence": [0.9, 0.8],
        },
    )
    files |= {f"graph/{path}": data for path, data in graph.files().items()}
    files["examples/low.json"] = json.dumps([{"concept": 3, "text": "a"}]).encode()
    files["report.html"] = b"<!doctype html>"
    return files


LEVELS = [
    {"level": 1, "name": "low", "hookpoint": "layers.3", "n_concepts": N, "d": D},
    {"level": 2, "name": "high", "hookpoint": "layers.9", "n_concepts": N, "d": D},
]


def publish(registry, name="toy", seed=0, **options):
    options = {"fingerprint": f"f{seed}", "levels": LEVELS} | options
    return registry.publish(name, make_files(seed), **options)


def small(registry, number, name="toy", **options):
    return registry.publish(name, {"a.txt": b"%d" % number}, fingerprint=f"f{number}", **options)


@pytest.fixture(params=["local", "memory"])
def registry(request, tmp_path):
    return Registry(
        str(tmp_path / "registry") if request.param == "local" else f"memory://{tmp_path.name}/r"
    )


def test_a_version_can_be_read_back_in_every_part(registry):
    reference = publish(registry, lineage={"model": "toy"}, metrics={"fit": 0.9})
    artifact = registry.load("toy")
    assert artifact.reference == reference == registry.resolve("toy", 1)
    assert artifact.version == 1
    assert artifact.manifest.lineage == {"model": "toy"}
    assert artifact.manifest.counts == {"levels": 2, "concepts": 2 * N, "nodes": 2 * N, "edges": 2}
    assert [entry.name for entry in artifact.levels] == ["low", "high"]
    by_number, by_name = artifact.dictionary(2), artifact.dictionary("high")
    np.testing.assert_array_equal(by_number.directions, by_name.directions)
    assert artifact.graph.parents("2:0") == ["1:0", "1:1"]
    assert artifact.examples(1) == [{"concept": 3, "text": "a"}]
    assert artifact.report == b"<!doctype html>"
    artifact.verify()
    with pytest.raises(KeyError):
        artifact.read("../../secret")
    with pytest.raises(KeyError):
        artifact.dictionary("middle")


def test_the_folder_is_readable_without_us(tmp_path):
    registry = Registry(tmp_path)
    publish(registry)
    artifact = registry.load("toy")
    assert artifact.report_path.read_bytes() == artifact.report
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=artifact.path, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest["version"] == 1
    assert set(manifest["files"]) == set(artifact.files)


def test_a_fingerprint_is_published_once(registry):
    first = small(registry, 1)
    assert small(registry, 1) == first
    again = registry.publish("toy", {"a.txt": b"other"}, fingerprint="f1")
    assert again == first
    rejected = small(registry, 1, status="rejected", rejections=["too few edges"])
    assert (rejected.version, rejected.status) == (2, "rejected")
    assert [v.version for v in registry.versions("toy")] == [1, 2]


def test_equal_content_has_an_equal_hash_whatever_the_report_says(registry):
    files = make_files()
    hashes = set()
    for i, name in enumerate(["one", "two"]):
        own = files | {"report.html": b"took %d s" % i, "README.md": b"%d" % i}
        when = datetime(2026, 1, 1 + i, tzinfo=UTC)
        reference = registry.publish(name, own, fingerprint=str(i), levels=LEVELS, created_at=when)
        hashes.add(reference.content_hash)
    assert len(hashes) == 1
    own = files | {"examples/low.json": b"[]"}
    third = registry.publish("one", own, fingerprint="x", levels=LEVELS)
    assert third.content_hash not in hashes


def test_files_can_be_given_by_path(registry, tmp_path):
    source = tmp_path / "big.bin"
    source.write_bytes(b"x" * 100_000)
    registry.publish("toy", {"big.bin": source}, fingerprint="f")
    assert registry.load("toy").read("big.bin") == source.read_bytes()


def test_parents_and_latest(registry):
    assert small(registry, 1).parent is None
    assert small(registry, 2).parent == 1
    small(registry, 3, status="rejected")
    assert registry.resolve("toy").version == 2
    assert small(registry, 4).parent == 2
    assert small(registry, 5, parent=1).parent == 1
    assert small(registry, 6, parent=None).parent is None
    with pytest.raises(UnknownVersion):
        small(registry, 7, parent=99)
    assert [v.version for v in registry.versions("toy", status="published")] == [1, 2, 4, 5, 6]


def test_an_artifact_with_only_rejected_versions_has_no_latest(registry):
    small(registry, 1, status="rejected")
    assert registry.aliases("toy") == {}
    with pytest.raises(UnknownVersion):
        registry.load("toy")
    assert registry.load("toy", 1).status == "rejected"


def test_aliases_move_and_remember(registry):
    for i in (1, 2, 3):
        small(registry, i)
    registry.promote("toy", 1, "production")
    registry.promote("toy", "latest", "production", expected=1, reason="better")
    assert registry.aliases("toy") == {"latest": 3, "production": 3}
    moves = registry.history("toy", "production")
    assert [(m.previous, m.version, m.reason) for m in moves] == [(None, 1, ""), (1, 3, "better")]
    with pytest.raises(AliasMoved):
        registry.promote("toy", 2, "production", expected=1)
    registry.withdraw("toy", "production")
    assert registry.aliases("toy") == {"latest": 3}
    for unknown in ("production", "never"):
        with pytest.raises(UnknownVersion):
            registry.load("toy", unknown)


def test_latest_can_be_rolled_back_until_the_next_publication(registry):
    small(registry, 1)
    small(registry, 2)
    registry.promote("toy", 1, "latest", reason="2 is bad")
    assert registry.load("toy").version == 1
    small(registry, 3, status="rejected")
    assert registry.load("toy").version == 1
    small(registry, 4)
    assert registry.load("toy").version == 4
    history = registry.history("toy", "latest")
    assert [(m.previous, m.version) for m in history] == [(None, 1), (1, 2), (2, 1), (1, 4)]


def test_rejected_versions_carry_no_alias(registry):
    small(registry, 1)
    small(registry, 2, status="rejected", rejections=["dead share 0.4 is above 0.1"])
    for alias in ("latest", "production"):
        with pytest.raises(ValueError, match="dead share"):
            registry.promote("toy", 2, alias)


def test_unknown_things_say_so(registry):
    assert registry.names() == []
    for call in (registry.load, registry.versions, registry.aliases):
        with pytest.raises(UnknownArtifact, match="toy"):
            call("toy")
    small(registry, 1)
    for version in (2, "2", "v2", 0, -1):
        with pytest.raises((UnknownVersion, ValueError)):
            registry.load("toy", version)
    assert registry.load("toy", "v1").version == registry.load("toy", "1").version == 1
    assert registry.names() == ["toy"]


@pytest.mark.parametrize("alias", ["12", "v3", "../x", "", "a/b", "latest\u200b"])
def test_hostile_aliases_are_refused(registry, alias):
    small(registry, 1)
    with pytest.raises(ValueError, match="alias"):
        registry.promote("toy", 1, alias)


# ---- retention -------------------------------------------------------------------------------


def test_retention_keeps_what_has_an_alias(registry):
    for i in range(1, 11):
        small(registry, i)
    registry.promote("toy", 2, "production")
    registry.promote("toy", 4, "latest")
    plan = registry.collect_garbage(retention=Retention(keep_last=3), dry_run=True)
    assert [v.version for v in registry.versions("toy")] == list(range(1, 11))
    done = registry.collect_garbage(retention=Retention(keep_last=3))
    assert plan == done
    assert done.versions == {"toy": (1, 3, 5, 6, 7)}
    assert [v.version for v in registry.versions("toy")] == [2, 4, 8, 9, 10]
    assert registry.load("toy").version == 4
    with pytest.raises(UnknownVersion, match="removed"):
        registry.load("toy", 5)
    with pytest.raises(UnknownVersion, match="removed"):
        registry.promote("toy", 5)
    assert registry.collect_garbage(retention=Retention(keep_last=3)).versions == {}
    for kept in registry.versions("toy"):
        registry.load("toy", kept.version, verify=True)


def test_numbers_are_never_given_out_twice(registry):
    small(registry, 1)
    small(registry, 2, status="rejected")
    small(registry, 3, status="rejected")
    registry.collect_garbage(retention=Retention(keep_last=1))
    assert [v.version for v in registry.versions("toy")] == [1, 3]
    assert small(registry, 2).version == 4


def test_young_versions_are_kept_if_the_policy_says_so(registry):
    old = datetime.now(UTC) - timedelta(days=9)
    for i in range(1, 6):
        small(registry, i, created_at=old + timedelta(days=2 * i))
    done = registry.collect_garbage(retention=Retention(keep_last=1, keep_days=4))
    assert done.versions == {"toy": (1, 2)}


def test_leftovers_of_a_dead_publisher_are_collected_after_a_while(registry):
    small(registry, 1)
    stray = "toy/versions/20200101T000000Z-abc/a.txt"
    registry.location.put(stray, b"half")
    assert registry.collect_garbage().leftovers == ()
    done = registry.collect_garbage(grace=timedelta(seconds=-5))
    assert done.leftovers == ("toy/versions/20200101T000000Z-abc",)
    assert not registry.location.exists(stray)
    registry.load("toy", verify=True)


def test_a_removal_cut_short_is_finished_later(registry):
    """The change is made, and the collector dies before it deletes the folder."""
    for i in (1, 2, 3):
        small(registry, i)
    registry._shelf("toy").retract(1, reason="")
    assert [v.version for v in registry.versions("toy")] == [2, 3]
    assert registry.collect_garbage().versions == {"toy": (1,)}
    assert len(registry.location.children("toy/versions")) == 2


def test_a_promotion_and_a_removal_never_pass_each_other_by(registry, monkeypatch):
    """An alias comes to point at version 1 while a collector is about to remove it: it stays."""
    for i in (1, 2, 3):
        small(registry, i)
    shelf = registry._shelf("toy")
    append, pending = shelf._append, ["production"]

    def promoted_first(state, **change):
        if pending:
            shelf.promote(1, pending.pop(), expected=None, reason="")
        return append(state, **change)

    monkeypatch.setattr(shelf, "_append", promoted_first)
    assert registry.collect_garbage(retention=Retention(keep_last=1)).versions == {"toy": (2,)}
    assert registry.load("toy", "production", verify=True).version == 1


def test_a_removal_before_a_promotion_is_seen_by_it(registry, monkeypatch):
    for i in (1, 2, 3):
        small(registry, i)
    shelf = registry._shelf("toy")
    append, pending = shelf._append, [1]

    def removed_first(state, **change):
        if pending:
            shelf.retract(pending.pop(), reason="")
        return append(state, **change)

    monkeypatch.setattr(shelf, "_append", removed_first)
    with pytest.raises(UnknownVersion, match="removed"):
        registry.promote("toy", 1)
    assert registry.aliases("toy") == {"latest": 3}


def test_a_version_removed_while_it_is_opened_is_said_to_be_removed(registry, monkeypatch):
    for i in (1, 2):
        small(registry, i)
    select = registry._shelf("toy").select

    def collected_after(version):
        record = select(version)
        registry.collect_garbage(retention=Retention(keep_last=1))
        return record

    monkeypatch.setattr(registry._shelf("toy"), "select", collected_after)
    with pytest.raises(UnknownVersion, match="has been removed"):
        registry.load("toy", 1)


def test_two_collectors_at_once_remove_everything_once(tmp_path):
    for i in range(1, 41):
        small(Registry(tmp_path), i)
    for i in range(20):
        stray = tmp_path / f"toy/versions/20200101T000000Z-{i:012x}"
        for path in ("a.txt", "b/c.txt", "b/d.txt#1"):
            (stray / path).parent.mkdir(parents=True, exist_ok=True)
            (stray / path).write_bytes(b"half")
    code = (
        "import sys; from datetime import timedelta\n"
        "from storage.artifacts import Registry, Retention\n"
        "found = Registry(sys.argv[1]).collect_garbage("
        "retention=Retention(keep_last=2), grace=timedelta(seconds=-5))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    collectors = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for collector in collectors:
        _, said = collector.communicate(timeout=100)
        assert collector.returncode == 0, said
    assert [v.version for v in Registry(tmp_path).versions("toy")] == [39, 40]
    assert len(list((tmp_path / "toy/versions").iterdir())) == 2


# ---- repair ----------------------------------------------------------------------------------


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("how", ["missing", "flipped", "short"])
@pytest.mark.parametrize(
    "path",
    ["manifest.json", "SHA256SUMS", "README.md", "graph/nodes.parquet", "report.html", "all"],
)
def test_publishing_again_mends_a_damaged_version(tmp_path, path, how):
    registry = Registry(tmp_path)
    first = publish(registry)
    folder = registry.load("toy").path
    sound = {file: file.read_bytes() for file in every_file(folder)}
    (folder / "planted.txt").write_text("x")
    (folder / "dictionaries/linked").symlink_to("/etc/passwd")
    for file in sound if path == "all" else [folder / path]:
        damage(file, how)
    with pytest.raises(CorruptArtifact):
        registry.load("toy")
    assert publish(Registry(tmp_path)) == first
    assert {file: file.read_bytes() for file in every_file(folder)} == sound
    assert registry.load("toy").version == 1


def test_what_cannot_be_mended_is_followed_by_a_whole_version(tmp_path):
    """Other bytes under the same fingerprint: the damaged version stays as it is."""
    registry = Registry(tmp_path)
    registry.publish("toy", {"a.txt": b"1", "b.txt": b"2"}, fingerprint="f")
    registry.promote("toy", 1)
    folder = registry.load("toy").path
    (folder / "a.txt").write_bytes(b"0")
    again = registry.publish("toy", {"a.txt": b"other", "b.txt": b"2"}, fingerprint="f")
    assert again.version == 2
    assert registry.load("toy", verify=True).read("a.txt") == b"other"
    assert registry.publish("toy", {"a.txt": b"third"}, fingerprint="f") == again
    assert (folder / "b.txt").read_bytes() == b"2"
    assert registry.aliases("toy") == {"latest": 2, "production": 1}
    with pytest.raises(CorruptArtifact, match=r"a\.txt"):
        registry.load("toy", "production")


def test_a_folder_in_the_place_of_a_file_cannot_be_mended_and_is_followed(tmp_path):
    registry = Registry(tmp_path)
    small(registry, 1)
    file = registry.load("toy").path / "a.txt"
    file.unlink()
    (file / "sub").mkdir(parents=True)
    assert small(registry, 1).version == 2
    registry.load("toy", verify=True)


# ---- collectors that meddle -------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["_upload", "_written", "append"])
def test_a_folder_that_is_collected_while_it_is_published_is_given_up(
    registry, monkeypatch, moment
):
    """Whenever the collector comes, the publisher returns a version that is whole."""
    import storage.registry.drafts as publishing

    small(registry, 1)
    times = []

    def collect(*_, **__):
        times.append(1)
        if len(times) <= 2:
            registry.collect_garbage(grace=timedelta(seconds=-5))

    def after(function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            collect()
            return result

        return call

    if moment == "_upload":
        monkeypatch.setattr(publishing, "_upload", after(publishing._upload))
    elif moment == "_written":
        monkeypatch.setattr(publishing._Claim, "_written", after(publishing._Claim._written))
    else:
        # Between the last look before the claim and the claim itself.
        monkeypatch.setattr(publishing, "_record", after(publishing._record))
    done = registry.publish("toy", {"a.txt": b"2", "b/c.txt": b"3"}, fingerprint="f2")
    assert len(times) == 3
    fresh = Registry(registry.url)
    fresh.load("toy", done.version, verify=True)
    assert done.version == (4 if moment == "append" else 2)
    assert [v.version for v in fresh.versions("toy")] == [1, done.version]
    for reference in fresh.versions("toy"):
        fresh.load("toy", reference.version, verify=True)


def test_a_folder_that_is_always_collected_is_said_so(registry, monkeypatch):
    from storage.artifacts import CollectedMeanwhile
    from storage.registry.shelves import Shelf

    monkeypatch.setattr(Shelf, "is_condemned", lambda self, folder: True)
    with pytest.raises(CollectedMeanwhile, match="grace"):
        small(registry, 1)
    assert registry.names() == []
    assert registry.location.children("toy/versions") == []


def test_a_claim_of_unknown_outcome_leaves_its_folder(registry, monkeypatch):
    """The store took the record, and the answer was lost: nothing may delete the files."""
    shelf = registry._shelf("toy")
    append = shelf.records.append

    def lost(*arguments, **options):
        append(*arguments, **options)
        raise TimeoutError("no answer")

    monkeypatch.setattr(shelf.records, "append", lost)
    with pytest.raises(TimeoutError):
        small(registry, 1)
    assert Registry(registry.url).load("toy", verify=True).version == 1


def test_a_collector_tells_age_by_the_clock_of_the_store(registry, monkeypatch):
    """Its own is 25 hours ahead; what was written a moment ago is left alone."""
    import storage.registry.retention as retention
    import storage.registry.shelves as shelves

    small(registry, 1)
    registry.location.put("toy/versions/20200101T000000Z-abc/a.txt", b"half")

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=25)

    monkeypatch.setattr(retention, "datetime", Ahead)
    monkeypatch.setattr(shelves, "datetime", Ahead)
    done = registry.collect_garbage(retention=Retention(keep_last=1, keep_days=0.5))
    assert (done.leftovers, done.versions) == ((), {})


# ---- damage ----------------------------------------------------------------------------------


def every_file(folder: Path):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_every_bit_flip_is_found_by_file_name(tmp_path):
    registry = Registry(tmp_path)
    publish(registry)
    folder = registry.load("toy").path
    rng = np.random.default_rng(0)
    for path in every_file(folder):
        sound = path.read_bytes()
        for at in {0, len(sound) - 1, int(rng.integers(len(sound)))}:
            damaged = bytearray(sound)
            damaged[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            name = path.relative_to(folder).as_posix()
            with pytest.raises(CorruptArtifact, match=path.name) as caught:
                registry.load("toy")
            assert caught.value.files == (name,)
        path.write_bytes(sound)
    registry.load("toy")


def test_every_bit_of_a_record_counts(tmp_path):
    registry = Registry(tmp_path)
    small(registry, 1)
    registry.promote("toy", 1)
    for path in ("records/00000001.json", "changes/00000001.json"):
        file = tmp_path / "toy" / path
        sound = file.read_bytes()
        for at in range(len(sound)):
            damaged = bytearray(sound)
            damaged[at] ^= 1
            file.write_bytes(damaged)
            with pytest.raises(CorruptArtifact, match=r"00000001\.json"):
                Registry(tmp_path).load("toy", "production")
        file.write_bytes(sound)


def test_missing_and_added_files_are_found(tmp_path):
    registry = Registry(tmp_path)
    publish(registry)
    folder = registry.load("toy").path
    (folder / "report.html").unlink()
    (folder / "planted.txt").write_text("x")
    with pytest.raises(CorruptArtifact) as caught:
        registry.load("toy")
    assert set(caught.value.files) == {"report.html", "planted.txt"}
    lazy = registry.load("toy", verify=False)
    assert lazy.graph.n_edges == 2
    with pytest.raises(CorruptArtifact, match=r"report\.html"):
        _ = lazy.report
    (folder / "manifest.json").unlink()
    with pytest.raises(CorruptArtifact, match=r"manifest\.json"):
        registry.load("toy", verify=False)


def test_damage_is_found_when_read_without_verification_up_front(tmp_path):
    registry = Registry(tmp_path)
    publish(registry)
    weights = registry.load("toy").path / "dictionaries/low/sae_weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    artifact = registry.load("toy", verify=False)
    artifact.dictionary("high")
    with pytest.raises(CorruptArtifact, match="dictionaries/low/sae_weights"):
        artifact.dictionary("low")


def test_a_copy_is_complete(registry, tmp_path):
    publish(registry)
    artifact = registry.load("toy")
    copy = artifact.save_to(tmp_path / "copy")
    names = {path.relative_to(copy).as_posix() for path in every_file(copy)}
    assert names == {*artifact.files, "manifest.json", "SHA256SUMS"}
    with pytest.raises(FileExistsError):
        artifact.save_to(copy)


# ---- hostile input ---------------------------------------------------------------------------

HOSTILE = [
    "../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "a\0b", "C:x", ".hidden", "-rf", "x" * 129,
    "caf\u00e9", "ﬁle", "a\u202eb", "a\u200b", "a b", "a\n", "~", "x.", "%2e%2e", "🦊",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(tmp_path, name):
    registry = Registry(tmp_path / "deep" / "registry")
    for call in (
        lambda: registry.publish(name, {"a": b""}, fingerprint="f"),
        lambda: registry.load(name),
        lambda: registry.versions(name),
        lambda: registry.promote(name, 1),
        lambda: registry.collect_garbage(name),
    ):
        with pytest.raises(ValueError, match="name"):
            call()
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_as_a_name_is_either_safe_or_refused(name):
    registry = Registry("memory://names/r")
    try:
        registry.publish(name, {"a": b"1"}, fingerprint="f")
    except ValueError:
        return
    assert name.isascii()
    assert not set(name) & set("/\\ \0")
    assert name in registry.names()


@pytest.mark.parametrize(
    "paths",
    [
        *([path] for path in HOSTILE if path != "a/b"),
        ["a/../b"], ["a//b"], ["a/"], ["manifest.json"], ["SHA256SUMS"], ["/".join("abcdefghi")],
        ["A.txt", "a.TXT"], ["a", "a/b"],
    ],
)  # fmt: skip
def test_hostile_file_paths_are_refused(tmp_path, paths):
    registry = Registry(tmp_path)
    with pytest.raises(ValueError, match=r"path|name"):
        registry.publish("toy", dict.fromkeys(paths, b""), fingerprint="f")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fingerprint": ""}, "fingerprint"),
        ({"levels": LEVELS[:1]}, "levels"),
        ({"levels": [LEVELS[0], LEVELS[0] | {"name": "high"}]}, "level"),
        ({"levels": [LEVELS[0] | {"name": "../x"}, LEVELS[1]]}, "level name"),
        ({"levels": [LEVELS[0] | {"width": 3}, LEVELS[1]]}, "width"),
        ({"metrics": {"fit": float("nan")}}, "metrics"),
        ({"lineage": {"x": object()}}, "lineage"),
        ({"status": "half"}, "status"),
        ({"rejections": ["bad"]}, "rejections"),
        ({"created_at": datetime(2026, 1, 1)}, "time zone"),
    ],
)
def test_bad_fields_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        publish(Registry(tmp_path), **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_upload_leaves_nothing(tmp_path):
    registry = Registry(tmp_path)
    with pytest.raises(FileNotFoundError):
        registry.publish("toy", {"a": b"1", "b": tmp_path / "gone"}, fingerprint="f")
    assert registry.names() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# ---- light -----------------------------------------------------------------------------------


def test_importing_the_registry_imports_nothing_heavy():
    heavy = ["torch", "ray", "prefect", "pandas", "networkx", "scipy", "numpy", "pyarrow", "zarr"]
    code = f"import sys, storage.artifacts; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_loading_an_artifact_needs_neither_torch_nor_pandas(tmp_path):
    publish(Registry(tmp_path))
    code = (
        "import sys; from storage.artifacts import Registry; a = Registry(sys.argv[1]).load('toy');"
        "d = a.dictionary(1); a.graph.ancestors('2:0'); d.encode(d.directions); a.examples(1);"
        "heavy = ('torch', 'ray', 'prefect', 'pandas', 'networkx', 'scipy');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_page_carries_the_number_that_the_version_got(tmp_path):
    """Another publisher takes the number while the page is being written for it."""
    registry = Registry(tmp_path)
    registry.publish("toy", {"a.txt": b"1"}, fingerprint="1")
    asked = []

    def page(version, parent):
        if not asked:
            Registry(tmp_path).publish("toy", {"a.txt": b"2"}, fingerprint="2")
        asked.append(version)
        return f"version {version} after {parent}".encode()

    published = registry.publish(
        "toy", {"a.txt": b"3"}, fingerprint="3", pages={"report.html": page}
    )
    assert (published.version, asked) == (3, [2, 3])
    assert registry.load("toy", 3).report == b"version 3 after 2"


def test_only_files_that_are_not_hashed_may_be_written_late(tmp_path):
    for files, path in (({"a": b""}, "graph/x"), ({"report.html": b""}, "report.html")):
        with pytest.raises(ValueError, match="must be one of README"):
            Registry(tmp_path).publish("toy", files, fingerprint="1", pages={path: lambda *_: b""})
