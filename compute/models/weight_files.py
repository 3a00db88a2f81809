"""Where a model's files are, and the checksum of its weights."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from compute.machine.network import cache_alone_without_hub

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A model's address, resolved as far as it can be without the network.

    Attributes
    ----------
    name : what the user wrote.
    location : a folder, or a hub id.
    gguf_file : file name of the GGUF in that location, or None.
    """

    name: str
    location: str
    gguf_file: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder, or None where the location is a hub id."""
        path = Path(self.location)
        return path if path.is_dir() else None


def resolve_source(source: str | Path, gguf_file: str | None = None) -> Source:
    """Resolve a hub id, a folder, a GGUF file, or ``package:NAME``.

    A hub id is looked for in the cache alone where the hub cannot be reached.

    ``package:NAME`` is the folder of an installed Python package, found without importing it;
    ``package:NAME.BELOW`` is a folder below that one.
    A folder that holds no ``config.json`` and one GGUF file means that file.

    Raises
    ------
    ValueError : the folder, the package or the GGUF file does not exist.
    """
    name = str(source)
    if name.startswith("package:"):
        folder = _package_folder(name.removeprefix("package:"))
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
    elif name.endswith(".gguf") and Path(name).expanduser().is_file():
        path = Path(name).expanduser()
        folder, gguf_file = path.parent, path.name
    elif _looks_like_a_path(name):
        raise ValueError(f"source {name!r} is not a folder on this machine; check the path")
    else:
        cache_alone_without_hub()
        return Source(name, name, gguf_file)
    if gguf_file is None and not (folder / "config.json").exists():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        gguf_file = ggufs[0] if len(ggufs) == 1 else None
    if gguf_file is not None and not (folder / gguf_file).is_file():
        raise ValueError(f"gguf_file {gguf_file!r} is not in {folder}; name a file of that folder")
    return Source(name, str(folder.resolve()), gguf_file)


def weights_hash(source: str | Path, gguf_file: str | None = None) -> str:
    """Return the sha256 of a model's weights, read in a stream.

    For one file it is the sha256 of that file. For several (shards, pipelines) it is the sha256 of
    the lines ``{sha256}  {relative path}``, sorted by path, as ``sha256sum`` prints them. Where a
    folder holds the same weights twice, safetensors count and pickles do not. A hub id is looked
    up in the local cache, and fetched if it is not there.

    Raises
    ------
    ValueError : no weight file is found.
    """
    resolved = resolve_source(source, gguf_file)
    folder = resolved.folder or _snapshot(resolved)
    files = weight_files(folder, resolved.gguf_file)
    if len(files) == 1:
        return file_sha256(files[0])
    lines = (f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weight_files(folder: Path, gguf_file: str | None = None) -> list[Path]:
    """Return the weight files below ``folder``, sorted by path.

    Raises
    ------
    ValueError : there are none.
    """
    if gguf_file is not None:
        return [folder / gguf_file]
    files = sorted(
        path for path in folder.rglob("*") if path.suffix in _WEIGHT_SUFFIXES and path.is_file()
    )
    with_safetensors = {path.parent for path in files if path.suffix == ".safetensors"}
    files = [p for p in files if p.suffix == ".safetensors" or p.parent not in with_safetensors]
    if not files:
        raise ValueError(f"no weight file (safetensors, bin or GGUF) was found in {folder}")
    return files


def file_sha256(path: Path) -> str:
    """Return the sha256 of one file; a file unchanged since the last call is not read again."""
    status = path.stat()
    return _file_sha256(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_sha256(path: str, _size: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _package_folder(package: str) -> Path:
    first, *below = package.split(".")
    # find_spec imports the parents of a dotted name, and these packages may not be importable.
    known = all(name.isidentifier() for name in (first, *below))
    spec = importlib.util.find_spec(first) if known else None
    for top in (spec and spec.submodule_search_locations) or ():
        folder = Path(top, *below)
        if folder.is_dir():
            return folder
    raise ValueError(f"source 'package:{package}' names no installed package; install it first")


def _looks_like_a_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or "\\" in name


def _snapshot(source: Source) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [source.gguf_file] if source.gguf_file else ["*.json", "*.safetensors", "*.bin"]
    try:
        return Path(snapshot_download(source.location, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(
            f"source {source.name!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}); give a folder or go online"
        ) from error
