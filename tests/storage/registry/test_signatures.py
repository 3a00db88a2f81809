"""Signed registries: what an unknown hand has written is refused."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.artifacts import (
    BadSignature,
    CorruptArtifact,
    Registry,
    Retention,
    RolledBack,
    UnknownArtifact,
    UnknownVersion,
)
from storage.registry.signatures import Keyring, SigningKey

OLD_FORM = Path(__file__).with_name("registry_of_form_1")
REFUSED = (BadSignature, CorruptArtifact, UnknownArtifact)
SECRET, OTHER = "hmac-sha256:" + "ab" * 16, "hmac-sha256:" + "cd" * 16


def ed25519_pair():
    keys = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    private = keys.Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw().hex()
    return f"ed25519:{private.private_bytes_raw().hex()}", f"ed25519:{public}"


@pytest.fixture(autouse=True)
def without_witness(monkeypatch):
    monkeypatch.setenv("STRATA_WITNESS", "off")


def open_registry(url, signing=None, trusted=()):
    parse = SigningKey.parse
    return Registry(
        url,
        keyring=Keyring(
            parse(signing, variable="x") if signing else None,
            tuple(parse(key, variable="x") for key in trusted),
        ),
    )


def copy_file(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def publish(registry):
    registry.publish("toy", {"a.txt": b"1"}, fingerprint="f")
    registry.promote("toy", 1)


@pytest.mark.parametrize("scheme", ["hmac-sha256", "ed25519"])
def test_only_trusted_signatures_are_accepted(tmp_path, scheme):
    private, public = (SECRET, SECRET) if scheme == "hmac-sha256" else ed25519_pair()
    publish(open_registry(tmp_path, private))
    assert open_registry(tmp_path, trusted=[OTHER, public]).load("toy", "production").version == 1
    assert open_registry(tmp_path).load("toy").version == 1
    with pytest.raises(BadSignature, match="no trusted key"):
        open_registry(tmp_path, trusted=[OTHER]).load("toy")


def test_unsigned_versions_and_moves_are_refused_where_trust_is_asked_for(tmp_path):
    publish(open_registry(tmp_path / "a"))
    with pytest.raises(BadSignature, match="not signed"):
        open_registry(tmp_path / "a", trusted=[SECRET]).load("toy")
    forged = tmp_path / "a/toy/changes/00000001.json"
    (tmp_path / "b/toy").mkdir(parents=True)
    open_registry(tmp_path / "b", SECRET).publish("toy", {"a.txt": b"1"}, fingerprint="f")
    trusting = open_registry(tmp_path / "b", trusted=[SECRET])
    assert trusting.load("toy").version == 1
    copy_file(forged, tmp_path / "b/toy/changes/00000001.json")
    for version in ("production", "latest", 1):
        with pytest.raises(BadSignature, match=r"changes/00000001\.json is not signed"):
            trusting.load("toy", version)


def test_without_a_key_nothing_is_added_to_what_is_signed(tmp_path):
    """Readers that trust the other entries would refuse everything from then on."""
    publish(open_registry(tmp_path / "a", SECRET))
    open_registry(tmp_path / "b", SECRET).publish("toy", {"a.txt": b"1"}, fingerprint="f")
    for registry in (open_registry(tmp_path / "a"), open_registry(tmp_path / "b")):
        for add in (
            lambda registry: registry.publish("toy", {"a.txt": b"2"}, fingerprint="g"),
            lambda registry: registry.promote("toy", 1, "staging"),
        ):
            with pytest.raises(BadSignature, match="STRATA_SIGNING_KEY"):
                add(registry)
        assert open_registry(registry.url, trusted=[SECRET]).load("toy").version == 1


def test_who_signs_a_change_vouches_for_no_stranger(tmp_path):
    """An alias that was moved without a key does not become a signed one by the next move."""
    registry = open_registry(tmp_path)
    for number in (1, 2):
        registry.publish("toy", {"a.txt": b"%d" % number}, fingerprint=f"{number}")
    registry.promote("toy", 1)
    private, public = ed25519_pair()
    signer = open_registry(tmp_path, private)
    with pytest.raises(BadSignature, match="strata artifacts renew toy"):
        signer.promote("toy", 2, "staging")
    with pytest.raises(BadSignature, match="set STRATA_SIGNING_KEY"):
        registry.renew("toy")
    assert signer.renew("toy") == {"production": 1} == signer.renew("toy")
    assert len(list((tmp_path / "toy/changes").iterdir())) == 2
    signer.promote("toy", 2, "staging")
    moves = registry.history("toy", "production")
    assert [(move.version, move.reason) for move in moves] == [(1, ""), (1, "renewed")]
    signer.publish("toy", {"a.txt": b"3"}, fingerprint="3")
    trusting = open_registry(tmp_path, trusted=[public])
    assert trusting.load("toy").version == 3
    with pytest.raises(BadSignature, match=r"records/00000002\.json is not signed"):
        trusting.load("toy", "staging")


def test_a_changed_signature_is_damage_even_without_trusted_keys(tmp_path):
    publish(open_registry(tmp_path, SECRET))
    record = tmp_path / "toy/records/00000001.json"
    record.write_bytes(record.read_bytes().replace(b'"value":"', b'"value":"0'))
    with pytest.raises(CorruptArtifact, match=r"00000001\.json"):
        open_registry(tmp_path).load("toy")


def test_keys_come_from_the_environment_and_are_never_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("STRATA_SIGNING_KEY", SECRET)
    monkeypatch.setenv("STRATA_TRUSTED_KEYS", f"{OTHER},{SECRET}")
    registry = Registry(tmp_path)
    publish(registry)
    assert registry.load("toy").version == 1
    assert "ab" * 16 not in repr(registry._keyring)
    monkeypatch.setenv("STRATA_SIGNING_KEY", "hmac-sha256:beef")
    with pytest.raises(ValueError, match="STRATA_SIGNING_KEY") as caught:
        Registry(tmp_path)
    assert "beef" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "md5:00", "ed25519:00", "hmac-sha256:zz", "ab" * 32])
def test_malformed_keys_are_refused(text):
    with pytest.raises(ValueError, match="KEY"):
        SigningKey.parse(text, variable="KEY")


# ---- an attacker who can write the store, and has no key ---------------------------------------


def make_history(folder, signing=SECRET):
    """Five versions, moves of two aliases, a removal; another artifact with its own."""
    registry = open_registry(folder, signing)
    for number in range(1, 6):
        status = "rejected" if number == 3 else "published"
        files = {"a.txt": b"%d" % number}
        registry.publish("toy", files, fingerprint=f"f{number}", status=status)
    for number in (1, 2, 4):
        registry.promote("toy", number)
    registry.promote("toy", 5, "staging")
    registry.collect_garbage(retention=Retention(keep_last=3))
    for number in (1, 2):
        registry.publish("other", {"a.txt": b"o%d" % number}, fingerprint=f"f{number}")
    for number in (2, 1):
        registry.promote("other", number)
    registry.collect_garbage("other", retention=Retention(keep_last=1))
    return registry


TRUE = {"latest": 5, "production": 4, "staging": 5}


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """A registry with all that it ever said, and one of the same name that is somebody else's."""
    root = tmp_path_factory.mktemp("histories")
    make_history(root / "registry")
    make_history(root / "registry/spare")
    for name in ("other", "spare/toy", "spare/other"):
        shutil.rmtree(root / "registry" / name / "versions")
    return root


