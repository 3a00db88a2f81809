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
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import GCSStore, LocalStore, MemoryStore, ObjectStore, S3Store

__all__ = ["AlreadyExists", "Location", "NotFound", "check_name", "s3_endpoint"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_NAME = 128
# How obstore's and Zarr's local stores name a file before they rename it.
_PARTIAL = re.compile(r"#\d+$|\.partial$")
_SCHEMES = ("file", "s3", "gs", "memory")
_memory_stores: dict[str, MemoryStore] = {}


class AlreadyExists(FileExistsError):
    """Another writer has created the object first."""


class NotFound(FileNotFoundError):
    """No object is stored under this path."""


def check_name(name: str, *, field: str = "name") -> str:
    """Return `name` if it is safe as one component of a path, and refuse it otherwise.

    Safe is: 1 to 128 ASCII letters, digits, ``.``, ``_`` and ``-``, beginning with a letter or a
    digit.

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
    return name


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _normalise(self.url))
        store, prefix = _open(self.url)
        object.__setattr__(self, "_store", store)
        object.__setattr__(self, "_prefix", prefix)

    def __truediv__(self, path: str) -> Location:
        return Location(f"{self.url}/{_check_path(path)}")

    def __reduce__(self) -> tuple[type[Location], tuple[str]]:
        return (Location, (self.url,))

    @property
    def local_path(self) -> Path | None:
        """The folder on this machine, or None for a remote or in-memory location."""
        if self.url.startswith("file://"):
            return Path(unquote(urlsplit(self.url).path))
        return None

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

    def get(self, path: str) -> bytes:
        """Return the object's bytes; raise :class:`NotFound` if there is none."""
        try:
            return bytes(obstore.get(self._store, self._key(path)).bytes())
        except FileNotFoundError:
            raise NotFound(f"{self.url}/{path} does not exist.") from None

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes from offset `start`; raise :class:`NotFound` without object."""
        if length == 0:
            return b""
        try:
            return bytes(
                obstore.get_range(self._store, self._key(path), start=start, length=length)
            )
        except FileNotFoundError:
            raise NotFound(f"{self.url}/{path} does not exist.") from None

    def put(self, path: str, data: bytes | memoryview | Path) -> None:
        """Write the object as a whole, in place of any older one."""
        obstore.put(self._store, self._key(path), data)

    def create(self, path: str, data: bytes) -> None:
        """Write the object if there is none; raise :class:`AlreadyExists` if there is."""
        try:
            obstore.put(self._store, self._key(path), data, mode="create", use_multipart=False)
        except (AlreadyExistsError, FileExistsError):
            raise AlreadyExists(f"{self.url}/{path} exists already.") from None

    def exists(self, path: str) -> bool:
        """Whether an object is stored under exactly this path."""
        try:
            obstore.head(self._store, self._key(path))
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """The object's length in bytes; raise :class:`NotFound` if there is none."""
        try:
            return int(obstore.head(self._store, self._key(path))["size"])
        except FileNotFoundError:
            raise NotFound(f"{self.url}/{path} does not exist.") from None

    def walk(self, prefix: str = "", *, after: str | None = None) -> Iterator[str]:
        """Yield the paths of all objects below the folder `prefix`, in no particular order.

        With `after`, only of those whose path sorts after this one; an object store is then not
        even asked for the names before it.
        """
        offset = None if after is None else self._key(after)
        for batch in obstore.list(self._store, self._folder(prefix), offset=offset):
            for entry in batch:
                yield self._relative(str(entry["path"]))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Lengths in bytes of all objects below the folder `prefix`, by path."""
        batches = obstore.list(self._store, self._folder(prefix))
        return {
            self._relative(str(entry["path"])): int(entry["size"])
            for batch in batches
            for entry in batch
        }

    def now(self, probe: str) -> datetime:
        """The time by the clock that stamps what is written here; overwrites the object `probe`.

        Ages of what is stored here are to be told by this clock: that of the machine that asks may
        be wrong by days.
        """
        self.put(probe, b"strata")
        return obstore.head(self._store, self._key(probe))["last_modified"]

    def last_modified(self, prefix: str = "") -> datetime | None:
        """When an object below the folder `prefix` was last written; None if there is none."""
        batches = obstore.list(self._store, self._folder(prefix))
        return max((entry["last_modified"] for batch in batches for entry in batch), default=None)

    def children(self, prefix: str = "") -> list[str]:
        """Return the sorted names of the folders and objects directly below `prefix`."""
        found = obstore.list_with_delimiter(self._store, self._folder(prefix))
        paths = [str(p) for p in found["common_prefixes"]] + [
            str(o["path"]) for o in found["objects"]
        ]
        return sorted({path.rstrip("/").rsplit("/", 1)[-1] for path in paths})

    def delete(self, path: str) -> None:
        """Remove the object; it is no error if there is none."""
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
                if _PARTIAL.search(path.name) and path.is_file():
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
            reason = str(error).splitlines()[0]
            raise PermissionError(
                f"store {self.url!r} is not writable ({reason}): choose another with store=URL."
            ) from None


def _unless_shared(_: object, __: str, failure: Any) -> None:
    """Go on where another process has removed something first, or has just written something."""
    error = failure[1]
    if not isinstance(error, FileNotFoundError) and error.errno != errno.ENOTEMPTY:
        raise error


def _normalise(url: str) -> str:
    if "://" not in url:
        if not url:
            raise ValueError("url '' is empty: give a folder or a URL such as s3://bucket/prefix.")
        return Path(url).expanduser().absolute().resolve().as_uri()
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"url {url!r} has the unknown scheme {parts.scheme!r}: "
            f"use one of {', '.join(_SCHEMES)}."
        )
    if "@" in parts.netloc:
        raise ValueError("url carries credentials: give them through the environment instead.")
    if parts.query or parts.fragment:
        raise ValueError(f"url {url!r} has a query or a fragment: leave it out.")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"url {url!r} names a host: write file:///path.")
        return Path(unquote(parts.path)).resolve().as_uri()
    if not parts.netloc:
        raise ValueError(f"url {url!r} names no bucket: write {parts.scheme}://bucket/prefix.")
    path = parts.path.strip("/")
    if path:
        _check_path(path)
    return f"{parts.scheme}://{parts.netloc}" + (f"/{path}" if path else "")


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
