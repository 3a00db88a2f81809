"""The observed variables below level 1: tokens, or patches of a picture and words of its prompt."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, hstack

from compute.inputs.corpus import Corpus
from compute.inputs.gallery import Gallery
from compute.settings import RecoverSettings
from storage.atlas.labels import words_of
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeSet

__all__ = ["ObservedVariables", "observed_variables"]

_log = logging.getLogger("strata")


@dataclass(frozen=True)
class ObservedVariables:
    """The observed variables of a run: one-hot columns, then words of the rows' samples.

    Attributes
    ----------
    values : array (n_values,) int64
        What the index column ``observed`` holds where the variable is 1 (token or patch), rising.
    labels : tuple of str
        Of all variables: the values, then the words.
    words : csr matrix (n_samples, n_words), optional
        1 where a sample's prompt or caption has the word.
    """

    values: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    words: Any = None

    def matrix(self, observed: npt.NDArray[np.int64], sample: npt.NDArray[np.int64]) -> Any:
        """CSR matrix (n, n_variables) of rows, from their index columns (n,)."""
        place = np.searchsorted(self.values, observed)
        rows = np.flatnonzero(np.isin(observed, self.values))
        shape = (len(observed), len(self.values))
        hot = csr_matrix((np.ones(len(rows), np.float32), (rows, place[rows])), shape=shape)
        if self.words is None:
            return hot
        return hstack([hot, self.words[sample]], format="csr")


def observed_variables(
    activations: ActivationSet,
    codes: CodeSet,
    samples: Corpus | Gallery,
    settings: RecoverSettings,
) -> ObservedVariables:
    """Tokens, or patches and prompt words, that occur often enough to be variables of the graph.

    There may be none, which is logged: then nothing is observed below level 1.
    """
    counts: Counter[int] = Counter()
    for start, stop in codes.plan.shard_bounds(codes.plan.split("train")):
        observed = activations.index("observed", start, stop)[codes.kept(start, stop)]
        found, times = np.unique(observed, return_counts=True)
        counts.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
    chosen = sorted(value for value, n in counts.items() if n >= settings.min_token_count)
    values = np.array(chosen, dtype=np.int64)
    if isinstance(samples, Corpus):
        labels = tuple(samples.vocabulary.get(token, str(token)) for token in chosen)
        variables = ObservedVariables(values, labels)
    else:
        _, across = samples.grid
        places = tuple(f"row {v // across + 1}, column {v % across + 1}" for v in chosen)
        words, labels = _words(samples, settings.min_token_count)
        variables = ObservedVariables(values, places + labels, words if labels else None)
    if not variables.labels:
        _log.warning(
            "nothing is in recover.min_token_count = %d rows, the most frequent is in %d: the "
            "observed level is empty; lower it for edges into level 1",
            settings.min_token_count,
            max(counts.values(), default=0),
        )
    return variables


def _words(gallery: Gallery, least: int) -> tuple[Any, tuple[str, ...]]:
    """Words of the training prompts that are in enough rows and not in every one."""
    train = set(gallery.order[: gallery.n_train_samples])
    spelt = [set(words_of([text])) for text in gallery.texts]
    counts = Counter(word for sample in train for word in spelt[sample])
    labels = sorted(
        word for word, n in counts.items() if n * gallery.n_patches >= least and n < len(train)
    )
    number = {word: column for column, word in enumerate(labels)}
    places = [
        (sample, number[word]) for sample, known in enumerate(spelt) for word in known & set(labels)
    ]
    rows, columns = np.array(places, dtype=np.int64).reshape(-1, 2).T
    ones = np.ones(len(places), dtype=np.float32)
    return csr_matrix((ones, (rows, columns)), shape=(len(spelt), len(labels))), tuple(labels)
