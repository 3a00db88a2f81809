"""What a stranger's hand may have written into a registry without keys: named, never a crash."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from storage.artifacts import CorruptArtifact, Registry, Retention
from storage.records import canonical_json, digest
from storage.service import create_app

OLD_FORM = Path(__file__).parent / "registry_of_form_1"


@pytest.fixture
def toy(tmp_path):
    registry = Registry(tmp_path)
    for text in ("one", "two", "three"):
        registry.publish("toy", {"x.txt": text.encode()}, fingerprint=text)
    registry.promote("toy", 1)
    return tmp_path / "toy"


@pytest.fixture
def old(tmp_path):
    """A registry of form 1 without its signatures and changes."""
    folder = shutil.copytree(OLD_FORM, tmp_path / "old") / "toy"
    for file in folder.rglob("0000*.json"):
        rewrite(file, {}, signature=None)
    return folder


def rewrite(file, content, **entry):
    body = json.loads(file.read_bytes()) | entry
    body["entry"] |= content
    del body["digest"]
    file.write_bytes(canonical_json(body | {"digest": digest(canonical_json(body))}))


def everything(folder):
    registry = Registry(folder.parent)
    return [
        lambda: registry.versions("toy"),
        lambda: registry.aliases("toy"),
        lambda: registry.history("toy", "production"),
        lambda: registry.promote("toy", 2, "other"),
        lambda: registry.collect_garbage("toy", retention=Retention(1, keep_days=1)),
    ]


TIMES = ["2020-01-01T00:00:00", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"]


@pytest.mark.parametrize("time", TIMES)
def test_a_version_of_no_time_is_named(toy, time):
    path = "records/00000003.json"
    rewrite(toy / path, {"created_at": time})
    registry = Registry(toy.parent)
    with pytest.raises(CorruptArtifact, match=rf"toy/{path} is not valid: created_at"):
        registry.versions("toy")
    with pytest.raises(CorruptArtifact, match="created_at"):
        registry.collect_garbage("toy", retention=Retention(1, keep_days=1))


@pytest.mark.parametrize("time", TIMES)
def test_a_move_of_no_time_is_named(toy, time):
    (move,) = json.loads((toy / "changes/00000001.json").read_bytes())["entry"]["moves"]
    rewrite(toy / "changes/00000001.json", {"moves": [move | {"moved_at": time}]})
    for ask in everything(toy)[1:]:
        with pytest.raises(CorruptArtifact, match=r"changes/00000001.json is not valid: moves.0"):
            ask()


@pytest.mark.parametrize(
    "content", [{"alias": []}, {"version": "x"}, {"moved_at": TIMES[0]}, {"reason": None}]
)
def test_a_move_of_form_1_that_is_none_is_named(old, content):
    rewrite(old / "aliases/production/00000001.json", content)
    for ask in everything(old):
        with pytest.raises(CorruptArtifact, match=r"aliases/production/00000001.json is not valid"):
            ask()


def test_a_move_of_form_1_counts_for_its_own_alias(old):
    rewrite(old / "aliases/production/00000001.json", {"alias": "staging"})
    with pytest.raises(CorruptArtifact, match="moves another alias"):
        Registry(old.parent).aliases("toy")


@pytest.mark.parametrize("name", ["1", "v7", "con", ".hidden", "a b"])
def test_a_folder_that_no_alias_may_be_called_is_nobody_s(old, name):
    registry = Registry(old.parent)
    before = registry.aliases("toy")
    shutil.copytree(old / "aliases/production", old / "aliases" / name)
    answer = TestClient(create_app(registry), base_url="http://localhost").get
    assert answer("/artifacts/toy/aliases").json() == before
    assert registry.aliases("toy") == before
    registry.promote("toy", 2, "other")
    assert registry.aliases("toy") == before | {"other": 2}
    assert registry.collect_garbage("toy", grace=timedelta(days=1)).versions == {}
