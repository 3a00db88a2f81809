"""The model and the inputs of a run: looked at, so that all can be planned, but not loaded."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compute.inputs.corpus import CORPUS_FILE, TOKENS_FILE, Corpus, arrange
from compute.inputs.documents import Document, documents_hash, read_documents, read_prompts
from compute.inputs.gallery import GALLERY_FILE, Gallery, arrange_gallery
from compute.inputs.images import Pictures, open_pictures
from compute.settings import ExtractSettings, InputSettings, LevelSettings, ModelSettings
from storage.locations import Location, NotFound
from storage.sealing.damage import CorruptFile
from storage.sealing.seals import Files, SealedFolder, seal_files

if TYPE_CHECKING:
    from compute.models.adapter import ModelLevel
    from compute.models.diffusion_facts import DiffusionFacts
    from compute.models.language_facts import LanguageFacts

__all__ = [
    "Samples",
    "Sources",
    "block_reader",
    "checked_samples",
    "load_samples",
    "look",
    "model_loader",
    "resumed_samples",
    "save_samples",
]

_SAMPLES_SEAL = "samples.json"

Samples = Corpus | Gallery
"""What a run reads, in canonical order and in blocks."""


@dataclass(frozen=True)
class Sources(ABC):
    """A model, its inputs and the levels at which it is read.

    Attributes
    ----------
    weights_sha256, inputs_sha256 : str
    dtype : str
        The type in which the model will run.
    """

    model: ModelSettings
    levels: tuple[LevelSettings, ...]
    weights_sha256: str
    inputs_sha256: str
    dtype: str

    @property
    @abstractmethod
    def architecture(self) -> str:
        """The kind of model, such as ``llama`` or ``StableDiffusionPipeline``."""

    @property
    @abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Width of each level's activations."""

    @abstractmethod
    def identity(self, settings: ExtractSettings) -> dict[str, Any]:
        """All that decides the bytes of the activation set, JSON-ready."""

    @abstractmethod
    def check(self, settings: ExtractSettings) -> None:
        """Raise ValueError for settings that this model cannot follow."""

    @abstractmethod
    def arrange(self, settings: ExtractSettings) -> Samples:
        """Lay the inputs out; the longest part of planning."""

    def _identity(self, settings: ExtractSettings, without: set[str]) -> dict[str, Any]:
        return {
            "weights": self.weights_sha256,
            "model_dtype": self.dtype,
            "inputs": self.inputs_sha256,
            "levels": [level.model_dump(exclude_none=True) for level in self.levels],
            **settings.model_dump(exclude=without),
        }


@dataclass(frozen=True)
class TextSources(Sources):
    """A language model and documents."""

    facts: LanguageFacts
    documents: list[Document]

    @property
    def architecture(self) -> str:
        """The model type of transformers."""
        return self.facts.architecture

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Hookpoint → width, in the order in which the model passes them."""
        return self.facts.widths([level.hookpoint for level in self.levels])

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level's activations."""
        return tuple(self.places[level.hookpoint] for level in self.levels)

    def identity(self, settings: ExtractSettings) -> dict[str, Any]:
        """All that decides the bytes of the activation set."""
        return self._identity(settings, {"steps", "guidance", "grid"})

    def check(self, settings: ExtractSettings) -> None:
        """Refuse contexts that the model does not hold, and levels that are out of order."""
        from compute.models.language_facts import check_order

        check_order(_places(self.levels), list(self.places))
        try:
            self.facts.check_context(settings.context_length)
        except ValueError as error:
            raise ValueError(f"extract.{error}") from None

    def arrange(self, settings: ExtractSettings) -> Corpus:
        """Tokenise the documents and cut them into contexts.

        Raises
        ------
        ValueError
            If a text has a token that the model does not know, or too few have any.
        """
        tokens = self.facts.tokenize(document.text for document in self.documents)
        used = np.unique(np.concatenate(tokens))
        self.facts.check_tokens(used)
        vocabulary = {token: self.facts.tokenizer.decode([token]) for token in used.tolist()}
        names = [document.name for document in self.documents]
        return arrange(names, tokens, vocabulary, settings, self.facts.special_tokens)


@dataclass(frozen=True)
class PictureSources(Sources):
    """A diffusion model, and prompts to draw or pictures to add noise to."""

    facts: DiffusionFacts
    prompts: list[Document] | None
    pictures: Pictures | None

    @property
    def architecture(self) -> str:
        """Name of the pipeline's class."""
        return self.facts.pipeline

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Level name → (width, patches down, patches across)."""
        return self.facts.shapes(_places(self.levels))

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each level's activations."""
        return tuple(self.shapes[level.name][0] for level in self.levels)

    def identity(self, settings: ExtractSettings) -> dict[str, Any]:
        """All that decides the bytes of the activation set."""
        without = {"context_length"}
        if self.prompts is None:
            without |= {"steps", "guidance"}
        return self._identity(settings, without) | {"size": self.model.size}

    def check(self, settings: ExtractSettings) -> None:
        """Refuse more patches than a level has pixels to fill."""
        finest = max(down for _, down, _ in self.shapes.values())
        if settings.grid is not None and settings.grid > finest:
            raise ValueError(
                f"extract.grid {settings.grid} exceeds the {finest} patches a side of the finest "
                "level: choose less."
            )

    def arrange(self, settings: ExtractSettings) -> Gallery:
        """Split the samples and lay them out."""
        from compute.models.diffusion import common_grid

        grid = common_grid(self.shapes, settings.grid)
        if self.prompts is not None:
            names = [prompt.name for prompt in self.prompts]
            return arrange_gallery(names, [p.text for p in self.prompts], grid, settings)
        assert self.pictures is not None  # either prompts or pictures are given
        shape = self.facts.picture_shape
        return arrange_gallery(self.pictures.names, self.pictures.texts, grid, settings, shape)


