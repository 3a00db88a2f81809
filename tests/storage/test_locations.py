"""Locations: one grammar, atomic puts, exactly one creator, no way out of the folder."""

import os
import threading
import uuid

import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from storage.locations import AlreadyExists, Location, NotFound, check_name


@pytest.fixture(params=["local", "memory"])
def location(request, tmp_path):
    if request.param == "local":
        return Location(str(tmp_path / "a folder~é" / "store"))
    return Location(f"memory://{uuid.uuid4().hex}/some/prefix")


def test_put_get_list_delete(location):
    location.put("a/b.bin", b"12345")
    location.put("a/b.bin", b"6789")
    location.put("c.bin", b"")
    assert location.get("a/b.bin") == b"6789"
    assert location.get_range("a/b.bin", 1, 2) == b"78"
    assert location.size("a/b.bin") == 4
    assert sorted(location.walk()) == ["a/b.bin", "c.bin"]
    assert location.children() == ["a", "c.bin"]
    assert (location / "a").get("b.bin") == b"6789"
    assert sorted((location / "a").walk()) == ["b.bin"]
    location.delete("c.bin")
    location.delete("c.bin")
    assert not location.exists("c.bin")
    location.delete_folder("a")
    assert list(location.walk()) == []


def test_nothing_is_created_by_naming_a_folder(tmp_path):
    location = Location(str(tmp_path / "not" / "yet"))
    assert list(location.walk()) == []
    assert not (tmp_path / "not").exists()
    with pytest.raises(NotFound, match="does not exist"):
        location.get("x")


def test_one_of_many_creators_wins(location):
    won, lost = [], []

    def create(i):
        try:
            location.create("claim", str(i).encode())
            won.append(i)
        except AlreadyExists:
            lost.append(i)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 15
    assert location.get("claim") == str(won[0]).encode()


def test_zarr_store_lies_below_the_location(location):
    group = zarr.open_group((location / "z").zarr_store(), mode="w")
    group.create_array("x", shape=(4,), dtype="f4")[:] = 3
    assert any(path.startswith("z/x/") for path in location.walk())
    again = zarr.open_group((location / "z").zarr_store(read_only=True), mode="r")
    assert again["x"][:].tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x/y", "s3:///prefix", "s3://key:secret@bucket/x", "s3://b/../c", "memory://n?x=1"],
)
def test_bad_urls_are_refused(url):
    with pytest.raises(ValueError, match=r"url|path"):
        Location(url)


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a/../b", "", "a\\b", "a/./b"])
def test_paths_do_not_leave_the_location(location, path):
    with pytest.raises(ValueError, match="relative path"):
        location.put(path, b"")
    with pytest.raises(ValueError, match="relative path"):
        location / path


@given(st.text(max_size=200))
def test_a_checked_name_is_one_plain_component(name):
    try:
        check_name(name)
    except ValueError:
        return
    assert name == os.path.basename(name)
    assert name not in ("", ".", "..")
    assert name.isascii()


def test_unwritable_store_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PermissionError, match="is not writable"):
        Location(str(tmp_path / "file" / "store")).check_writable()