@pytest.fixture
def attacked(histories, tmp_path):
    shutil.copytree(histories / "registry", tmp_path / "registry")
    trusting = open_registry(tmp_path / "registry", trusted=[SECRET])
    assert trusting.aliases("toy") == TRUE
    assert [v.version for v in trusting.versions("toy")] == [3, 4, 5]
    return tmp_path / "registry/toy"


def trusting(folder, name="toy"):
    return open_registry(folder.parent, trusted=[SECRET]), name


@pytest.mark.parametrize("ledger", ["records", "changes"])
def test_an_old_entry_does_not_count_as_the_newest(attacked, ledger):
    """production went from 1 to 4: the move to 1 is played again as the last one."""
    entries = sorted((attacked / ledger).iterdir())
    copy_file(entries[0], attacked / ledger / f"{len(entries) + 1:08d}.json")
    registry, name = trusting(attacked)
    for ask in (registry.aliases, registry.resolve, registry.versions, registry.load):
        with pytest.raises(CorruptArtifact, match="was copied here from"):
            ask(name)


@pytest.mark.parametrize("ledger", ["records", "changes"])
def test_entries_of_another_artifact_or_ledger_do_not_count(attacked, ledger):
    for source in ("other/changes/00000001.json", "other/records/00000001.json"):
        entries = sorted((attacked / ledger).iterdir())
        copy_file(attacked.parent / source, attacked / ledger / f"{len(entries) + 1:08d}.json")
        registry, name = trusting(attacked)
        with pytest.raises(CorruptArtifact, match="was copied here from"):
            registry.aliases(name)
        (attacked / ledger / f"{len(entries) + 1:08d}.json").unlink()