def look(
    model: ModelSettings,
    inputs: InputSettings,
    levels: Sequence[LevelSettings],
    *,
    seed: int = 0,
) -> Sources:
    """Look at the model and the inputs.

    Parameters
    ----------
    seed : int
        Of a built-in source that draws its samples.

    Raises
    ------
    ValueError
        If there is no input, no such model, no such hookpoint or no such timestep.
    """
    # Before torch is imported, which takes a second.
    documents = read_documents(inputs) if inputs.text is not None else []
    prompts = read_prompts(inputs, seed=seed) if inputs.prompts is not None else None
    pictures = open_pictures(inputs, seed=seed) if inputs.images is not None else None
    from compute.models.devices import choose_device, choose_dtype
    from compute.models.weight_files import weights_hash

    chosen = choose_dtype(model.dtype, choose_device(model.device))
    dtype = str(chosen).removeprefix("torch.")
    if model.kind == "language":
        from compute.models.language_facts import LanguageFacts

        language = LanguageFacts.read(model.source, gguf_file=model.gguf_file)
        language.check(_places(levels))
        return TextSources(
            model=model,
            levels=tuple(levels),
            dtype=dtype,
            weights_sha256=weights_hash(model.source, model.gguf_file),
            inputs_sha256=documents_hash(documents),
            facts=language,
            documents=documents,
        )
    from compute.models.diffusion_facts import DiffusionFacts

    diffusion = DiffusionFacts.read(model.source, size=model.size)
    diffusion.check(_places(levels))
    return PictureSources(
        model=model,
        levels=tuple(levels),
        dtype=dtype,
        weights_sha256=weights_hash(model.source),
        inputs_sha256=documents_hash(prompts or []) if pictures is None else pictures.sha256(),
        facts=diffusion,
        prompts=prompts,
        pictures=pictures,
    )


def model_loader(
    model: ModelSettings, levels: Sequence[LevelSettings], settings: ExtractSettings, dtype: str
) -> Callable[[], Any]:
    """What loads the model as a run reads it; it can travel to a worker.

    Parameters
    ----------
    dtype : str
        The type in which it runs, such as ``bfloat16``.
    """
    chosen: dict[str, Any] = {
        "levels": _places(levels),
        "dtype": dtype,
        "device": model.device,
        "batch_size": settings.batch_size,
    }
    if model.kind == "language":
        from compute.models.language import LanguageModel

        return functools.partial(
            LanguageModel.load,
            model.source,
            gguf_file=model.gguf_file,
            context_length=settings.context_length,
            **chosen,
        )
    from compute.models.diffusion import DiffusionModel

    return functools.partial(
        DiffusionModel.load,
        model.source,
        steps=settings.steps,
        guidance=settings.guidance,
        size=model.size,
        grid=settings.grid,
        keep_pictures=True,
        **chosen,
    )


def block_reader(
    samples: Samples, inputs: InputSettings, *, seed: int = 0
) -> Callable[[int], Sequence[Any]]:
    """What gives the samples of a block, by its number, as the model's adapter takes them.

    Texts and prompts are read from the samples themselves; pictures that are shown are decoded
    when their block is read.

    Parameters
    ----------
    seed : int
        Of a built-in source that draws its samples.
    """
    if isinstance(samples, Corpus):
        return samples.contexts
    if inputs.images is None:
        return samples.prompts
    return functools.partial(samples.images, pictures=open_pictures(inputs, seed=seed))


def save_samples(samples: Samples, location: Location) -> None:
    """Write the corpus or the gallery, and its seal, for a run that goes on here."""
    samples.save(location)
    names = [GALLERY_FILE] if isinstance(samples, Gallery) else [TOKENS_FILE, CORPUS_FILE]
    seal_files(location, names, _SAMPLES_SEAL)


def resumed_samples(location: Location) -> Samples | None:
    """What an earlier run has saved here; None if it is not there as it was saved."""
    try:
        return load_samples(SealedFolder.open(location, _SAMPLES_SEAL))
    except (NotFound, CorruptFile):
        return None


def checked_samples(location: Location) -> Samples:
    """What the check of this run has saved here.

    Raises
    ------
    FileNotFoundError
        If it is not there any more, as it was saved.
    """
    samples = resumed_samples(location)
    if samples is None:
        raise FileNotFoundError(
            f"the samples of {location.url} are gone since the run was checked: run it again."
        )
    return samples


def load_samples(files: Files) -> Samples:
    """Read the corpus or the gallery that lies beside an activation set."""
    return Gallery.load(files) if files.exists(GALLERY_FILE) else Corpus.load(files)


def _places(levels: Sequence[LevelSettings]) -> tuple[ModelLevel, ...]:
    from compute.models.adapter import ModelLevel

    return tuple(ModelLevel(level.name, level.hookpoint, level.timestep) for level in levels)
