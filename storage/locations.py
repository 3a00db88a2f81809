"""One URL grammar for everything that lasts: local folders, object stores and memory.

``/data/run`` or ``file:///data/run``
    a local folder;
``s3://bucket/prefix`` and ``gs://bucket/prefix``
    an object store; credentials, region and endpoint come from the environment
    (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, …), never from the URL;
``memory://name``
    a store that lives as long as this process.

Two primitives carry every guarantee above this module: :meth:`Location.put` is atomic (a reader
sees the old bytes or the new ones, nothing between) and :meth:`Location.create` succeeds for
exactly one of any number of writers. A compare-and-swap is spelt as a numbered log, "create record
n + 1": this works alike on folders and on object stores, needs no lock server and keeps the
history.

A third keeps a reader from harm: :meth:`Location.open` looks at what lies under a path before it
reads a byte of it. On a disk that is a regular file, reached over no symbolic link below the
location; pipes, devices and links are refused without being waited for. Its length is known, and
so is whether it changes while it is read.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import time
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import GCSStore, LocalStore, MemoryStore, ObjectStore, S3Store

if TYPE_CHECKING:
    from obstore import GetOptions

__all__ = [
    "AlreadyExists",
    "BadObject",
    "Location",
    "NotFound",
    "StoredObject",
    "check_name",
    "is_partial",
    "s3_endpoint",
    "without_secrets",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_NAME = 128
# Windows opens a device under these names, whatever follows the first dot.
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))]
)
_BLOCK = 2**20
_REMOTE_BLOCK = 2**22
# A file that was written less than this ago may be written again without a change of its times.
_CLOCK_GRAIN_NS = 2_000_000_000
# How often a file is written whose name or folder others take away meanwhile.
_MOST_TRIES = 5
# Of <fcntl.h> and <stdio.h>: Linux's renameat2 and macOS' renamex_np.
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCL = -100, 1, 4
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:/{1,2})"
    # A password may hold anything that a URL should not.
    r"(?P<user>[^\s'\"]{0,512}:[^\s'\"]{0,512}@|[^\s/?#'\"]{0,512}@)?"
    r"(?P<place>[^\s?#'\"]*)"
    r"(?P<rest>[?#][^\s'\"]*)?"
)
# How obstore's and Zarr's local stores name a file before they rename it.
_PARTIAL = re.compile(r"#\d+$|\.partial$")
_SCHEMES = ("file", "s3", "gs", "memory")
_memory_stores: dict[str, MemoryStore] = {}


class AlreadyExists(FileExistsError):
    """Another writer has created the object first."""


class NotFound(FileNotFoundError):
    """No object is stored under this path."""


class BadObject(OSError):
    """What lies under this path is no regular file, is too long, or changed while it was read.

    Attributes
    ----------
    where : str
        Its URL.
    reason : str
        What is wrong with it, to follow its name in a sentence.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} {reason}.")
        self.where = where
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadObject], tuple[str, str]]:
        return (type(self), (self.where, self.reason))


def without_secrets(text: str) -> str:
    """The text with every URL in it reduced to scheme, host and path.

    Users, passwords, queries and fragments carry keys and signatures; errors and logs do not.
    """
    return _URL.sub(lambda url: f"{url['scheme']}{url['place']}", text)


def check_name(name: str, *, field: str = "name") -> str:
    """Return `name` if it is safe as one component of a path, and refuse it otherwise.

    Safe is: 1 to 128 ASCII letters, digits, ``.``, ``_`` and ``-``, beginning with a letter or a
    digit, and not ending with ``.``; and no name of a device of Windows, such as ``aux`` or
    ``COM1.txt``.

    Raises
    ------
    ValueError
        If the name could leave its folder, hide itself, or be read as another name.
    """
    normal = unicodedata.normalize("NFKC", name)
    if normal != name or len(name) > _MAX_NAME or not _NAME.fullmatch(name) or name.endswith("."):
        shown = name if len(name) <= 40 else name[:40] + "…"
        raise ValueError(
            f"{field} {shown!r} is not a safe name: use 1 to {_MAX_NAME} letters, digits, '.', '_' "
            "or '-', beginning with a letter or a digit."
        )
    if name.partition(".")[0].lower() in _DEVICES:
        raise ValueError(
            f"{field} {name!r} names a device on Windows, which cannot hold such a file: "
            "choose another."
        )
    return name


