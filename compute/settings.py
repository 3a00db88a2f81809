"""What a run can be told: frozen, typed, validated, and hashable to a fingerprint.

Imports neither torch nor Ray, so that forms, ``--help`` and validation cost nothing. What a
dictionary can be told stands in ``compute/dictionaries/dictionary_settings.py``.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compute.dictionaries.dictionary_settings import (
    ADVANCED,
    DictionarySettings,
    mark_advanced,
)
from storage.locations import check_name
from storage.registry.quality_gates import QualityGate

__all__ = [
    "EncodeSettings",
    "ExtractSettings",
    "InputSettings",
    "LearnSettings",
    "LevelLearnSettings",
    "LevelSettings",
    "ModelSettings",
    "PublishSettings",
    "Recipe",
    "RecoverSettings",
    "ResourceSettings",
    "Resources",
    "VerifySettings",
]


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra=mark_advanced,
    )


class ModelSettings(_Settings):
    """The generative model."""

    kind: Literal["language", "diffusion"] = "language"
    """A causal language model of transformers, or a pipeline (or UNet2DModel) of diffusers."""

    source: str = Field(min_length=1)
    """Hub id, folder, or `package:NAME` for a folder inside an installed Python package."""

    gguf_file: str | None = None
    """Name of the GGUF file in that folder, if the weights are one."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations in the model; auto is bfloat16 where the hardware has it."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", json_schema_extra=ADVANCED)
    """Where the model runs."""

    size: int | None = Field(None, ge=8)
    """Side of a diffusion model's images in pixels; by default the model's own."""


class InputSettings(_Settings):
    """What the model reads: one of text, prompts and images."""

    text: str | None = Field(None, min_length=1)
    """A .txt, .md, .jsonl, .json, .csv or .parquet file, also as .gz or .zst, a folder of them,
    `builtin:python-topics`, or `builtin:grammar`."""

    prompts: str | None = Field(None, min_length=1)
    """Prompts that a diffusion model draws, read along the denoising trajectory: a file with one a
    line (.txt) or a row (.jsonl, .json, .csv, .parquet), or `builtin:sprites`."""

    images: str | None = Field(None, min_length=1)
    """Images that a diffusion model is shown, noised to each level's timestep: a folder of .png and
    .jpg files, `builtin:digits` or `builtin:sprites`."""

    column: str = Field("text", json_schema_extra=ADVANCED)
    """Field that holds the text, in files of records; `a.b` is the field b of a record in a."""

    count: int | None = Field(None, ge=2)
    """Images or drawings in all. Prompts are drawn again from other noise where there are fewer; by
    default every prompt and every image is taken once, and 2,000 of a source without end. Of texts
    it says how many `builtin:grammar` gives."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in INPUT_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"inputs gives {' and '.join(given) or 'neither'}: give one of "
                f"{', '.join(INPUT_KINDS)}."
            )
        return self

    @property
    def source(self) -> str:
        """The one source that is given."""
        return str(next(v for name in INPUT_KINDS if (v := getattr(self, name)) is not None))


INPUT_KINDS = ("text", "prompts", "images")


class LevelSettings(_Settings):
    """One level of the hierarchy: a place in the model."""

    hookpoint: str = Field(min_length=1)
    """Such as `layers.12.output`, `layers.12.mlp`, or any module path."""

    timestep: int | None = Field(None, ge=0)
    """Timestep of a diffusion model, counted from 0 (clean) as in its training."""

    name: str = Field(min_length=1)
    """Path-safe name; it names folders and files."""

    @model_validator(mode="after")
    def _safe(self) -> Self:
        check_name(self.name, field="levels.name")
        return self


class ExtractSettings(_Settings):
    """From inputs to an activation set."""

    context_length: int = Field(128, ge=2, le=131_072)
    """Tokens in one forward context; documents are cut into consecutive windows."""

    max_rows: int | None = Field(None, ge=2)
    """At most so many rows (tokens), from documents in a seeded random order; all by default."""

    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the rows kept for scores. Whole documents are held out, never parts of one."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type in which activations are stored; auto is float16 where the values of a few samples lie
    far inside its range, else the type in which the model runs."""

    batch_size: int = Field(8, ge=1)
    """Contexts, images or drawings in one forward pass."""

    steps: int = Field(25, ge=1, le=1000)
    """Denoising steps of a drawing."""

    guidance: float | None = Field(None, ge=0)
    """Scale of classifier-free guidance; by default the pipeline's own."""

    grid: int | None = Field(None, ge=1, le=256)
    """Patches per side of an image, each one row; by default those of the coarsest level."""

    block_rows: int = Field(4096, ge=1)
    """Rows that one unit of extraction work yields; the most that a killed worker loses."""

    shard_rows: int = Field(16_384, ge=1)
    """Rows in one shard of the store."""

    chunk_rows: int = Field(1024, ge=1)
    """Rows in one checksummed chunk; a divisor of shard_rows."""

    seed: int = Field(0, ge=0, json_schema_extra=ADVANCED)
    """Fixes the choice of documents, the split and the order of rows."""

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> Self:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(
                f"extract.shard_rows {self.shard_rows} is not a multiple of extract.chunk_rows "
                f"{self.chunk_rows}: choose a multiple."
            )
        return self


