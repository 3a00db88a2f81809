"""Locations: one grammar, atomic puts, exactly one creator, no way out of the folder."""

import errno
import os
import re
import shutil
import socket
import threading
import time
import uuid

import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import GenericError

import storage.locations
from storage.locations import AlreadyExists, BadObject, Location, NotFound, check_name
from tests.backends import s3_server


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


DEVICES = ["con", "PRN", "aux.txt", "Nul.tar.gz", "com1", "LPT9.json", "COM5."]


@pytest.mark.parametrize("name", [*DEVICES, "trailing.", "trailing ", "a\u00b9"])
def test_names_that_windows_reads_otherwise_are_refused(name):
    with pytest.raises(ValueError, match=r"is not a safe name|names a device on Windows"):
        check_name(name)


@pytest.mark.parametrize("name", ["console", "com", "com0", "com10", "auxiliary", "x.con", "a-nul"])
def test_names_that_only_look_like_devices_are_kept(name):
    assert check_name(name) == name


@pytest.fixture
def local(tmp_path):
    location = Location(str(tmp_path / "store"))
    location.put("folder/file", b"12345")
    return location


def plant(location, kind):
    """Put something below the location that is no file of it; returns its path."""
    root, outside = location.local_path, location.local_path.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    if kind == "pipe":
        os.mkfifo(root / "x")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(root / "x"))
    elif kind == "folder":
        (root / "x").mkdir()
    else:
        targets = {
            "link to a device": "/dev/zero",
            "link out": outside / "file",
            "link inside": root / "folder" / "file",
            "link to nothing": "nowhere",
            "link to itself": "x",
            "link in the way": outside,
        }
        (root / "x").symlink_to(targets[kind])
    return "x/file" if kind == "link in the way" else "x"


