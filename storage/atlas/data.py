"""What an atlas page shows: frozen, validated models that do not care where the values came from.

The models are the contract between whoever holds a concept hierarchy (a published artifact, a test)
and :func:`storage.atlas.render`. Everything is checked here, at the door, so that the page itself
can trust its data; strings are *not* trusted to be harmless and are escaped where they are shown.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "AtlasData",
    "Changes",
    "Concept",
    "Edge",
    "Example",
    "Histogram",
    "HistoryEntry",
    "ImageExample",
    "Level",
    "Neighbour",
    "SteeringStrip",
    "TokenExample",
]

_CONCEPT_ID = re.compile(r"(0|[1-9]\d{0,5}):(0|[1-9]\d{0,8})")
_IMAGE_URI = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")


def _concept_id(value: str) -> str:
    if not _CONCEPT_ID.fullmatch(value):
        raise ValueError(
            f"concept id {value[:60]!r} is not 'level:index'; write for instance '2:417'"
        )
    return value


def _image_uri(value: str) -> str:
    if not _IMAGE_URI.fullmatch(value):
        raise ValueError(
            f"image {value[:40]!r}… is not a base64 data URI; embed a PNG, JPEG, WebP or GIF as "
            "'data:image/png;base64,…', because the page makes no outside request"
        )
    return value


def _iso_time(value: str) -> str:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(
            f"created_at {value[:60]!r} is not an ISO 8601 time; "
            "write for instance '2026-03-01T02:00:00Z'"
        ) from None
    return value


ConceptId = Annotated[str, AfterValidator(_concept_id)]
ImageUri = Annotated[str, AfterValidator(_image_uri)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


Fate = Literal["kept", "changed", "born", "gone"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Level(_Model):
    """One level of the hierarchy.

    Parameters
    ----------
    level
        0 for the observed variables, 1..L from lowest to highest.
    name
        Path-safe name, for instance ``layer-07``.
    hookpoint
        Where in the model the level was read; empty for observed variables.
    timestep
        Denoising timestep for diffusion models, else ``None``.
    n_concepts
        Size of the level's dictionary. May exceed the number of concepts listed in the atlas.
    metrics
        Fit of the level by name; ``explained_variance``, ``l0`` and ``dead_share`` get a drawing of
        their own, any other name is shown as a number.
    """

    level: Annotated[int, Field(ge=0, lt=1_000_000)]
    name: str
    hookpoint: str = ""
    timestep: int | None = None
    n_concepts: Annotated[int, Field(ge=0)]
    metrics: dict[str, Finite] = Field(default_factory=dict)


class Histogram(_Model):
    """Distribution of a concept's non-zero activations: ``len(edges) == len(counts) + 1``."""

    edges: tuple[Finite, ...]
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _bins_match(self) -> Self:
        if len(self.edges) != len(self.counts) + 1 or not self.counts:
            raise ValueError(
                f"histogram has {len(self.edges)} edges and {len(self.counts)} counts; "
                "give one edge more than counts, and at least one count"
            )
        if any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("histogram edges do not rise strictly; sort them and drop empty bins")
        return self


class TokenExample(_Model):
    """A stretch of text around a strong activation.

    Parameters
    ----------
    tokens, values
        The tokens as text (leading spaces and newlines kept) and the concept's activation at each.
    peak
        Index into ``tokens`` of the activation that this example was chosen for.
    activation
        The activation at the peak.
    source
        Where the text came from, for instance ``topics · document 12, token 431``.
    """

    tokens: Annotated[tuple[str, ...], Field(min_length=1)]
    values: tuple[NonNegative, ...]
    peak: Annotated[int, Field(ge=0)]
    activation: NonNegative
    source: str = ""

    @model_validator(mode="after")
    def _lengths_match(self) -> Self:
        if len(self.tokens) != len(self.values):
            raise ValueError(
                f"example has {len(self.tokens)} tokens and {len(self.values)} values; "
                "give one value per token"
            )
        if self.peak >= len(self.tokens):
            raise ValueError(
                f"example peak {self.peak} is not among its {len(self.tokens)} tokens; "
                "give a position counted from 0 within the example"
            )
        return self


class ImageExample(_Model):
    """An image with the concept's activation per patch.

    Parameters
    ----------
    image
        Base64 data URI.
    patches
        Activation per patch as rows of columns, top row first; empty when only the image is known.
    activation
        The strongest activation.
    source
        Where the image came from.
    """

    image: ImageUri
    patches: tuple[tuple[NonNegative, ...], ...] = ()
    activation: NonNegative
    source: str = ""

    @model_validator(mode="after")
    def _patches_are_a_grid(self) -> Self:
        if len({len(row) for row in self.patches}) > 1 or any(not row for row in self.patches):
            raise ValueError("image patches are ragged; give rows of one and the same length")
        return self


Example = TokenExample | ImageExample


class Neighbour(_Model):
    """A concept of the same level with a similar direction."""

    id: ConceptId
    cosine: Annotated[float, Field(ge=-1.0001, le=1.0001, allow_inf_nan=False)]


class HistoryEntry(_Model):
    """What became of a concept in one version: ``born``, ``kept``, ``changed``, ``gone``, …"""

    version: Annotated[int, Field(ge=1)]
    status: str


class SteeringStrip(_Model):
    """The model's output without and with an edit of the concept.

    Parameters
    ----------
    media
        Whether ``before`` and ``after`` are text or base64 data URIs of images.
    before, after
        Output of the untouched and of the edited model.
    scale
        The factor applied to the concept: 1 is a no-op, 0 ablates.
    prompt
        What the model was asked.
    """

    media: Literal["text", "image"] = "text"
    before: str
    after: str
    scale: Finite | None = None
    prompt: str = ""

    @model_validator(mode="after")
    def _images_are_embedded(self) -> Self:
        if self.media == "image":
            _image_uri(self.before)
            _image_uri(self.after)
        return self


