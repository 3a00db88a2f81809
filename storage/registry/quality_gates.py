"""Quality gates: bars that a version must reach, or it is published as rejected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["QualityGate", "failures", "no_better_than_mean"]


@dataclass(frozen=True)
class QualityGate:
    """One bar for one metric.

    Attributes
    ----------
    metric : str
        Name of the metric; a dot leads into a nested mapping.
    at_least, at_most : float or None
        The bounds, inclusive; at least one of the two.
    per_level : bool
        Look in the metrics of every level instead of those of the whole version.

    Examples
    --------
    >>> failures([QualityGate("fit.r2", at_least=0.8)], {"fit": {"r2": 0.7}})
    ['fit.r2 = 0.7 is below 0.8']
    """

    # Descriptions are what a form shows of a gate.
    metric: str = field(metadata={"description": "Metric, such as explained_variance."})
    at_least: float | None = field(default=None, metadata={"description": "Lowest value."})
    at_most: float | None = field(default=None, metadata={"description": "Highest value."})
    per_level: bool = field(default=False, metadata={"description": "Whether of every level."})

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"gate {self.metric!r} has no bound: set at_least or at_most.")

    def check(self, metrics: Mapping[str, Any], where: str = "") -> str | None:
        """Why the metrics fail this gate, or None; a metric that is not reported fails."""
        value: Any = metrics
        for part in self.metric.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        name = f"{self.metric}{where}"
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return f"{name} is not reported"
        if self.at_least is not None and value < self.at_least:
            return f"{name} = {value:.4g} is below {self.at_least:.4g}"
        if self.at_most is not None and value > self.at_most:
            return f"{name} = {value:.4g} is above {self.at_most:.4g}"
        return None


def failures(
    gates: Iterable[QualityGate],
    metrics: Mapping[str, Any],
    levels: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> list[str]:
    """One sentence for every gate that fails; an empty list lets the version pass.

    Parameters
    ----------
    gates : iterable of QualityGate
        The bars.
    metrics : mapping
        Metrics of the whole version.
    levels : sequence of (str, mapping)
        Name and metrics of every level.
    """
    found = []
    for gate in gates:
        if gate.per_level:
            found += [gate.check(own, f" of {name}") for name, own in levels]
        else:
            found.append(gate.check(metrics))
    return [reason for reason in found if reason is not None]


def no_better_than_mean(
    levels: Iterable[tuple[str, Mapping[str, Any]]], gates: Iterable[QualityGate] = ()
) -> list[str]:
    """One sentence for every level whose dictionary explains no more than the mean does.

    This is the bar of every version, unless one of its own gates is for each level's explained
    variance and so takes its place.

    Parameters
    ----------
    levels : iterable of (str, mapping)
        Name and metrics of every level; ``explained_variance`` is that of the held-out rows, and
        missing where it is not a number.
    gates : iterable of QualityGate
        The version's own gates.
    """
    if any(gate.per_level and gate.metric == "explained_variance" for gate in gates):
        return []
    found = []
    for name, metrics in levels:
        value = metrics.get("explained_variance")
        told = "not a number" if value is None else f"{value:.4g}"
        if value is None or not value > 0:
            found.append(
                f"the dictionary of {name} explains no more than the mean of its rows does: its "
                f"explained_variance is {told}"
            )
    return found