def is_partial(path: str) -> bool:
    """Whether a file has the name of a put that was begun and not ended; no store lists it."""
    return _PARTIAL.search(path) is not None


class StoredObject(ABC):
    """One object, opened: its size is known, and what is read of it is of that one version.

    Attributes
    ----------
    where : str
        Its URL.
    size : int
        Its length in bytes.
    version : str or None
        Another as soon as the object's bytes are; None where the store cannot promise that.
    """

    where: str
    size: int
    version: str | None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to `stop`, by default to the end, in pieces.

        Raises
        ------
        BadObject
            If the object is changed meanwhile; what has been yielded is of the old one.
        """

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Return the bytes from `start` to `stop` in one piece; raises as :meth:`blocks`."""
        return b"".join(self.blocks(start, stop))

    @abstractmethod
    def close(self) -> None:
        """Let the object go."""


class _LocalObject(StoredObject):
    def __init__(self, descriptor: int, where: str) -> None:
        self.where = where
        self._descriptor = descriptor
        self._stamp = self._look()
        self.size = self._stamp[2]
        self.version = None
        # A disk's clock may stand still between two writes, so that times say nothing yet.
        if time.time_ns() - max(self._stamp[3:]) > _CLOCK_GRAIN_NS:
            self.version = "-".join(map(str, self._stamp))

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return self._blocks(start, self.size if stop is None else stop, _BLOCK)

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        # A single piece is not copied when it is joined.
        stop = self.size if stop is None else stop
        return b"".join(self._blocks(start, stop, stop - start))

    def _blocks(self, start: int, stop: int, length: int) -> Iterator[bytes]:
        while start < stop:
            block = os.pread(self._descriptor, min(length, stop - start), start)
            if not block or self._look() != self._stamp:
                raise BadObject(self.where, "was changed while it was read")
            start += len(block)
            yield block

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _look(self) -> tuple[int, ...]:
        found = os.fstat(self._descriptor)
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _RemoteObject(StoredObject):
    def __init__(
        self, store: ObjectStore, key: str, where: str, size: int, tag: str | None
    ) -> None:
        self.where, self.size, self.version = where, size, tag
        self._store, self._key = store, key

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        stop = self.size if stop is None else stop
        while start < stop:
            # A request for each block: a slow reader would keep a single one open for too long.
            until = min(stop, start + _REMOTE_BLOCK)
            options: GetOptions = {"range": (start, until)}
            if self.version is not None:
                options["if_match"] = self.version
            with _plain_errors():
                try:
                    block = bytes(obstore.get(self._store, self._key, options=options).bytes())
                except (FileNotFoundError, PreconditionError):
                    block = b""
            if len(block) != until - start:
                raise BadObject(self.where, "was changed while it was read")
            start = until
            yield block

    def close(self) -> None:
        return


def _open_file(root: Path, path: str, where: str) -> int:
    """Descriptor of a regular file below `root`, reached over no link."""
    *folders, name = path.split("/")
    opened: list[int] = []
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.append(folder)
        for each in folders:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            folder = os.open(each, flags, dir_fd=folder)
            opened.append(folder)
        # Without O_NONBLOCK, a pipe would be waited for until somebody writes to it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not _is_link(opened, path):
            raise NotFound(f"{where} does not exist.") from None
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise BadObject(where, "is a link or a device and no regular file") from None
        raise OSError(error.errno, f"{where} cannot be read ({error.strerror}).") from None
    finally:
        for folder in opened:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadObject(where, "is no regular file")
    return descriptor