KINDS = ["pipe", "socket", "folder", "link to a device", "link out", "link inside"]
KINDS += ["link to nothing", "link to itself", "link in the way"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_at_once(local, kind):
    path = plant(local, kind)
    for read in (local.get, local.open, local.size, lambda p: local.get_range(p, 0, 1)):
        with pytest.raises(BadObject, match="no regular file"):
            read(path)


def test_a_store_may_lie_behind_a_link(tmp_path, local):
    (tmp_path / "link").symlink_to(local.local_path)
    assert Location(str(tmp_path / "link")).get("folder/file") == b"12345"
    assert local.get("folder/file", most=5) == b"12345"


@pytest.mark.parametrize("name", [b"\xff\xfe.json", b"\x1b]0;hi\x07", b"a\\b"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_name_that_no_store_could_give_hides_nothing(local, name, kind):
    for folder in (local.local_path, local.local_path / "folder"):
        path = os.path.join(os.fsencode(folder), name)
        os.close(os.open(path, os.O_CREAT)) if kind == "file" else os.mkdir(path)
    assert local.children() == ["folder"]
    assert local.children("folder") == ["file"]
    assert list(local.walk()) == ["folder/file"]
    assert local.sizes() == {"folder/file": 5}
    assert local.last_modified() is not None


def test_links_in_a_circle_hide_nothing(local):
    (local.local_path / "folder" / "up").symlink_to("..")
    (local.local_path / "folder" / "self").symlink_to("self")
    (local.local_path / "gone").symlink_to("nowhere")
    assert local.children() == ["folder", "gone"]
    assert list(local.walk()) == ["folder/file"]
    assert list(local.walk(after="folder/file")) == []


def test_a_file_that_is_taken_for_a_leftover_is_created_again(local, monkeypatch):
    link, lost = os.link, []

    def late(source, target):
        if len(lost) < 3:
            lost.append(source)
            os.unlink(source)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    local.create("folder/entry", b"1")
    assert local.get("folder/entry") == b"1"
    assert sorted(path.name for path in (local.local_path / "folder").iterdir()) == [
        "entry",
        "file",
    ]


def test_a_file_holds_no_objects(local):
    local.put("a", b"1")
    assert local.children("a") == list(local.walk("a")) == []
    assert local.sizes("a") == {}
    assert local.last_modified("a") is None


def test_a_place_that_is_a_circle_of_links_is_refused(tmp_path, local):
    (local.local_path / "x").symlink_to("x")
    with pytest.raises(BadObject, match="leads to itself"):
        local / "x"


def test_a_long_object_is_refused_before_it_is_read(location):
    location.put("x", b"12345")
    assert location.get("x", most=5) == b"12345"
    with pytest.raises(BadObject, match=r"has 5 bytes, which is more than 4\.$"):
        location.get("x", most=4)


def test_ten_terabytes_of_nothing_are_refused(local):
    with (local.local_path / "x").open("wb") as stream:
        stream.truncate(10**13)
    with pytest.raises(BadObject, match="10,000,000,000,000 bytes"):
        local.get("x", most=1000)


def test_a_part_beyond_the_end_is_refused(location):
    location.put("x", b"12345")
    with pytest.raises(BadObject, match="ends before byte 12"):
        location.get_range("x", 3, 9)


@pytest.mark.parametrize("how", ["replaced", "shortened", "changed"])
def test_an_object_that_changes_while_it_is_read_is_refused(location, how):
    if how != "replaced" and location.local_path is None:
        pytest.skip("objects of a store change as a whole")
    location.put("x", bytes(10_000_000))
    path = None if location.local_path is None else location.local_path / "x"
    with location.open("x") as found:
        blocks = found.blocks()
        assert set(next(blocks)) == {0}
        if path is None:
            location.put("x", b"x" * 10_000_000)
        elif how == "replaced":
            path.unlink()
        else:
            with path.open("r+b") as stream:
                stream.truncate(10 if how == "shortened" else 20_000_000)
        if how == "replaced" and path is not None:
            # Its inode has another time now, though the old bytes are still there.
            os.utime(found._descriptor)
        with pytest.raises(BadObject, match="was changed while it was read"):
            list(blocks)


def test_an_object_is_known_again_until_it_is_written(local):
    path = local.local_path / "folder" / "file"
    # Just written: its times would be the same if it were written again at once.
    with local.open("folder/file") as found:
        assert found.version is None
    time.sleep(2.1)
    versions = []
    for _ in range(2):
        with local.open("folder/file") as found:
            versions.append(found.version)
    path.write_bytes(b"12345")
    os.utime(path, (0, 0))
    with local.open("folder/file") as found:
        versions.append(found.version)
    assert versions[0] is not None
    assert versions[0] == versions[1] != versions[2]


def test_remote_objects_are_known_by_their_tags():
    location = Location(f"memory://{uuid.uuid4().hex}")
    location.put("x", b"1")
    with location.open("x") as one:
        location.put("x", b"2")
        with location.open("x") as two:
            assert one.version != two.version
            assert b"".join(two.blocks()) == b"2"


@pytest.mark.parametrize("renames", [True, False])
def test_a_disk_without_hard_links(tmp_path, monkeypatch, renames):
    def no_link(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_link)
    if not renames:
        monkeypatch.setattr(storage.locations, "_rename_unless_taken", lambda *_: False)
    location = Location(str(tmp_path / "store"))
    if renames:
        test_one_of_many_creators_wins(location)
    else:
        with pytest.raises(OSError, match=r"neither hard links nor a rename .*: choose a store on"):
            location.create("claim", b"x")
        assert not location.exists("claim")
    names = {path.name for path in location.local_path.iterdir()}
    assert names == ({"claim"} if renames else set())


@pytest.mark.parametrize("times", [1, 99])
def test_a_file_that_is_taken_for_a_leftover_is_written_again(tmp_path, monkeypatch, times):
    """A collector that waits for nobody may come between a file's bytes and its name."""
    link, taken = os.link, []

    def late(partial, path):
        if len(taken) < times:
            taken.append(partial)
            shutil.rmtree(partial.parent)
        link(partial, path)

    monkeypatch.setattr(os, "link", late)
    location = Location(str(tmp_path / "store"))
    if times == 1:
        location.create("ledger/1.json", b"x")
        assert location.get("ledger/1.json") == b"x"
    else:
        with pytest.raises(FileNotFoundError):
            location.create("ledger/1.json", b"x")


SECRETS = [
    "https://key:hunter2@host/x",
    "s3://AKIA:hun/ter2@bucket/x",
    "s3://hunter2@bucket/x",
    "s3://bucket/x?X-Amz-Signature=hunter2",
    "gs://bucket/x#hunter2",
    "https:/host/x?sig=hunter2",
    "file://host/x?sig=hunter2",
    "ftp://host/x?sig=hunter2",
    "s3://user:hun?ter2@bucket",
    "s3://[bad?sig=hunter2",
    "/data/https://host/x?sig=hunter2",
]


@pytest.mark.parametrize("url", SECRETS)
def test_no_error_repeats_a_secret(url):
    with pytest.raises(ValueError, match="url") as caught:
        Location(url)
    assert not {"hunter2", "hun", "ter2"} & set(re.split(r"\W+", str(caught.value)))


def test_a_store_s_own_errors_keep_its_secrets(monkeypatch):
    def fail(*_, **__):
        raise GenericError("Error performing PUT http://me:hunter2@host/b/k?sig=hunter2 in 3ms")

    location = Location(f"memory://{uuid.uuid4().hex}")
    for name in ("put", "get", "head", "list", "list_with_delimiter", "delete", "get_range"):
        monkeypatch.setattr(f"obstore.{name}", fail)
    calls = [
        lambda: location.put("x", b""),
        lambda: location.create("x", b""),
        lambda: location.get("x"),
        lambda: location.open("x"),
        lambda: location.get_range("x", 0, 1),
        lambda: location.exists("x"),
        lambda: location.delete("x"),
        location.children,
        lambda: list(location.walk()),
        location.last_modified,
        location.check_writable,
    ]
    for call in calls:
        with pytest.raises((GenericError, PermissionError), match="http://host/b/k") as caught:
            call()
        assert "hunter2" not in str(caught.value)


def test_an_object_of_s3_is_looked_at_and_read_as_one_version(monkeypatch):
    with s3_server() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        location = Location("s3://bucket/store")
        old, new = bytes(9_000_000), b"x" * 9_000_000
        location.put("x", old)
        with pytest.raises(BadObject, match="9,000,000 bytes, which is more than 10"):
            location.get("x", most=10)
        with location.open("x") as found:
            assert b"".join(found.blocks(4_194_300, 4_194_310)) == bytes(10)
            blocks = found.blocks()
            next(blocks)
            location.put("x", new)
            with pytest.raises(BadObject, match="was changed while it was read"):
                list(blocks)
        with location.open("x") as found:
            assert b"".join(found.blocks()) == new