# Active concepts per row of a dictionary by itself, and about as many as a model finds.
_DICTIONARY_K, _USUAL_ACTIVE = 32, 8
# What a hierarchical selection model reads of the settings of learning.
_HIERARCHICAL = {"method", "source", "n_concepts", "k", "levels", "seed", "seeds", "outlier_norm"}


class LevelLearnSettings(_Settings):
    """What of learning may differ from level to level."""

    n_concepts: int | None = Field(None, ge=1)
    """Concepts of the level."""

    k: int | None = Field(None, ge=1)
    """Active concepts per row of the level."""

    source: str | None = Field(None, min_length=1)
    """Where the level's trained dictionary is; see `learn.source`."""


class LearnSettings(DictionarySettings):
    """From an activation set to one dictionary per level."""

    method: Literal["hierarchical", "independent", "import"] = Field(
        "hierarchical",
        description=(
            "A hierarchical selection model, whose levels inform each other and which keeps as many"
            " concepts as describe the rows, in training until what held-out rows take to describe"
            " falls no more; or a dictionary of every level by itself; or import, which trains"
            " nothing and takes the dictionaries of source. Of what is said here,"
            " n_concepts (the most of a level), k, seed, seeds and outlier_norm hold for the former"
            ", and its published dictionaries are of the architecture jumprelu. Of import, source,"
            " outlier_norm and levels hold, and what is said of training is set aside."
        ),
    )
    source: str | None = Field(
        None,
        min_length=1,
        description=(
            "Of import: a folder or file with a trained dictionary, relative to the recipe, or"
            " `owner/name/FOLDER` on the Hugging Face Hub; or a folder with one folder per level,"
            " by its name. Levels may name their own in levels."
        ),
        json_schema_extra=ADVANCED,
    )
    # Of a dictionary by itself k is a number in any case, of a model it may be found.
    k: int | None = Field(  # type: ignore[assignment]
        None,
        ge=1,
        description=(
            "Active concepts per row. Left out, a hierarchical selection model has as many as"
            " describe the rows, and a dictionary by itself 32: exactly for topk, on average for"
            " every other architecture."
        ),
    )
    seeds: int = Field(
        1,
        ge=1,
        le=16,
        description=(
            "Fits from so many seeds; all but the first only tell how often each concept comes"
            " again. Of a hierarchical selection model."
        ),
        json_schema_extra=ADVANCED,
    )
    outlier_norm: float = Field(
        10.0,
        gt=1,
        description=(
            "Rows whose norm exceeds this many medians at any level (attention sinks) are left"
            " out of fits and scores, and counted in the report."
        ),
        json_schema_extra=ADVANCED,
    )
    checkpoint_steps: int = Field(
        200,
        ge=1,
        description="Steps between checkpoints; a killed run resumes at the last one.",
        json_schema_extra=ADVANCED,
    )

    levels: dict[str, LevelLearnSettings] = Field(
        {},
        description="What differs at some levels, by their names: `{layer-23: {n_concepts: 512}}`.",
        json_schema_extra=ADVANCED,
    )

    @property
    def active(self) -> int:
        """Active concepts per row, as far as can be said before the fit."""
        usual = _USUAL_ACTIVE if self.method == "hierarchical" else _DICTIONARY_K
        return min(usual, self.n_concepts) if self.k is None else self.k

    @property
    def published_architecture(self) -> str:
        """The architecture of the dictionaries as they are published."""
        own = "jumprelu" if self.method == "hierarchical" else self.architecture
        return own if own in ("topk", "gated") else "jumprelu"

    def of_level(self, name: str) -> LearnSettings:
        """What holds for one level."""
        own = self.levels.get(name, LevelLearnSettings()).model_dump(exclude_none=True)
        return self.model_copy(update=own | {"levels": {}})

    def source_of(self, name: str) -> str:
        """Where the trained dictionary of a level is, of import."""
        own = self.levels.get(name, LevelLearnSettings()).source or self.source
        if own is None:
            raise ValueError(
                f"method = import has no source for level {name!r}: give learn.source, or"
                f" learn.levels with {name}: {{source: ...}}"
            )
        return own

    def dictionary_settings(self) -> DictionarySettings:
        """How a dictionary by itself is trained."""
        own = {name: getattr(self, name) for name in DictionarySettings.model_fields}
        return DictionarySettings(**own | {"k": self.active})

    @model_validator(mode="after")
    def _levels_are_consistent(self) -> Self:
        for name, own in self.levels.items():
            n_concepts = own.n_concepts or self.n_concepts
            k = own.k or self.k
            if k is not None and k > n_concepts:
                raise ValueError(
                    f"k = {k} exceeds n_concepts = {n_concepts} at level {name!r}: choose a k no"
                    " larger than the number of concepts"
                )
        return self

    @model_validator(mode="after")
    def _sources_are_used(self) -> Self:
        given = [self.source, *(own.source for own in self.levels.values())]
        named = [source for source in given if source is not None]
        if named and self.method != "import":
            raise ValueError(
                f"source = {named[0]} does nothing with method = {self.method}: leave it out, or"
                " take method = import"
            )
        if self.method == "import" and not named:
            raise ValueError(
                "method = import has no source: give the folder of a trained dictionary, or its"
                " name on the Hub"
            )
        return self

    @model_validator(mode="after")
    def _nothing_unused(self) -> Self:
        if self.method == "import":
            # A recipe that trains becomes one that imports by these two settings alone.
            return self
        together = self.method == "hierarchical"
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            unused = name not in _HIERARCHICAL if together else name == "seeds"
            if unused and value != field.default:
                raise ValueError(
                    f"{name} = {value} does nothing with method = {self.method}: leave it at"
                    f" {field.default}, or take another method"
                )
        return self