@pytest.mark.parametrize("ledger", ["records", "changes"])
def test_entries_of_another_registry_do_not_count(attacked, tmp_path, ledger):
    """Signed with the same key, for an artifact of the same name: a test registry, say."""
    theirs = attacked.parent / "spare/toy" / ledger
    # One of them in the middle is seen by all who read the whole ledger.
    shutil.copytree(attacked / ledger, tmp_path / "kept")
    copy_file(theirs / "00000002.json", attacked / ledger / "00000002.json")
    registry, name = trusting(attacked)
    with pytest.raises(CorruptArtifact, match="does not follow"):
        registry.history(name, "production")
    shutil.rmtree(attacked / ledger)
    shutil.copytree(theirs, attacked / ledger)
    registry, name = trusting(attacked)
    for ask in (registry.aliases, registry.resolve, registry.versions):
        with pytest.raises(CorruptArtifact, match="another artifact of this name"):
            ask(name)


def test_a_version_of_another_registry_does_not_count_even_without_changes(tmp_path):
    """Nothing but versions was ever published; one is replaced whole, its folder included."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for place in (ours, theirs):
        registry = open_registry(place, SECRET)
        for number in (1, 2, 3):
            files = {"a.txt": place.name.encode()}
            registry.publish("toy", files, fingerprint=f"{number}")
    shutil.copytree(theirs / "toy/versions", ours / "toy/versions", dirs_exist_ok=True)
    for number in (1, 2):
        path = f"toy/records/0000000{number}.json"
        kept = (ours / path).read_bytes()
        copy_file(theirs / path, ours / path)
        with pytest.raises(CorruptArtifact, match="another artifact of this name"):
            open_registry(ours, trusted=[SECRET]).load("toy", number)
        (ours / path).write_bytes(kept)
    assert open_registry(ours, trusted=[SECRET]).load("toy", 1).read("a.txt") == b"ours"


def test_an_entry_of_an_enormous_number_is_refused_at_once(attacked):
    """Also by a reader without keys, for whom the attacker's own entry is as good as any."""
    body = json.loads((attacked / "records/00000005.json").read_bytes())
    body |= {"number": 99_999_999, "signature": None}
    body["entry"] |= {"version": 99_999_999}
    (attacked / "records/99999999.json").write_bytes(reseal(body))
    with pytest.raises(BadSignature, match="99999999"):
        trusting(attacked)[0].versions("toy")
    with pytest.raises(CorruptArtifact, match=r"00000006\.json is missing"):
        open_registry(attacked.parent).versions("toy")


@pytest.mark.parametrize("linked", ["toy", "toy/versions"])
def test_a_collector_deletes_nothing_where_a_link_leads(tmp_path, linked):
    """Somebody's home, say: what lies there is no leftover."""
    home = tmp_path / "home"
    precious = home / "versions/3.11/python" if linked == "toy" else home / "alice/thesis"
    precious.parent.mkdir(parents=True)
    precious.write_text("x")
    registry = open_registry(tmp_path / "registry")
    registry.publish("toy", {"a.txt": b"1"}, fingerprint="1")
    link = tmp_path / "registry" / linked
    shutil.rmtree(link)
    link.symlink_to(home)
    with pytest.raises(ValueError, match="is a link: nothing is deleted where it leads"):
        registry.collect_garbage(grace=timedelta(seconds=-5))
    assert precious.exists()


