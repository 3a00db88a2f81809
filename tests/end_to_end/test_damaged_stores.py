"""A finished run: whatever is done to a file of its store is found and named, and it may move."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.build import build
from flows.cli import app
from storage.artifacts import Registry
from storage.care.doctor import examine, step_folders
from storage.care.shelf_doctor import examine_registry
from storage.locations import Location
from storage.references import RECORD_FILES, Reference
from storage.sealing.damage import CorruptFile, Damaged
from tests.end_to_end.damaged_stores import KINDS, copied, damaged

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def store(built, recipe, tmp_path_factory):
    """A copy of the finished run's store; whoever damages it mends it again."""
    return copied(built, recipe, tmp_path_factory.mktemp("copy") / "store")


@pytest.fixture(scope="module")
def files(store):
    return sorted(path for path in store.rglob("*") if path.is_file())


def look(store, path=None):
    """Files that are named: of the whole store, or of the part in which `path` lies."""
    location = Location(str(store))
    findings = []
    for folder in step_folders(location):
        if path is None or path.is_relative_to(folder.local_path):
            findings += examine(folder)
    if path is None or path.is_relative_to(store / "artifacts"):
        findings += examine_registry(location)
    return {Location(f.url).local_path / f.path: f for f in findings}


def check(store, files, path, kind, seed):
    others = [o for o in files if o.parts[:-1] == path.parts[:-1] and o != path]
    others = [o for o in others if o.read_bytes() != path.read_bytes()] or [
        o for o in files if o.suffix != path.suffix
    ]
    other = others[seed % len(others)]
    with damaged(path, kind, seed, other) as wrong:
        named = {}
        for part in wrong:
            named |= look(store, part)
        expected = set(wrong)
        if any(part.name == "plan.json" for part in wrong):
            # What a table should hold is not known without its plan, which is said.
            expected = {part for part in wrong if "c" not in part.parts}
            assert any("when it is whole" in str(finding) for finding in named.values())
        assert expected <= set(named), (kind, wrong, named)
        if (
            kind in ("flip", "truncate", "empty", "delete", "grow")
            and "artifacts" not in path.parts
        ):
            assert set(named) == set(wrong)
        if kind == "add":
            (finding,) = (named[part] for part in wrong)
            left = wrong[0].name.startswith("half")
            assert finding.kind == ("left over" if left else "stranger"), finding
            assert finding.is_damage != left
        else:
            assert all(named[part].is_damage for part in expected)