class EncodeSettings(_Settings):
    """From dictionaries to sparse codes and examples."""

    examples: int = Field(8, ge=1, le=100, json_schema_extra=ADVANCED)
    """Strongest examples kept per concept."""

    window: int = Field(12, ge=0, le=128, json_schema_extra=ADVANCED)
    """Tokens shown on either side of an example's peak."""


class RecoverSettings(_Settings):
    """From codes to the concept graph."""

    min_token_count: int = Field(20, ge=2, json_schema_extra=ADVANCED)
    """A token is an observed variable if it occurs in at least so many rows."""


class VerifySettings(_Settings):
    """From a recovered graph to one whose edges were tested by intervention on the model."""

    enabled: bool = False
    """Whether edges are tested; it takes the model, and more time than all other steps."""

    min_confidence: float = Field(0.9, ge=0, le=1, json_schema_extra=ADVANCED)
    """Edges of a lower confidence stay untested."""

    items: int = Field(256, ge=8)
    """Held-out windows or pictures among which each part finds those in which it is active."""

    samples: int = Field(12, ge=3, json_schema_extra=ADVANCED)
    """Most samples per part; an edge needs three for an interval."""

    controls: int = Field(40, ge=4, json_schema_extra=ADVANCED)
    """Parts of like frequency that an edge is compared with."""

    max_parts: int | None = Field(256, ge=1, json_schema_extra=ADVANCED)
    """Most parts tested per level, chosen at random; null tests all."""

    strips: int = Field(6, ge=0, json_schema_extra=ADVANCED)
    """Strong concepts of each level that the report shows steered, before and after."""

    strip_scale: float = Field(0.0, ge=-100, le=100)
    """Factor of the concept's code in a strip: 0 removes it, below 0 acts against it."""

    seed: int = Field(0, ge=0, json_schema_extra=ADVANCED)
    """Fixes the choice of samples and parts."""