def test_links_among_leftovers_are_removed_and_not_followed(tmp_path):
    precious = tmp_path / "home/thesis"
    precious.parent.mkdir()
    precious.write_text("x")
    registry = open_registry(tmp_path / "registry")
    registry.publish("toy", {"a.txt": b"1"}, fingerprint="1")
    (tmp_path / "registry/toy/versions/linked").symlink_to(tmp_path / "home")
    stray = tmp_path / "registry/toy/versions/stray"
    stray.mkdir()
    (stray / "linked").symlink_to(tmp_path / "home")
    (stray / "thesis#1").symlink_to(precious)
    registry.collect_garbage(grace=timedelta(seconds=-5))
    assert len(list(stray.parent.iterdir())) == 1
    assert precious.exists()


@pytest.mark.parametrize("ledger", ["records", "changes"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_gap_is_named(attacked, ledger, number):
    (attacked / ledger / f"{number:08d}.json").unlink()
    registry, name = trusting(attacked)
    with pytest.raises(CorruptArtifact, match=rf"{ledger}/{number:08d}\.json is missing"):
        registry.history(name, "production")
    if (ledger, number) == ("records", 3):
        with pytest.raises(CorruptArtifact, match=rf"{number:08d}\.json is missing"):
            registry.load(name, number)


def test_fewer_changes_than_a_version_speaks_of_are_refused(attacked):
    """The newest version is shown, and the aliases as they were before it was published."""
    registry = open_registry(attacked.parent, SECRET)
    registry.publish("toy", {"a.txt": b"6"}, fingerprint="f6")
    newest = sorted((attacked / "changes").iterdir())[-1]
    newest.unlink()
    registry, name = trusting(attacked)
    for ask in (registry.aliases, registry.resolve, registry.versions):
        with pytest.raises(CorruptArtifact, match=f"{newest.name} is missing"):
            ask(name)


STRANGERS = [
    "records/sub/00000001.json", "records/00000006.json.bak", "records/x.json", "records/123.json",
    "records/00000000.json", "changes/sub/00000001.json", "changes/readme.txt", "aliases/x/1.json",
    "aliases/production/00000009.json", "removed/00000004.json", "removed/00000005.json",
    "removed/x", "versions/x.txt", "versions/a b/x", "versions/.hidden", "condemned/x", "x",
    "records/newest/x", "changes/newest/x",
]  # fmt: skip


@pytest.mark.parametrize("path", STRANGERS)
@pytest.mark.parametrize("content", [b"", b"garbage", b'{"entry":{"version":4}}'])
def test_strangers_make_no_read_fail_and_no_version_vanish(attacked, path, content):
    (attacked / path).parent.mkdir(parents=True, exist_ok=True)
    (attacked / path).write_bytes(content)
    for registry in (trusting(attacked)[0], open_registry(attacked.parent)):
        assert registry.aliases("toy") == TRUE
        assert [v.version for v in registry.versions("toy")] == [3, 4, 5]
        for version in (3, 4, 5, "latest", "production"):
            registry.load("toy", version, verify=True)
        assert len(registry.history("toy", "production")) == 3
    signer = open_registry(attacked.parent, SECRET)
    signer.collect_garbage(grace=timedelta(seconds=-5))
    assert signer.publish("toy", {"a.txt": b"6"}, fingerprint="f6").version == 6


def test_a_folder_in_the_place_of_the_next_entry_is_named(attacked):
    """Nothing can be added then; a publisher says so and does not try for ever."""
    (attacked / "records/00000006.json/x").mkdir(parents=True)
    signer = open_registry(attacked.parent, SECRET)
    with pytest.raises(CorruptArtifact, match=r"00000006\.json is in the way"):
        signer.publish("toy", {"a.txt": b"6"}, fingerprint="f6")
    assert signer.aliases("toy") == TRUE


@st.composite
def attacks(draw):
    """One to four things that an attacker does to the files of both ledgers of two artifacts."""
    places = st.tuples(
        st.sampled_from(["toy", "other", "spare/toy"]),
        st.sampled_from(["records", "changes", "aliases/production", "removed"]),
        st.integers(1, 8),
    ).map(lambda at: f"{at[0]}/{at[1]}/{at[2]:08d}.json")
    action = st.one_of(
        st.tuples(st.just("copy"), places, places),
        st.tuples(st.just("swap"), places, places),
        st.tuples(st.just("delete"), places),
        st.tuples(st.just("edit"), places, st.sampled_from(EDITS)),
        st.tuples(st.just("hint"), st.sampled_from(["records", "changes"]), st.integers(0, 9)),
        st.tuples(st.just("ledger"), st.sampled_from(["records", "changes"])),
        st.tuples(st.just("folders"), st.integers(0, 2), st.integers(0, 2)),
    )
    return draw(st.lists(action, min_size=1, max_size=4))


def reseal(body):
    """As an attacker without the key would: everything fits but the signature."""
    from storage.records import canonical_json, digest

    body.pop("digest", None)
    return canonical_json(body | {"digest": digest(canonical_json(body))})


EDITS = ["strip signature", "entry only", "renumber", "version", "truncate", "empty", "flip"]


def edit(file, how):
    data = file.read_bytes()
    try:
        body = json.loads(data)
        if how == "strip signature":
            body["signature"] = None
        elif how == "entry only":
            body = {"entry": body["entry"], "signature": body["signature"]}
        elif how == "renumber":
            body["number"] = int(file.stem)
        elif how == "version":
            body["entry"] = body["entry"] | {"aliases": {"production": {"version": 5, "newest": 1}}}
        data = reseal(body)
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    if how == "truncate":
        data = data[:-3]
    elif how == "empty":
        data = b""
    elif how == "flip":
        data = data[:40] + bytes([data[40] ^ 1]) + data[41:]
    file.write_bytes(data)


def attack(root, actions):
    for what, *where in actions:
        files = [root / str(path) for path in where]
        if what == "ledger":
            shutil.rmtree(root / "toy" / where[0], ignore_errors=True)
            shutil.copytree(root / "spare/toy" / where[0], root / "toy" / where[0])
        elif what == "folders":
            places = sorted((root / "toy/versions").iterdir())
            one, two = (places[at] for at in where)
            if one != two:
                one.rename(root / "kept")
                two.rename(one)
                (root / "kept").rename(two)
        elif what == "hint":
            (root / "toy" / where[0] / "newest").write_text(str(where[1]))
        elif not files[0].is_file():
            continue
        elif what == "copy":
            copy_file(*files)
        elif what == "swap" and files[1].is_file():
            one, two = (file.read_bytes() for file in files)
            files[0].write_bytes(two)
            files[1].write_bytes(one)
        elif what == "delete":
            files[0].unlink()
        elif what == "edit":
            edit(files[0], where[1])


def content_of(registry, version):
    return registry.load("toy", version, verify=True).read("a.txt")


@pytest.mark.parametrize("witnessed", [False, True])
@given(actions=attacks())
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_attack_makes_a_reader_believe_what_was_never_said(
    histories, tmp_path_factory, witnessed, actions
):
    """It is refused, or it is what was said: now if there is a witness, at some time otherwise."""
    root = tmp_path_factory.mktemp("attack")
    shutil.copytree(histories / "registry", root / "registry")
    with pytest.MonkeyPatch.context() as patch:
        if witnessed:
            patch.setenv("STRATA_WITNESS", str(root / "witness"))
            trusting(root / "registry/toy")[0].versions("toy")
        attack(root / "registry", actions)
        registry, name = trusting(root / "registry/toy")
        once = {"latest": {1, 2, 4, 5}, "production": {1, 2, 4}, "staging": {5}}
        for alias in TRUE:
            try:
                found = registry.resolve(name, alias).version
            except REFUSED:
                continue
            assert found in ({TRUE[alias]} if witnessed else once[alias])
        for number in range(1, 7):
            try:
                data = content_of(registry, number)
            except REFUSED:
                continue
            assert data == b"%d" % number
            assert not witnessed or number in (3, 4, 5)
        try:
            listed = [version.version for version in registry.versions(name)]
        except REFUSED:
            return
        finally:
            shutil.rmtree(root)
        possible = [[*range(1, n + 1)] for n in range(1, 6)] + [[3, 4, 5]]
        assert listed in ([[3, 4, 5]] if witnessed else possible)


# ---- the witness --------------------------------------------------------------------------------


@pytest.fixture
def witness(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATA_WITNESS", str(tmp_path / "witness"))
    return tmp_path / "witness"


def test_a_registry_that_was_set_back_is_refused(histories, tmp_path, witness):
    """The newest entries are deleted; what remains is signed, whole, and old."""
    folder = shutil.copytree(histories / "registry", tmp_path / "registry") / "toy"
    trusting(folder)[0].aliases("toy")
    for ledger in ("changes", "records"):
        newest = sorted((folder / ledger).iterdir())[-1]
        data = newest.read_bytes()
        newest.unlink()
        with pytest.raises(RolledBack, match="was set back or replaced"):
            trusting(folder)[0].aliases("toy")
        newest.write_bytes(data)
    assert trusting(folder)[0].aliases("toy") == TRUE
    shutil.rmtree(folder / "records")
    with pytest.raises(RolledBack):
        trusting(folder)[0].load("toy")


@pytest.mark.parametrize("again", [0, 1, 2, 3])
def test_a_registry_that_was_made_anew_is_told_and_can_be_accepted(
    tmp_path, witness, monkeypatch, again
):
    """At the same place, with the same name: empty, shorter, as long, and longer than it was."""

    def make(versions):
        for number in range(1, versions + 1):
            registry = open_registry(tmp_path / "registry", SECRET)
            registry.publish("toy", {"a.txt": b"%d" % number}, fingerprint=f"{number}")

    make(2)
    reader = open_registry(tmp_path / "registry", trusted=[SECRET])
    assert reader.resolve("toy").version == 2
    shutil.rmtree(tmp_path / "registry")
    with monkeypatch.context() as patch:
        patch.setenv("STRATA_WITNESS", "off")
        make(again)
    with pytest.raises(RolledBack, match="If you know that the registry was made anew") as caught:
        open_registry(tmp_path / "registry", trusted=[SECRET]).resolve("toy")
    (file,) = witness.glob("*.json")
    assert f"delete {file} and try again" in str(caught.value)
    with pytest.raises(RolledBack):
        make(1)
    file.unlink()
    make(again or 1)
    reader = open_registry(tmp_path / "registry", trusted=[SECRET])
    assert reader.resolve("toy").version == (again or 1)


def test_a_witness_is_kept_where_keys_are_trusted(tmp_path, monkeypatch):
    monkeypatch.delenv("STRATA_WITNESS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    publish(open_registry(tmp_path / "registry", SECRET))
    open_registry(tmp_path / "registry").load("toy")
    assert not (tmp_path / "cache").exists()
    open_registry(tmp_path / "registry", trusted=[SECRET]).load("toy")
    (file,) = (tmp_path / "cache/strata/witness").iterdir()
    said = json.loads(file.read_bytes())
    assert said["registry"] == open_registry(tmp_path / "registry").url
    assert {ledger: number for ledger, (number, _) in said["seen"].items()} == {
        "records": 1,
        "changes": 1,
    }


GARBAGE = {"half": "[1", "deep": "[" * 100_000, "endless": '{"seen": {"records": [1e999, ""]}}'}


@pytest.mark.parametrize("obstacle", ["a file", "not writable", *GARBAGE])
def test_a_witness_that_cannot_be_kept_stops_nobody(tmp_path, monkeypatch, caplog, obstacle):
    folder = tmp_path / "witness"
    monkeypatch.setenv("STRATA_WITNESS", str(folder))
    publish(open_registry(tmp_path / "registry", SECRET))
    (file,) = folder.iterdir()
    if obstacle == "a file":
        shutil.rmtree(folder)
        folder.write_text("x")
    elif obstacle in GARBAGE:
        file.write_text(GARBAGE[obstacle])
    else:
        monkeypatch.setattr("storage.registry.witness.Path.write_bytes", refuse)
        file.unlink()
    reader = open_registry(tmp_path / "registry", trusted=[SECRET])
    assert reader.load("toy", "production").version == 1
    assert "nothing is remembered" in caplog.text


def refuse(*_):
    raise PermissionError("read-only")


# ---- registries of the older form ---------------------------------------------------------------


@pytest.fixture
def old(tmp_path):
    """Versions 1 to 4, signed; 1 is removed, 3 rejected; production → 2 after 1; latest → 2."""
    return shutil.copytree(OLD_FORM, tmp_path / "old") / "toy"


def test_a_registry_of_the_older_form_is_read_and_gone_on_with(old):
    registry = open_registry(old.parent, SECRET)
    assert registry.aliases("toy") == {"latest": 2, "production": 2}
    assert [v.version for v in registry.versions("toy")] == [2, 3, 4]
    with pytest.raises(UnknownVersion, match="removed"):
        registry.load("toy", 1)
    assert registry.load("toy", "production", verify=True).read("a.txt") == b"2"
    assert [move.version for move in registry.history("toy", "staging")] == [4, None]
    assert [move.version for move in registry.history("toy")] == [1, 2, 4, 2]
    registry.publish("toy", {"a.txt": b"5"}, fingerprint="f5")
    assert registry.aliases("toy") == {"latest": 5, "production": 2}
    assert registry.publish("toy", {"a.txt": b"4"}, fingerprint="f4").version == 4


def test_aliases_and_removals_of_the_older_form_are_carried_over(old):
    """Without keys by the first change that is made; with keys by `renew` alone."""
    for file in old.rglob("0000*.json"):
        body = json.loads(file.read_bytes()) | {"signature": None}
        file.write_bytes(reseal(body))
    registry = open_registry(old.parent)
    registry.promote("toy", 4)
    shutil.rmtree(old / "aliases")
    shutil.rmtree(old / "removed")
    fresh = open_registry(old.parent)
    assert fresh.aliases("toy") == {"latest": 2, "production": 4}
    assert [v.version for v in fresh.versions("toy")] == [2, 3, 4]


def test_the_older_form_is_trusted_as_far_as_its_signatures_go(old):
    """Records said their name and number; moves and removals did not, and have to be renewed."""
    reader, signer = open_registry(old.parent, trusted=[SECRET]), open_registry(old.parent, SECRET)
    for ask in (reader.resolve, reader.versions, reader.aliases):
        with pytest.raises(BadSignature, match="strata artifacts renew toy"):
            ask("toy")
    with pytest.raises(BadSignature, match="strata artifacts renew toy"):
        signer.promote("toy", 4)
    assert signer.renew("toy") == {"latest": 2, "production": 2}
    reader = open_registry(old.parent, trusted=[SECRET])
    assert reader.aliases("toy") == {"latest": 2, "production": 2}
    assert [v.version for v in reader.versions("toy")] == [2, 3, 4]
    assert reader.load("toy", 4, verify=True).read("a.txt") == b"4"
    signer.promote("toy", 4)
    signer.publish("toy", {"a.txt": b"5"}, fingerprint="f5")
    assert reader.aliases("toy") == {"latest": 5, "production": 4}
    assert [move.version for move in reader.history("toy", "production")] == [2, 4]


def test_entries_of_the_older_form_do_not_count_where_they_were_not_written(old):
    """A record under another number, an old move in the new ledger, an old record after a new."""
    open_registry(old.parent, SECRET).renew("toy")
    open_registry(old.parent, SECRET).publish("toy", {"a.txt": b"5"}, fingerprint="f5")
    for source, target in (
        ("records/00000002.json", "records/00000006.json"),
        ("aliases/production/00000001.json", "changes/00000002.json"),
        ("records/00000004.json", "records/00000005.json"),
    ):
        kept = (old / target).read_bytes() if (old / target).exists() else None
        copy_file(old / source, old / target)
        reader = open_registry(old.parent, trusted=[SECRET])
        with pytest.raises((BadSignature, CorruptArtifact)):
            reader.aliases("toy")
        (old / target).unlink() if kept is None else (old / target).write_bytes(kept)
    reader = open_registry(old.parent, trusted=[SECRET])
    assert reader.aliases("toy") == {"latest": 5, "production": 2}


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_garbage_among_removals_of_the_older_form_makes_no_version_vanish(old, content):
    mark = (old / "removed/00000001.json").read_bytes()
    (old / "removed/00000004.json").write_bytes(mark if content is None else content)
    assert [v.version for v in open_registry(old.parent).versions("toy")] == [2, 3, 4]


def test_entries_of_a_newer_form_are_said_to_be_so(tmp_path):
    publish(open_registry(tmp_path))
    record = tmp_path / "toy/records/00000001.json"
    record.write_bytes(reseal(json.loads(record.read_bytes()) | {"form": 3}))
    with pytest.raises(CorruptArtifact, match=r"is of the form 3: this release .* reads 1 and 2"):
        open_registry(tmp_path).load("toy")
