"""Finding the concepts to steer: by a word, by contrast of two sets of samples, by example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from compute.steering.editing import nearest_timestep
from compute.steering.places import Moment, PlaceRows, Target
from compute.steering.running import Interventions, Probe
from compute.steering.steering_levels import ConceptLevel, concept_levels, moved

__all__ = ["Found", "contrast", "find_by_word", "mean_codes", "saeuron_scores", "strongest"]


@dataclass(frozen=True, slots=True)
class Found:
    """A concept that was found, with what speaks for it.

    Attributes
    ----------
    id : ``"{level}:{index}"``.
    score : larger is better; its unit is that of the search.
    label : the artifact's name for the concept, if it has one.
    """

    id: str
    level: int
    index: int
    score: float
    label: str = ""


def find_by_word(artifact: Any, words: str, *, limit: int = 10) -> list[Found]:
    """Return the concepts whose label, or strongest examples, hold the words.

    A label counts more than examples, and a whole word more than a part of one. The score is 3 for
    a whole word in the label, 2 for a part of one, plus the share of the concept's examples that
    peak at a token holding the word.

    Parameters
    ----------
    artifact : a loaded artifact.
    words : what to look for; case is ignored, and every word must be found.
    """
    wanted = words.lower().split()
    if not wanted:
        raise ValueError("words to find are empty: give at least one")
    peaks = _peaks(artifact)
    found = []
    for node in artifact.graph.nodes.to_pylist():
        if node["level"] == 0:
            continue
        label = node["label"] or ""
        scores = [_word_score(word, label, peaks.get(node["id"], ())) for word in wanted]
        if min(scores) > 0:
            score = float(np.mean(scores))
            found.append(Found(node["id"], node["level"], node["index"], score, label))
    return sorted(found, key=lambda f: (-f.score, f.level, f.index))[:limit]


def mean_codes(
    model: Any, artifact: Any, runs: Iterable[Callable[[], Any]]
) -> dict[int, NDArray[np.float32]]:
    """Return the mean code of every concept in every sample, by level number.

    Parameters
    ----------
    model, artifact : as for `steer`.
    runs : each runs the model once; the items of its batch are samples. Under guidance the
        conditional half counts; of a drawing those steps count that are nearest to the level.

    Returns
    -------
    Level → ``(n_samples, n_concepts)``, means over positions (and steps).
    """
    target = Target.of(model)
    levels = moved(concept_levels(artifact), target.device)
    means: dict[int, list[NDArray[np.float32]]] = {level.level: [] for level in levels}
    for run in runs:
        sums = {level.level: _Sum(level, levels) for level in levels}
        probes: list[tuple[str, Probe]] = [(lv.hookpoint, sums[lv.level]) for lv in levels]
        with Interventions(target, (), probes), torch.no_grad():
            run()
        for level in levels:
            means[level.level].append(sums[level.level].mean())
    return {level: np.concatenate(rows) for level, rows in means.items()}


def saeuron_scores(
    present: NDArray[np.floating[Any]], absent: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Return SAeUron's score of every concept (Cywiński & Deja 2025, 2501.18052, eq. 4).

    ``mean_i(c) / Σ_j mean_j(c) − mean_i(¬c) / Σ_j mean_j(¬c)``, with means over samples.

    Parameters
    ----------
    present, absent : ``(n, n_concepts)`` mean codes of samples with and without what is sought.
    """

    def share(codes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        mean = codes.mean(axis=0, dtype=np.float64)
        return np.asarray(mean / max(float(mean.sum()), 1e-12))

    return share(present) - share(absent)


def contrast(
    present: dict[int, NDArray[np.float32]],
    absent: dict[int, NDArray[np.float32]],
    *,
    score: Literal["separation", "saeuron"] = "separation",
    limit: int = 10,
    artifact: Any = None,
) -> list[Found]:
    """Rank the concepts that are stronger in one set of samples than in another.

    Parameters
    ----------
    present, absent : `mean_codes` of the two sets.
    score : ``separation`` is the difference of the means over the pooled standard deviation of
        samples (Cohen's d, with the deviation's median over concepts added, so that a concept that
        is nearly constant does not win on noise); ``saeuron`` is `saeuron_scores`.
    artifact : gives the labels.
    """
    labels = _labels(artifact)
    found = []
    for level, with_it in present.items():
        without = absent[level]
        if score == "saeuron":
            scores = saeuron_scores(with_it, without)
        else:
            spread = np.sqrt((with_it.var(axis=0) + without.var(axis=0)) / 2)
            floor = np.median(spread[spread > 0]) if (spread > 0).any() else 1.0
            scores = (with_it.mean(axis=0) - without.mean(axis=0)) / (spread + floor)
        found += _ranked(level, scores, limit, labels)
    return sorted(found, key=lambda f: (-f.score, f.level, f.index))[:limit]


def strongest(
    codes: dict[int, NDArray[np.float32]], *, limit: int = 10, artifact: Any = None
) -> list[Found]:
    """Rank the concepts of an example: mean code as a share of the largest that was observed.

    Parameters
    ----------
    codes : `mean_codes` of the example.
    artifact : artifact or levels that know the concepts' ranges, and the labels.
    """
    labels = _labels(artifact)
    largest = {lv.level: lv.largest for lv in concept_levels(artifact)} if artifact else {}
    found = []
    for level, rows in codes.items():
        scale = np.nan_to_num(largest.get(level, np.ones(rows.shape[1])), nan=np.inf)
        found += _ranked(level, rows.mean(axis=0) / np.maximum(scale, 1e-12), limit, labels)
    return sorted(found, key=lambda f: (-f.score, f.level, f.index))[:limit]


class _Sum:
    """Sums the codes of one level over the passes of one run."""

    def __init__(self, level: ConceptLevel, levels: Sequence[ConceptLevel]) -> None:
        self._level = level
        self._timesteps = sorted({lv.timestep for lv in levels if lv.timestep is not None})
        self._sum: torch.Tensor | None = None
        self._rows = 0

    def __call__(self, rows: PlaceRows, moment: Moment) -> None:
        own = self._level.timestep
        now = moment.timestep
        if own is not None and now is not None and nearest_timestep(self._timesteps, now) != own:
            return
        values = rows.values
        if moment.guided and len(values) % 2 == 0:
            values = values[len(values) // 2 :]
        for position in torch.split(values, 64, dim=1):
            codes = self._level.dictionary.encode(position.float()).sum(dim=1)
            self._sum = codes if self._sum is None else self._sum + codes
        self._rows += values.shape[1]

    def mean(self) -> NDArray[np.float32]:
        """Return ``(b, n_concepts)``."""
        if self._sum is None:
            raise ValueError(
                f"level {self._level.name!r} was not reached: no step of the run is nearest to it"
            )
        return np.asarray((self._sum / self._rows).cpu().numpy())


def _ranked(level: int, scores: NDArray[Any], limit: int, labels: dict[str, str]) -> list[Found]:
    best = np.argsort(-scores, kind="stable")[:limit]
    ids = [(f"{level}:{index}", int(index)) for index in best]
    return [Found(i, level, n, float(scores[n]), labels.get(i, "")) for i, n in ids]


def _labels(artifact: Any) -> dict[str, str]:
    if not hasattr(artifact, "graph"):
        return {}
    nodes = artifact.graph.nodes
    ids, labels = nodes["id"].to_pylist(), nodes["label"].to_pylist()
    return {name: label or "" for name, label in zip(ids, labels, strict=True)}


def _peaks(artifact: Any) -> dict[str, list[str]]:
    """Concept id → the tokens at which its strongest examples peak, in lower case."""
    peaks: dict[str, list[str]] = {}
    for entry in artifact.levels:
        try:
            examples = artifact.examples(entry.level)
        except KeyError:
            continue
        for example in examples:
            tokens, peak = example.get("tokens"), example.get("peak")
            if tokens and peak is not None:
                token = str(tokens[peak]).strip().lower()
                peaks.setdefault(f"{entry.level}:{example['index']}", []).append(token)
    return peaks


def _word_score(word: str, label: str, peaks: Sequence[str]) -> float:
    lower = label.lower()
    whole = word in [w.strip(".,:;()[]·/…'\"`") for w in lower.split()]
    share = sum(word in peak for peak in peaks) / len(peaks) if peaks else 0.0
    return (3.0 if whole else 2.0 if word in lower else 0.0) + share