class PublishSettings(_Settings):
    """From what a run has found to a published version."""

    gates: tuple[QualityGate, ...] = Field((), json_schema_extra=ADVANCED)
    """Bars that a version must reach, or it is published as rejected and never becomes latest:
    `{metric: explained_variance, at_least: 0.6, per_level: true}`. Metrics of the whole version
    are `graph.…` and `continuity.kept_share`; the latter is not asked of the first version."""


class ResourceSettings(_Settings):
    """What one step asks of Ray. Results do not depend on the number of workers."""

    workers: int | None = Field(None, ge=1, json_schema_extra=ADVANCED)
    """Workers that hold a model or read shards; by default one per accelerator, else per CPU."""

    cpus: float = Field(1, gt=0)
    """CPUs, and threads, of one worker."""

    gpus: float = Field(0, ge=0)
    """Accelerators of one worker; 0 runs on CPUs."""

    memory_gb: float | None = Field(None, gt=0, json_schema_extra=ADVANCED)
    """Memory that one worker reserves, in GB."""


class Resources(_Settings):
    """What each step asks of Ray."""

    extract: ResourceSettings = ResourceSettings()
    learn: ResourceSettings = ResourceSettings(cpus=2)
    encode: ResourceSettings = ResourceSettings()
    recover: ResourceSettings = ResourceSettings()

    @model_validator(mode="after")
    def _nothing_unused(self) -> Self:
        for step, names in _UNUSED.items():
            given = getattr(self, step)
            for name in names:
                default = ResourceSettings.model_fields[name].default
                if getattr(given, name) != default:
                    raise ValueError(
                        f"{step}.{name} is {getattr(given, name)}, which {step} does not use: "
                        "leave it out."
                    )
        return self


# Of a dictionary per level there is one worker, and a graph is recovered on processors.
_UNUSED = {"learn": ("workers",), "recover": ("workers", "gpus", "memory_gb")}


class Recipe(_Settings):
    """One run, from a generative model to a published concept artifact."""

    name: str
    """Name of the artifact; each run with other settings publishes its next version."""

    title: str = ""
    """Heading of the report."""

    description: str = ""
    """What the report says about the run."""

    store: str = Field(default_factory=lambda: os.environ.get("STRATA_STORE", ".strata"))
    """Where results lie: a folder or a URL such as s3://bucket/prefix; every worker reaches it."""

    model: ModelSettings
    inputs: InputSettings
    levels: tuple[LevelSettings, ...] = Field(min_length=1)
    """Places in the model, lowest level first."""

    extract: ExtractSettings = ExtractSettings()
    learn: LearnSettings = LearnSettings()
    encode: EncodeSettings = EncodeSettings()
    recover: RecoverSettings = RecoverSettings()
    verify: VerifySettings = VerifySettings()
    publish: PublishSettings = PublishSettings()
    resources: Resources = Resources()

    @property
    def told(self) -> dict[str, Any]:
        """The settings that a version's lineage tells of, as plain JSON: all but where it ran."""
        return self.model_dump(mode="json", exclude={"store", "resources"})

    @model_validator(mode="after")
    def _named(self) -> Self:
        check_name(self.name)
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names):
            raise ValueError(f"levels {names} repeat a name: give each level its own.")
        for name in self.learn.levels:
            if name not in names:
                raise ValueError(f"learn.levels has {name!r}, which no level is: give {names}.")
        if self.learn.method == "import":
            for name in names:
                self.learn.source_of(name)
        return self

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        language = self.model.kind == "language"
        if language != (self.inputs.text is not None):
            fitting = "inputs.text" if language else "inputs.prompts or inputs.images"
            raise ValueError(
                f"a {self.model.kind} model does not read {self.inputs.source!r}: give {fitting}, "
                "or change model.kind."
            )
        for level in self.levels:
            if language != (level.timestep is None):
                remedy = "leave it out" if language else "give each level one"
                raise ValueError(
                    f"level {level.name!r} has timestep {level.timestep} in a {self.model.kind} "
                    f"model: {remedy}."
                )
        return self