class Concept(_Model):
    """One node: a learnt latent, or an observed variable at level 0.

    Parameters
    ----------
    id
        ``"{level}:{index}"``.
    level, index
        The two parts of ``id``.
    label
        What people read; any text. Observed variables carry their own text (token, word, patch).
    frequency
        Share of rows with a non-zero activation, in [0, 1].
    mean_activation, max_activation
        Over the rows where the concept is active.
    histogram
        Distribution of the non-zero activations.
    examples
        Strongest first.
    neighbours
        Most similar first.
    kind
        Reading of the direction check, for instance ``selection`` or ``common cause``.
    form
        How the parts combine, for instance ``and``, ``or``, ``threshold``.
    unexplained
        Share of the concept's variation that its parts leave unexplained (its error node), in
        [0, 1].
    recurrence
        Mean |cosine| with what fits from other seeds have found in its place, in [0, 1].
    history
        Oldest version first.
    steering
        Before and after an edit, where one was made.
    """

    id: ConceptId
    level: Annotated[int, Field(ge=0)]
    index: Annotated[int, Field(ge=0)]
    label: str
    frequency: Share
    mean_activation: NonNegative = 0.0
    max_activation: NonNegative = 0.0
    histogram: Histogram | None = None
    examples: tuple[Example, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    kind: str | None = None
    form: str | None = None
    unexplained: Share | None = None
    recurrence: Share | None = None
    history: tuple[HistoryEntry, ...] = ()
    steering: SteeringStrip | None = None

    @model_validator(mode="after")
    def _id_is_level_and_index(self) -> Self:
        if self.id != f"{self.level}:{self.index}":
            raise ValueError(
                f"concept id {self.id!r} disagrees with level {self.level} and index {self.index}; "
                f"write '{self.level}:{self.index}'"
            )
        return self


class Edge(_Model):
    """An arrow part → whole with its evidence.

    Parameters
    ----------
    source, target
        Ids of the part (lower level) and of the whole (higher level).
    strength
        Size of the influence, non-negative; comparable within one level pair.
    confidence
        In [0, 1].
    sign
        +1 when the part makes the whole more likely, −1 when less.
    stability
        Share of half-samples in which the selection of edges, repeated, finds the edge again.
    verdict
        Outcome of the intervention on the model itself; ``None`` when the run had none.
    effect
        Measured effect of that intervention.
    """

    source: ConceptId
    target: ConceptId
    strength: NonNegative
    confidence: Share
    sign: Literal[-1, 1] = 1
    stability: Share | None = None
    verdict: Literal["confirmed", "refuted", "untested"] | None = None
    effect: Finite | None = None


class Changes(_Model):
    """What has become of concepts and edges since an earlier version.

    Parameters
    ----------
    since
        The version that is compared with.
    concepts, edges
        Numbers of ``kept``, ``changed``, ``born`` and ``gone`` ones.
    gone
        Labels of concepts that are gone; may be a part of them.
    cosines
        By the level's name, mean |cosine| of the directions of concepts that are in both.
    """

    since: Annotated[int, Field(ge=1)]
    concepts: dict[Fate, Annotated[int, Field(ge=0)]]
    edges: dict[Fate, Annotated[int, Field(ge=0)]]
    gone: tuple[str, ...] = ()
    cosines: dict[str, Share] = Field(default_factory=dict)


class AtlasData(_Model):
    """Everything on one atlas page.

    Raises
    ------
    pydantic.ValidationError
        (a ``ValueError``) naming the field, the value and the remedy: ids that repeat, levels or
        concepts that an edge or a neighbour names but the atlas lacks, edges that do not point up.
    """

    name: str
    version: Annotated[int, Field(ge=1)]
    created_at: Annotated[str, AfterValidator(_iso_time)]
    title: str
    description: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    steps: tuple[tuple[str, NonNegative], ...] = ()
    levels: tuple[Level, ...]
    concepts: tuple[Concept, ...]
    edges: tuple[Edge, ...] = ()
    changes: Changes | None = None

    @model_validator(mode="after")
    def _is_one_hierarchy(self) -> Self:
        levels = {level.level for level in self.levels}
        if len(levels) != len(self.levels):
            raise ValueError("levels repeat a level number; list every level once")
        known: dict[str, int] = {}
        for concept in self.concepts:
            if concept.level not in levels:
                raise ValueError(
                    f"concept {concept.id!r} is of level {concept.level}, which levels lacks; "
                    "add the level"
                )
            if concept.id in known:
                raise ValueError(f"concept id {concept.id!r} appears twice; make ids unique")
            known[concept.id] = concept.level
        for concept in self.concepts:
            for neighbour in concept.neighbours:
                if neighbour.id not in known:
                    raise ValueError(
                        f"neighbour {neighbour.id!r} of concept {concept.id!r} is not in concepts; "
                        "leave it out or add the concept"
                    )
        for edge in self.edges:
            for end in (edge.source, edge.target):
                if end not in known:
                    raise ValueError(
                        f"edge {edge.source!r} → {edge.target!r} names concept {end!r}, "
                        "which concepts lacks; leave the edge out or add the concept"
                    )
            if known[edge.source] >= known[edge.target]:
                raise ValueError(
                    f"edge {edge.source!r} → {edge.target!r} does not point upward; "
                    "give the part (lower level) as source and the whole as target"
                )
        return self
