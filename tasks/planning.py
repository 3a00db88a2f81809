"""Planning: everything that can be known, and refused, before a model is loaded."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compute.inputs import Document, documents_hash, read_documents
from compute.settings import (
    ExtractSettings,
    InputSettings,
    LearnSettings,
    LevelSettings,
    ModelSettings,
)
from storage.locations import Location
from storage.records import fingerprint
from storage.references import Reference

if TYPE_CHECKING:
    from compute.corpus import Corpus
    from compute.models.language_facts import LanguageFacts
    from storage.activations import ActivationPlan

__all__ = ["ExtractionPlan", "check", "code_commit", "package_versions", "plan_extraction"]

# Raised when extraction comes to compute something else from the same settings.
EXTRACT_VERSION = 1


@dataclass(frozen=True)
class ExtractionPlan:
    """What extraction will do: its folder, its inputs, and the shape of what it writes."""

    location: Location
    fingerprint: str
    corpus: Corpus
    activations: ActivationPlan


@dataclass(frozen=True)
class Sources:
    """The model and the documents, looked at but not loaded."""

    facts: LanguageFacts
    documents: list[Document]
    weights_sha256: str
    dtype: str

    @classmethod
    def look(
        cls, model: ModelSettings, inputs: InputSettings, levels: Sequence[LevelSettings]
    ) -> Sources:
        """Look at them; raise ValueError if there is no text, no model, or no such hookpoint."""
        documents = read_documents(inputs)
        from compute.models.devices import choose_device, choose_dtype
        from compute.models.language_facts import LanguageFacts
        from compute.models.sources import weights_hash

        facts = LanguageFacts.read(model.source, gguf_file=model.gguf_file)
        facts.check([level.hookpoint for level in levels])
        dtype = choose_dtype(model.dtype, choose_device(model.device))
        return cls(
            facts,
            documents,
            weights_hash(model.source, model.gguf_file),
            str(dtype).removeprefix("torch."),
        )

    def fingerprint(self, levels: Sequence[LevelSettings], settings: ExtractSettings) -> str:
        """Name of the activation set that these sources give."""
        return fingerprint(
            "extract",
            EXTRACT_VERSION,
            {
                "weights": self.weights_sha256,
                "dtype": self.dtype,
                "documents": documents_hash(self.documents),
                "levels": [level.model_dump() for level in levels],
                **settings.model_dump(),
            },
            [],
        )


def plan_extraction(
    store: Location,
    sources: Sources,
    levels: Sequence[LevelSettings],
    settings: ExtractSettings,
) -> ExtractionPlan:
    """Tokenise the documents and lay out the activation set; a plan once made is read again."""
    import numpy as np

    from compute.corpus import Corpus, arrange
    from storage.activations import ActivationPlan, LevelPlan
    from storage.locations import NotFound

    name = sources.fingerprint(levels, settings)
    location = Reference.folder(store, "extract", name)
    try:
        corpus = Corpus.load(location)
    except NotFound:
        special = np.array(sorted(sources.facts.special_tokens))
        tokens = sources.facts.tokenize(document.text for document in sources.documents)
        tokens = [ids[~np.isin(ids, special)] for ids in tokens]
        used: list[int] = np.unique(np.concatenate(tokens)).tolist()
        vocabulary = {token: sources.facts.tokenizer.decode([token]) for token in used}
        names = [document.name for document in sources.documents]
        corpus = arrange(names, tokens, vocabulary, settings)
    plan = ActivationPlan(
        fingerprint=name,
        levels=tuple(
            LevelPlan(name=level.name, width=sources.facts.width(level.hookpoint))
            for level in levels
        ),
        dtype=settings.dtype,
        n_train=corpus.n_train,
        n_rows=corpus.n_rows,
        blocks=corpus.block_rows,
        shard_rows=settings.shard_rows,
        chunk_rows=settings.chunk_rows,
        seed=settings.seed,
        provenance={
            "model": sources.facts.source.name,
            "architecture": sources.facts.architecture,
            "weights_sha256": sources.weights_sha256,
            "model_dtype": sources.dtype,
            "documents_sha256": documents_hash(sources.documents),
            "hookpoints": {level.name: level.hookpoint for level in levels},
            "context_length": settings.context_length,
        },
    )
    return ExtractionPlan(location, name, corpus, plan)


def check(
    store: str,
    model: ModelSettings,
    inputs: InputSettings,
    levels: Sequence[LevelSettings],
    extract: ExtractSettings,
    learn: LearnSettings,
) -> None:
    """Refuse what cannot work, before any model is loaded.

    Raises
    ------
    ValueError
        If there is no text, no such model, no such layer, or the disk is too small.
    PermissionError
        If the store cannot be written.
    """
    location = Location(store)
    location.check_writable()
    sources = Sources.look(model, inputs, levels)
    if extract.context_length > sources.facts.max_context:
        raise ValueError(
            f"extract.context_length {extract.context_length} exceeds the "
            f"{sources.facts.max_context} tokens that {model.source!r} takes: choose less."
        )
    folder = Reference.folder(location, "extract", sources.fingerprint(levels, extract))
    if Reference.find(folder) is not None:
        return
    plan = plan_extraction(location, sources, levels, extract).activations
    free = location.free_bytes()
    needed = disk_bytes(plan, learn)
    if free is not None and free < needed:
        raise ValueError(
            f"store {location.url!r} has {free / 1e6:,.0f} MB free and the run needs about "
            f"{needed / 1e6:,.0f} MB: free some space, choose another store, or lower "
            "extract.max_rows."
        )


def disk_bytes(plan: ActivationPlan, learn: LearnSettings) -> int:
    """Most bytes that a run takes on disk at once, without what it shares with earlier runs."""
    # Weights, their Adam moments in two checkpoints, and the published copy, in float32.
    weights = sum(2 * learn.n_concepts * level.width * 4 for level in plan.levels)
    codes = plan.n_rows * len(plan.levels) * learn.k * 6
    return plan.disk_bytes + max(plan.staging_bytes, codes + 8 * weights)


def package_versions() -> dict[str, str]:
    """Versions of the packages that the result depends on."""
    names = ("strata", "torch", "transformers", "zarr", "numpy", "scipy", "ray", "prefect")
    return {name: importlib.metadata.version(name) for name in names}


def code_commit() -> str | None:
    """The git commit of this code, marked if it has been changed since; None outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> Any:
        return subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        commit = git("rev-parse", "HEAD")
    except OSError:
        return None
    if commit.returncode:
        return None
    changed = bool(git("status", "--porcelain", "--untracked-files=no").stdout.strip())
    return str(commit.stdout.strip()) + ("+changed" if changed else "")