def _is_link(opened: list[int], path: str) -> bool:
    """Whether the first part of `path` that could not be opened as a folder is a link."""
    if not opened:
        return False
    try:
        found = os.stat(path.split("/")[len(opened) - 1], dir_fd=opened[-1], follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISLNK(found.st_mode)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder of a disk under names that a store could give; nothing in a file."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if _is_listed(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_listed(name: str) -> bool:
    return name.isprintable() and "\\" not in name and not is_partial(name)


def _files_below(root: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Paths below `root` of all regular files in its folder `prefix`, and what is known of each.

    The store's client ends at the first name that it does not like and at links in a circle, so
    that one stranger would hide everything.
    """
    waiting = [_check_path(prefix) if prefix else ""]
    while waiting:
        folder = waiting.pop()
        for entry in _entries(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
                continue
            # It may be deleted meanwhile.
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield path, found


def _check_size(size: int, most: int | None, where: str) -> None:
    if most is not None and size > most:
        raise BadObject(where, f"has {size:,} bytes, which is more than {most:,}")


def _create_file(path: Path, data: bytes) -> None:
    """Make a file with its whole content appear under a name that nobody has taken."""
    for _ in range(_MOST_TRIES - 1):
        # Collectors may take a file without its name yet, or an empty folder, for a leftover.
        with suppress(FileNotFoundError):
            _try_to_create(path, data)
            return
    _try_to_create(path, data)


def _try_to_create(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named as obstore names its own, so that listings leave it out.
    partial = path.with_name(f"{path.name}#{SystemRandom().getrandbits(63)}")
    try:
        with partial.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _take_name(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _take_name(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        # FAT, exFAT and some network disks have no hard links, but can rename without replacing.
        if _rename_unless_taken(partial, path):
            return
        raise OSError(
            error.errno,
            f"the disk of {str(path.parent)!r} has neither hard links nor a rename that replaces "
            f"nothing ({error.strerror}), so that two writers could take one name: choose a store "
            "on another disk.",
        ) from None


def _rename_unless_taken(source: Path, target: Path) -> bool:
    """Rename in one instant; raise FileExistsError if the name is taken, and say if that works."""
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    if hasattr(system, "renameat2"):
        failed = system.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE)
    elif hasattr(system, "renamex_np"):
        failed = system.renamex_np(*names, _RENAME_EXCL)
    else:
        return False
    if failed and ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    return not failed


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Let no secret out of what a store's client says of a request."""
    try:
        yield
    except BaseError as error:
        plain = without_secrets(str(error))
        if plain == str(error):
            raise
        raise type(error)(plain) from None


def _check_path(path: str) -> str:
    for part in path.split("/"):
        if part in ("", ".", "..") or "\\" in part or "\0" in part:
            raise ValueError(f"path {path!r} is not a relative path inside its location.")
    return path


@dataclass(frozen=True)
class Location:
    """A folder in a store, named by a URL; paths below it are relative, with ``/`` between parts.

    Parameters
    ----------
    url : str
        A URL of the grammar above, or a local path (absolute or relative).

    Raises
    ------
    ValueError
        If the scheme is unknown, a bucket is missing, or the URL carries credentials.
    """

    url: str
    _store: ObjectStore = field(init=False, repr=False, compare=False)
    _prefix: str = field(init=False, repr=False, compare=False)
    _folder_here: Path | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _normalise(self.url))
        store, prefix = _open(self.url)
        object.__setattr__(self, "_store", store)
        object.__setattr__(self, "_prefix", prefix)
        here = Path(unquote(urlsplit(self.url).path)) if self.url.startswith("file://") else None
        object.__setattr__(self, "_folder_here", here)

    def __truediv__(self, path: str) -> Location:
        below = _check_path(path)
        local = self.url.startswith("file://")
        return Location(f"{self.url}/{quote(below) if local else below}")

    def __reduce__(self) -> tuple[type[Location], tuple[str]]:
        return (Location, (self.url,))

    @property
    def local_path(self) -> Path | None:
        """The folder on this machine, or None for a remote or in-memory location."""
        return self._folder_here

    def zarr_store(self, *, read_only: bool = False) -> Any:
        """A Zarr v3 store path rooted here, as ``zarr.open_group`` takes it."""
        from zarr.storage import LocalStore as ZarrLocalStore
        from zarr.storage import ObjectStore as ZarrObjectStore
        from zarr.storage import StorePath

        folder = self.local_path
        if folder is not None:
            # zarr's own LocalStore, since the Rust codec pipeline recognises it and no other.
            return StorePath(ZarrLocalStore(folder, read_only=read_only))
        return StorePath(ZarrObjectStore(self._store, read_only=read_only), self._prefix)

    def _key(self, path: str) -> str:
        return self._prefix + ("/" if self._prefix else "") + _check_path(path)

    def _folder(self, prefix: str) -> str | None:
        return self._key(prefix) if prefix else self._prefix or None

    def _relative(self, key: str) -> str:
        return key[len(self._prefix) + 1 :] if self._prefix else key

    def open(self, path: str) -> StoredObject:
        """Open the object for reading in blocks; its size is known before any of it is read.

        Raises
        ------
        NotFound
            If there is none.
        BadObject
            If it is no regular file, or lies behind a symbolic link below this location.
        """
        where = f"{self.url}/{path}"
        root = self.local_path
        if root is not None:
            return _LocalObject(_open_file(root, _check_path(path), where), where)
        with _plain_errors():
            try:
                meta = obstore.head(self._store, self._key(path))
            except FileNotFoundError:
                raise NotFound(f"{where} does not exist.") from None
        return _RemoteObject(self._store, self._key(path), where, meta["size"], meta["e_tag"])

    def get(self, path: str, *, most: int | None = None) -> bytes:
        """Return the object's bytes.

        Parameters
        ----------
        path : str
            Where it lies below this location.
        most : int, optional
            Refuse an object of more bytes than this before any is read.

        Raises
        ------
        NotFound
            If there is none.
        BadObject
            If it is no regular file, or longer than `most`.
        """
        if self.local_path is None:
            where = f"{self.url}/{path}"
            with _plain_errors():
                try:
                    answer = obstore.get(self._store, self._key(path))
                except FileNotFoundError:
                    raise NotFound(f"{where} does not exist.") from None
                # Only the head of the answer is here by now; the body comes when asked for.
                _check_size(answer.meta["size"], most, where)
                return bytes(answer.bytes())
        with self.open(path) as found:
            _check_size(found.size, most, found.where)
            return found.read()

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes from offset `start`.

        Raises
        ------
        NotFound
            If there is no object.
        BadObject
            If it is no regular file, or ends before.
        """
        if length == 0:
            return b""
        if self.local_path is not None:
            with self.open(path) as found:
                part = found.read(start, min(found.size, start + length))
        else:
            with _plain_errors():
                try:
                    part = bytes(
                        obstore.get_range(self._store, self._key(path), start=start, length=length)
                    )
                except FileNotFoundError:
                    raise NotFound(f"{self.url}/{path} does not exist.") from None
        if len(part) < length:
            raise BadObject(f"{self.url}/{path}", f"ends before byte {start + length}")
        return part

    def put(self, path: str, data: bytes | memoryview | Path) -> None:
        """Write the object as a whole, in place of any older one."""
        with _plain_errors():
            obstore.put(self._store, self._key(path), data)

    def create(self, path: str, data: bytes) -> None:
        """Write the object if there is none.

        Raises
        ------
        AlreadyExists
            If there is one.
        OSError
            If the disk knows no way to do that which holds against other writers.
        """
        where = f"{self.url}/{path}"
        root = self.local_path
        try:
            if root is not None:
                _create_file(root / _check_path(path), data)
                return
            with _plain_errors():
                obstore.put(self._store, self._key(path), data, mode="create", use_multipart=False)
        except (AlreadyExistsError, FileExistsError):
            raise AlreadyExists(f"{where} exists already.") from None

    def exists(self, path: str) -> bool:
        """Whether an object is stored under exactly this path."""
        with _plain_errors():
            try:
                obstore.head(self._store, self._key(path))
            except FileNotFoundError:
                return False
        return True

    def size(self, path: str) -> int:
        """The object's length in bytes; raises as :meth:`open`."""
        with self.open(path) as found:
            return found.size

    def walk(self, prefix: str = "", *, after: str | None = None) -> Iterator[str]:
        """Yield the paths of all objects below the folder `prefix`, in no particular order.

        With `after`, only of those whose path sorts after this one; an object store is then not
        even asked for the names before it. On a disk, links, pipes, devices and what no
        store could name are left out.
        """
        if self.local_path is not None:
            start = "" if after is None else _check_path(after)
            yield from (path for path, _ in _files_below(self.local_path, prefix) if path > start)
            return
        offset = None if after is None else self._key(after)
        with _plain_errors():
            for batch in obstore.list(self._store, self._folder(prefix), offset=offset):
                for entry in batch:
                    yield self._relative(str(entry["path"]))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Lengths in bytes of all objects below the folder `prefix`, by path."""
        if self.local_path is not None:
            return {path: found.st_size for path, found in _files_below(self.local_path, prefix)}
        with _plain_errors():
            return {
                self._relative(str(entry["path"])): int(entry["size"])
                for batch in obstore.list(self._store, self._folder(prefix))
                for entry in batch
            }

    def now(self, probe: str) -> datetime:
        """The time by the clock that stamps what is written here; overwrites the object `probe`.

        Ages of what is stored here are to be told by this clock: that of the machine that asks may
        be wrong by days.
        """
        self.put(probe, b"strata")
        with _plain_errors():
            return obstore.head(self._store, self._key(probe))["last_modified"]

    def last_modified(self, prefix: str = "") -> datetime | None:
        """When an object below the folder `prefix` was last written; None if there is none."""
        if self.local_path is not None:
            stats = (found for _, found in _files_below(self.local_path, prefix))
            seconds = max((found.st_mtime for found in stats), default=None)
            return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
        with _plain_errors():
            batches = obstore.list(self._store, self._folder(prefix))
            times = (entry["last_modified"] for batch in batches for entry in batch)
            return max(times, default=None)

    def children(self, prefix: str = "") -> list[str]:
        """Return the sorted names of the folders and objects directly below `prefix`."""
        if self.local_path is not None:
            folder = self.local_path / _check_path(prefix) if prefix else self.local_path
            return sorted(entry.name for entry in _entries(folder))
        with _plain_errors():
            found = obstore.list_with_delimiter(self._store, self._folder(prefix))
        paths = [str(p) for p in found["common_prefixes"]] + [
            str(o["path"]) for o in found["objects"]
        ]
        return sorted({path.rstrip("/").rsplit("/", 1)[-1] for path in paths})

    def delete(self, path: str) -> None:
        """Remove the object; it is no error if there is none."""
        with _plain_errors():
            try:
                obstore.delete(self._store, self._key(path))
            except FileNotFoundError:
                return

    def refuse_links(self, path: str) -> None:
        """Refuse a folder below this one that is reached through a link; stores have none.

        Raises
        ------
        ValueError
            Naming the link.
        """
        root = self.local_path
        if root is None:
            return
        for place in (root / path, *(root / path).parents):
            if place != root and place.is_relative_to(root) and place.is_symlink():
                raise ValueError(
                    f"{place} is a link: nothing is deleted where it leads. Put the folder itself "
                    "there, or mount it."
                )

    def delete_folder(self, prefix: str) -> None:
        """Remove every object below the folder `prefix`, and on a disk the folder itself.

        Others may remove it at the same time. What is written to it meanwhile may stay.
        """
        root = self.local_path
        if root is None:
            for path in list(self.walk(prefix)):
                self.delete(path)
        elif (root / prefix).is_symlink() or (root / prefix).is_file():
            (root / prefix).unlink(missing_ok=True)
        else:
            # Also what walk() does not show: empty folders, and parts left by a killed writer.
            shutil.rmtree(root / prefix, onerror=_unless_shared)

    def delete_partial(self) -> None:
        """Remove what killed writers left on a disk of puts they had begun.

        Must be called when nobody writes here any more; object stores keep no such parts.
        """
        root = self.local_path
        if root is not None:
            for path in root.rglob("*"):
                if is_partial(path.name) and path.is_file():
                    path.unlink()

    def free_bytes(self) -> int | None:
        """Free space on the disk that holds this location; None where a store has no such bound."""
        folder = self.local_path
        if folder is None:
            return None
        while not folder.exists():
            folder = folder.parent
        stat = os.statvfs(folder)
        return stat.f_bavail * stat.f_frsize

    def check_writable(self) -> None:
        """Refuse a location that cannot be written, before any work is done for it.

        Raises
        ------
        PermissionError
            With one sentence that names the location and the reason.
        """
        probe = f".probe-{os.getpid()}"
        try:
            self.put(probe, b"strata")
            self.delete(probe)
        except Exception as error:
            reason = without_secrets(str(error)).partition("\n")[0] or type(error).__name__
            raise PermissionError(
                f"store {self.url!r} is not writable ({reason}): choose another with store=URL."
            ) from None


def _unless_shared(_: object, __: str, failure: Any) -> None:
    """Go on where another process has removed something first, or has just written something."""
    error = failure[1]
    if not isinstance(error, FileNotFoundError) and error.errno != errno.ENOTEMPTY:
        raise error


def _normalise(url: str) -> str:
    shown = without_secrets(url)
    if "://" not in url:
        if not url:
            raise ValueError("url '' is empty: give a folder or a URL such as s3://bucket/prefix.")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", url):
            raise ValueError(f"url {shown!r} has one slash after its scheme: write two.")
        return _resolved(Path(url).expanduser().absolute()).as_uri()
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"url {shown!r} is not a URL: check its host.") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"url {shown!r} has the unknown scheme {parts.scheme!r}: "
            f"use one of {', '.join(_SCHEMES)}."
        )
    if "@" in parts.netloc or (parts.scheme in ("s3", "gs") and ":" in parts.netloc):
        raise ValueError(
            f"url {shown!r} came with credentials: give them through the environment instead."
        )
    if parts.query or parts.fragment:
        raise ValueError(f"url {shown!r} came with a query or a fragment: leave it out.")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"url {shown!r} names a host: write file:///path.")
        return _resolved(Path(unquote(parts.path))).as_uri()
    if not parts.netloc:
        raise ValueError(f"url {shown!r} names no bucket: write {parts.scheme}://bucket/prefix.")
    path = parts.path.strip("/")
    if path:
        _check_path(path)
    return f"{parts.scheme}://{parts.netloc}" + (f"/{path}" if path else "")


def _resolved(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (RuntimeError, OSError):
        raise BadObject(str(folder), "is a link that leads to itself") from None


def s3_endpoint() -> str | None:
    """URL of the S3 service that the environment names; None for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _open(url: str) -> tuple[ObjectStore, str]:
    """The store behind a URL, and the prefix that the store itself does not know of."""
    parts = urlsplit(url)
    path = parts.path.strip("/")
    if parts.scheme == "file":
        # Rooted at "/", so that naming a folder does not create it.
        return LocalStore(), unquote(parts.path).strip("/")
    if parts.scheme == "memory":
        return _memory_stores.setdefault(parts.netloc, MemoryStore()), path
    if parts.scheme == "gs":
        return GCSStore(parts.netloc, prefix=path or None), ""
    endpoint = s3_endpoint()
    if endpoint is None:
        return S3Store(parts.netloc, prefix=path or None), ""
    return (
        S3Store(
            parts.netloc,
            prefix=path or None,
            endpoint=endpoint,
            client_options={"allow_http": endpoint.startswith("http://")},
        ),
        "",
    )
