"""The pictures of a run, drawn or shown: split, and grouped into blocks of work."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from compute.inputs.images import Pictures, fit
from compute.settings import ExtractSettings
from storage.locations import Location
from storage.sealing.seals import Files

if TYPE_CHECKING:
    from compute.models.diffusion import Image, Prompt

__all__ = [
    "Gallery",
    "arrange_gallery",
    "missing_pictures",
    "read_pictures",
    "save_pictures",
]

GALLERY_FILE = "gallery.json"
_FOLDER = "pictures"


@dataclass(frozen=True)
class Gallery:
    """What a diffusion model draws or is shown, in the order in which it is read.

    Attributes
    ----------
    names, texts : tuple of str
        Name and prompt (or caption, or class) of each sample.
    order : tuple of int
        Samples in canonical order: the training samples first, then the held-out ones.
    blocks : tuple of int
        Places in `order` at which blocks of work begin, and its length at the end.
    n_train_samples : int
        One of the blocks' borders.
    grid : tuple of int
        Patches from top to bottom and from left to right; each is one row.
    seed : int
        From it and a sample's number follows the sample's noise.
    shape : tuple of int, optional
        Side and channels of the pictures that are shown; None where they are drawn.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    order: tuple[int, ...]
    blocks: tuple[int, ...]
    n_train_samples: int
    grid: tuple[int, int]
    seed: int
    shape: tuple[int, int] | None = None

    @property
    def n_patches(self) -> int:
        """Rows of one sample."""
        return self.grid[0] * self.grid[1]

    @property
    def n_samples(self) -> int:
        """Samples that are read."""
        return len(self.order)

    @property
    def n_rows(self) -> int:
        """One row for each patch of each sample."""
        return self.n_samples * self.n_patches

    @property
    def n_train(self) -> int:
        """Rows of the training split."""
        return self.n_train_samples * self.n_patches

    @property
    def block_rows(self) -> tuple[int, ...]:
        """Canonical row numbers at which blocks begin, and the number of rows at the end."""
        return tuple(block * self.n_patches for block in self.blocks)

    def noise_seed(self, sample: int) -> int:
        """The seed of a sample's noise."""
        state = np.random.SeedSequence([self.seed, sample]).generate_state(1, np.uint32)
        return int(state[0])

    def prompts(self, block: int) -> list[Prompt]:
        """The drawings of one block."""
        from compute.models.diffusion import Prompt

        return [Prompt(s, self.texts[s], self.noise_seed(s)) for s in self._samples(block)]

    def images(self, block: int, pictures: Pictures) -> list[Image]:
        """The pictures of one block that are shown."""
        from compute.models.diffusion import Image

        if self.shape is None:
            raise ValueError("this gallery is drawn: it shows no pictures.")
        size, channels = self.shape
        return [
            Image(s, fit(pictures.picture(s), size, channels), self.noise_seed(s), self.texts[s])
            for s in self._samples(block)
        ]

    def canonical_rows(self) -> dict[int, npt.NDArray[np.int64]]:
        """For each sample, the canonical row of each of its patches."""
        patches = np.arange(self.n_patches)
        return {s: place * self.n_patches + patches for place, s in enumerate(self.order)}

    def save(self, location: Location) -> None:
        """Write the gallery below `location` as one JSON file."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        location.put(GALLERY_FILE, json.dumps(record, ensure_ascii=False).encode())

    @classmethod
    def load(cls, files: Files) -> Gallery:
        """Read what :meth:`save` wrote."""
        record: dict[str, Any] = json.loads(files.get(GALLERY_FILE))
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        return cls(**fields)

    def _samples(self, block: int) -> tuple[int, ...]:
        return self.order[self.blocks[block] : self.blocks[block + 1]]


def arrange_gallery(
    names: Sequence[str],
    texts: Sequence[str],
    grid: tuple[int, int],
    settings: ExtractSettings,
    shape: tuple[int, int] | None = None,
) -> Gallery:
    """Choose samples in a seeded random order, hold some out, and group them into blocks.

    All drawings of one prompt fall into the same split.

    Raises
    ------
    ValueError
        If fewer than two samples, or only drawings of one prompt, are left.
    """
    n_patches = grid[0] * grid[1]
    order = np.random.default_rng(settings.seed).permutation(len(names))
    order = order[: max(1, (settings.max_rows or sys.maxsize) // n_patches)]
    groups: dict[str, list[int]] = {}
    for sample in order.tolist():
        groups.setdefault(texts[sample] if shape is None else names[sample], []).append(sample)
    if len(groups) < 2:
        raise ValueError(
            f"inputs gives {len(groups)} different samples of {n_patches} rows: give at least two, "
            "or raise extract.max_rows, since some are held out."
        )
    quota = settings.held_out * len(order)
    held_out: list[int] = []
    train: list[int] = []
    for place, group in enumerate(groups.values()):
        last = place == len(groups) - 1 and not train
        (held_out if len(held_out) < quota and not last else train).extend(group)
    canonical = (*train, *held_out)
    step = max(1, settings.block_rows // n_patches)
    blocks = [*range(0, len(train), step), *range(len(train), len(canonical), step)]
    return Gallery(
        names=tuple(names),
        texts=tuple(texts),
        order=canonical,
        blocks=(*blocks, len(canonical)),
        n_train_samples=len(train),
        grid=grid,
        seed=settings.seed,
        shape=shape,
    )


def save_pictures(location: Location, block: int, pictures: dict[int, bytes]) -> None:
    """Keep what was drawn or shown in one block: sample → PNG."""
    from safetensors.numpy import save

    samples = np.array(sorted(pictures), dtype=np.int64)
    data = [np.frombuffer(pictures[s], dtype=np.uint8) for s in samples.tolist()]
    arrays = {"samples": samples, "ends": np.cumsum([len(d) for d in data]).astype(np.int64)}
    location.put(f"{_FOLDER}/{block}.safetensors", save(arrays | {"png": np.concatenate(data)}))


def missing_pictures(location: Location, n_blocks: int) -> list[int]:
    """Blocks whose pictures are not there."""
    there = set(location.children(_FOLDER))
    return [block for block in range(n_blocks) if f"{block}.safetensors" not in there]


def read_pictures(files: Files, samples: set[int]) -> dict[int, bytes]:
    """Read the PNG of some samples."""
    from safetensors.numpy import load

    found: dict[int, bytes] = {}
    for name in files.children(_FOLDER):
        arrays: dict[str, npt.NDArray[Any]] = load(files.get(f"{_FOLDER}/{name}"))
        starts = np.concatenate([[0], arrays["ends"][:-1]])
        for sample, start, end in zip(arrays["samples"], starts, arrays["ends"], strict=True):
            if int(sample) in samples:
                found[int(sample)] = arrays["png"][start:end].tobytes()
    return found
