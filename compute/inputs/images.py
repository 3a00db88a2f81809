"""Pictures as inputs: a folder of image files, or a built-in source; read one at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compute.inputs.documents import ENDLESS_COUNT
from compute.settings import InputSettings

__all__ = ["FolderPictures", "Pictures", "StoredPictures", "fit", "open_pictures", "png"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MOST_CAPTION_BYTES = 2**20
_Picture = npt.NDArray[np.uint8]


class Pictures(ABC):
    """Pictures that are read when they are asked for.

    Attributes
    ----------
    names : sequence of str
    texts : sequence of str
        A caption or a class for each; empty where none is known.
    """

    names: Sequence[str]
    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def picture(self, number: int) -> _Picture:
        """One picture, ``(h, w, 3)`` or ``(h, w)``."""

    def sha256(self) -> str:
        """SHA-256 over names, texts and pixels, in order."""
        state = hashlib.sha256()
        for number, (name, text) in enumerate(zip(self.names, self.texts, strict=True)):
            picture = self.picture(number)
            for part in (name.encode(), text.encode(), repr(picture.shape).encode()):
                state.update(len(part).to_bytes(8, "little") + part)
            state.update(np.ascontiguousarray(picture).data)
        return state.hexdigest()


class FolderPictures(Pictures):
    """The image files below a folder, in the order of their paths.

    A file beside it of the same name and the ending .txt is its caption.
    """

    def __init__(self, folder: Path, count: int | None = None) -> None:
        self._paths = sorted(p for p in folder.rglob("*") if _is_picture(p))[:count]
        self.names = [path.relative_to(folder).as_posix() for path in self._paths]
        self.texts = [_caption(path) for path in self._paths]

    def picture(self, number: int) -> _Picture:
        """Decode one file.

        Raises
        ------
        ValueError
            If the file is no picture.
        """
        from PIL import Image

        path = self._paths[number]
        try:
            with Image.open(path) as opened:
                return np.asarray(opened.convert("L" if opened.mode == "L" else "RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # PIL says by all of these that a file is none, or a few bytes that grow without end.
            raise ValueError(
                f"inputs.images holds {path.name!r}, which is no readable picture: take it out."
            ) from error


class StoredPictures(Pictures):
    """Pictures that lie in memory, ``(n, h, w)`` or ``(n, h, w, 3)`` uint8."""

    def __init__(self, pictures: _Picture, texts: Sequence[str], kind: str) -> None:
        self._pictures = pictures
        self.names = [f"{kind} {number}" for number in range(len(pictures))]
        self.texts = list(texts)

    def picture(self, number: int) -> _Picture:
        """One picture."""
        found: _Picture = self._pictures[number]
        return found


def open_pictures(settings: InputSettings, *, seed: int = 0) -> Pictures:
    """Find the pictures that the settings name.

    Parameters
    ----------
    seed : int
        Of a built-in source that draws its pictures.

    Raises
    ------
    ValueError
        If the source is unknown, does not exist, or holds fewer than two pictures.
    """
    source = settings.source
    found: Pictures
    if source == "builtin:digits":
        from compute.worlds.digits import digits

        images, labels = digits()
        taken = slice(settings.count)
        found = StoredPictures(images[taken], [str(label) for label in labels[taken]], "digit")
    elif source == "builtin:sprites":
        from compute.worlds.sprites import SpriteWorld

        sprites = SpriteWorld(seed).sample(settings.count or ENDLESS_COUNT)
        found = StoredPictures(sprites.images, sprites.captions, "sprite")
    elif source.startswith("builtin:"):
        raise ValueError(
            f"inputs.images {source!r} is unknown: use 'builtin:digits' or 'builtin:sprites'."
        )
    else:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise ValueError(f"inputs.images {source!r} is no folder: name a folder of images.")
        found = FolderPictures(folder, settings.count)
    if len(found) < 2:
        raise ValueError(
            f"inputs.images {source!r} holds {len(found)} pictures: give at least two, since some "
            "are held out."
        )
    return found


def fit(picture: _Picture, size: int, channels: int) -> _Picture:
    """A picture as ``(size, size, channels)``: its middle square, resized where it has to be.

    A picture of that size is returned as it is.
    """
    from PIL import Image

    height, width = picture.shape[:2]
    opened = Image.fromarray(picture.squeeze())
    if (height, width) != (size, size):
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        opened = opened.crop((left, top, left + side, top + side))
        opened = opened.resize((size, size), Image.Resampling.BICUBIC)
    fitted = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
    return fitted.reshape(size, size, channels)


def png(picture: npt.NDArray[Any], most: int = 96) -> bytes:
    """A picture ``(h, w)``, ``(h, w, 1)`` or ``(h, w, 3)`` as PNG, of `most` pixels a side."""
    from PIL import Image

    opened = Image.fromarray(np.ascontiguousarray(picture.squeeze()))
    opened.thumbnail((most, most))
    sink = BytesIO()
    opened.save(sink, "PNG")
    return sink.getvalue()


def mosaic(pictures: npt.NDArray[Any], per_row: int) -> npt.NDArray[Any]:
    """Pictures ``(n, h, w[, c])`` side by side in one, two black pixels apart."""
    n, height, width = pictures.shape[:3]
    rows, gap = -(-n // per_row), 2
    margin = ((0, rows * per_row - n), (0, gap), (0, gap), *([(0, 0)] * (pictures.ndim - 3)))
    padded = np.pad(pictures, margin)
    tiles = padded.reshape(rows, per_row, height + gap, width + gap, *pictures.shape[3:])
    whole = tiles.swapaxes(1, 2).reshape(
        rows * (height + gap), per_row * (width + gap), *pictures.shape[3:]
    )
    return np.asarray(whole[:-gap, :-gap])


def _is_picture(path: Path) -> bool:
    # A pipe would be waited for until somebody writes to it.
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return ""
    if beside.stat().st_size > _MOST_CAPTION_BYTES:
        raise ValueError(f"{beside} is no caption: it has more than {_MOST_CAPTION_BYTES:,} bytes.")
    try:
        return beside.read_text(encoding="utf-8").strip()
    except UnicodeError:
        raise ValueError(f"{beside} is not text in UTF-8: convert it, or take it out.") from None