def test_a_whole_store_has_no_damage(store):
    assert look(store) == {}


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**20))
def test_any_damage_to_any_file_is_found_and_named(store, files, data, kind, seed):
    check(store, files, data.draw(st.sampled_from(files)), kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_to_every_file_is_found_and_named(store, files, kind):
    for seed, path in enumerate(files):
        check(store, files, path, kind, seed)
    assert look(store) == {}


def test_folders_links_and_pipes_are_named(store):
    (learn,) = store.glob("learn/*")
    (learn / "empty").mkdir()
    (learn / "pipe").symlink_to("/dev/zero")
    assert set(look(store, learn)) == {learn / "pipe"}
    (learn / "pipe").unlink()
    assert set(look(store, learn)) == {learn / "empty"}
    (learn / "empty").rmdir()
    bounds = learn / "norm_bounds.json"
    data = bounds.read_bytes()
    bounds.unlink()
    bounds.mkdir()
    assert set(look(store, learn)) == {bounds}
    bounds.rmdir()
    bounds.write_bytes(data)
    assert look(store) == {}


@pytest.mark.parametrize(
    "where", ["learn", "artifacts", "artifacts/tiny", "artifacts/tiny/records"]
)
def test_a_file_beside_the_folders_is_named(store, where):
    stray = store / where / "notes.txt"
    stray.write_text("mine")
    named = look(store)
    stray.unlink()
    assert {path: finding.kind for path, finding in named.items()} == {stray: "stranger"}


def test_every_file_of_a_step_is_checked_when_it_is_read(built, recipe, store):
    """Rows of raw arrays have their own checksums; all else passes one door."""
    for folder in step_folders(Location(str(store))):
        files = Reference.find(folder).open()
        there = {p for p in folder.walk() if p not in RECORD_FILES}
        raw = {p for p in there if folder.url.split("/")[-2] == "extract" and "/c/" in p}
        assert set(files.walk()) == there - raw
        for path in files.walk():
            with (
                damaged(folder.local_path / path, "flip", 1),
                pytest.raises(CorruptFile, match="strata doctor RECIPE --repair"),
            ):
                files.get(path)


def test_a_flipped_exponent_is_told_as_damage(store):
    """It used to be told as a training that has diverged."""
    from safetensors import safe_open

    from compute.steps.learn import load_dictionaries, read_norm_bounds

    (learn,) = store.glob("learn/*")
    reference = Reference.find(Location(str(learn)))
    path = learn / "dictionaries/layer-00/sae_weights.safetensors"
    data = path.read_bytes()
    with safe_open(path, "numpy") as weights:
        assert weights.get_tensor("W_enc").dtype == np.float32
    changed = bytearray(data)
    changed[-1] = 0x7F
    changed[-2] |= 0x80
    path.write_bytes(bytes(changed))
    with pytest.raises(Damaged, match=r"sae_weights.*digest.*strata doctor"):
        load_dictionaries(reference.open())
    path.write_bytes(data)
    with damaged(learn / "norm_bounds.json", "truncate", 5), pytest.raises(Damaged):
        read_norm_bounds(reference.open())


@pytest.mark.parametrize(
    ("pattern", "step", "setting"),
    [
        ("learn/*/norm_bounds.json", "encode", {"examples": 2}),
        ("extract/*/rows/norms/layer-00/c/1", "learn", {"seed": 5}),
        ("encode/*/summaries/layer-02/0.safetensors", "recover", {"min_token_count": 21}),
    ],
)
def test_a_run_stops_at_damage_with_a_sentence(recipe, store, caplog, pattern, step, setting):
    """No second try, no worker that dies: a step says what it may not read, wherever it runs."""
    settings = getattr(recipe, step).model_copy(update=setting)
    before = set(store.glob("*/*"))
    (path,) = store.glob(pattern)
    with (
        damaged(path, "flip", 3),
        caplog.at_level(logging.INFO),
        pytest.raises(Damaged, match=r"damaged .*strata doctor RECIPE"),
    ):
        build(recipe.model_copy(update={"store": str(store), step: settings}))
    assert f"{step} " in caplog.text
    assert "will start" not in caplog.text
    for begun in set(store.glob("*/*")) - before:
        assert not list(begun.glob("reference*"))
        shutil.rmtree(begun)


def test_a_moved_store_reads_and_publishes_from_itself(built, recipe, tmp_path):
    """Build in A, copy to B, take A away, run on B."""
    moved = copied(built, recipe, tmp_path / "moved here")
    mine = recipe.model_copy(update={"store": str(moved)})
    before = {p: p.stat().st_mtime_ns for p in moved.rglob("*") if p.is_file()}
    assert not [p for p in before if str(recipe.store).encode() in p.read_bytes()]
    home = Path(recipe.store)
    away = home.rename(home.with_name("away"))
    try:
        again = build(mine)
        assert {p: p.stat().st_mtime_ns for p in moved.rglob("*") if p.is_file()} == before
        titled = build(mine.model_copy(update={"title": "Moved"}))
    finally:
        away.rename(home)
    for step, reference in built.items():
        assert (again[step].fingerprint, again[step].content_hash, again[step].sha256) == (
            reference.fingerprint,
            reference.content_hash,
            reference.sha256,
        )
        assert again[step].location.local_path.is_relative_to(moved)
    assert Location(again["publish"].summary["artifact"]).local_path.is_relative_to(moved)
    registry = Registry(moved / "artifacts")
    published = registry.load("tiny", titled["publish"].summary["version"], verify=True)
    assert published.location.local_path.is_relative_to(moved)
    for step in ("extract", "learn", "encode", "recover"):
        assert titled[step] == again[step]
    assert look(moved) == {}
    assert CliRunner().invoke(app, ["doctor", str(moved)]).exit_code == 0


def test_a_store_of_an_earlier_version_is_adopted(built, recipe, tmp_path, monkeypatch):
    """Nothing is computed again, and all of it is sealed then."""
    store = copied(built, recipe, tmp_path / "store")
    for path in store.glob("*/*/reference.json"):
        record = json.loads(path.read_bytes())
        del record["files"], record["sha256"]
        path.write_text(json.dumps(record | {"url": f"file:///gone/{path.parent.name}"}))
        path.with_name("reference.copy.json").unlink()
    for path in store.glob("extract/*/samples.json"):
        path.unlink()
    assert {finding.kind for finding in look(store).values()} == {"unsealed"}
    for worker in ("extract.write_activations", "learn.train", "recover.recover_graph"):
        monkeypatch.setattr(f"compute.steps.{worker}", None)
    again = build(recipe.model_copy(update={"store": str(store)}))
    for step, reference in built.items():
        assert again[step].fingerprint == reference.fingerprint
        assert again[step].content_hash == reference.content_hash
        assert again[step].sha256
    assert again["publish"].summary["version"] == built["publish"].summary["version"]
    assert look(store) == {}


def test_what_has_changed_since_an_earlier_version_wrote_it_is_not_adopted(built, recipe, tmp_path):
    store = copied(built, recipe, tmp_path / "store")
    (path,) = store.glob("recover/*/reference.json")
    record = json.loads(path.read_bytes())
    del record["files"], record["sha256"]
    path.write_text(json.dumps(record | {"url": "file:///gone"}))
    path.with_name("reference.copy.json").unlink()
    nodes = path.with_name("nodes.parquet")
    nodes.write_bytes(nodes.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"earlier version and has changed since: delete"):
        build(recipe.model_copy(update={"store": str(store)}))


def test_a_dictionary_that_explains_less_than_the_mean_is_rejected(built, recipe, caplog):
    from prefect import flow

    from flows.recipe import Recipe
    from tasks.publishing import publish

    summary = json.loads(json.dumps(built["learn"].summary))
    summary["levels"]["layer-00"]["explained_variance"] = -0.06
    del summary["levels"]["layer-02"]["explained_variance"]
    worse = built["learn"].model_copy(update={"summary": summary})

    @flow
    def publishing(name, gates):
        chosen = Recipe.model_validate(
            recipe.model_dump() | {"name": name, "publish": {"gates": gates}}
        )
        return publish(
            chosen,
            built["extract"],
            worse,
            built["encode"],
            built["recover"],
        )

    told = publishing("worse", []).summary
    assert told["status"] == "rejected"
    assert told["rejections"] == [
        "the dictionary of layer-00 explains no more than the mean of its rows does: its "
        "explained_variance is -0.06",
        "the dictionary of layer-02 explains no more than the mean of its rows does: its "
        "explained_variance is not a number",
    ]
    gate = {"metric": "explained_variance", "at_least": -1, "per_level": True}
    allowed = publishing("allowed", [gate]).summary
    assert allowed["rejections"] == ["explained_variance of layer-02 is not reported"]


def test_a_run_warns_of_a_dictionary_that_explains_nothing(built, recipe, tmp_path, caplog):
    """The largest rate that is allowed, for a few steps."""
    store = copied(built, recipe, tmp_path / "store")
    learn = recipe.learn.model_copy(update={"learning_rate": 1.0, "steps": 4})
    from prefect import flow

    from flows.build import run_steps

    @flow
    def learning():
        return run_steps(
            recipe.model_copy(update={"store": str(store), "learn": learn}), until="learn"
        )

    with caplog.at_level(logging.WARNING):
        scores = learning()["learn"].summary["levels"]
    assert any(not scores[level].get("explained_variance", 0) > 0 for level in scores)
    assert "explains no more than the mean of its rows does" in caplog.text
    assert "a version of it is rejected" in caplog.text
