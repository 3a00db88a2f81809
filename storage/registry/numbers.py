"""Sets of version numbers as ranges: as small as a history is regular, whatever a file claims."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

__all__ = ["NumberSet"]


@dataclass(frozen=True)
class NumberSet:
    """A set of positive integers, kept as ranges that do not touch.

    Attributes
    ----------
    ranges : tuple of (int, int)
        First and last number of each range, ascending.

    Raises
    ------
    ValueError
        If the ranges are not ascending, touch, or hold a number below 1.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        bound = -1
        for first, last in self.ranges:
            if first < max(bound + 2, 1) or last < first:
                raise ValueError(f"ranges {self.ranges[:8]} are not ascending and apart")
            bound = last

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Self:
        """The set of some numbers, in any order."""
        ranges: list[tuple[int, int]] = []
        for number in sorted(set(numbers)):
            if ranges and number == ranges[-1][1] + 1:
                ranges[-1] = (ranges[-1][0], number)
            else:
                ranges.append((number, number))
        return cls(tuple(ranges))

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self.ranges, number, key=lambda ends: ends[0])
        return at > 0 and number <= self.ranges[at - 1][1]

    def __or__(self, other: NumberSet) -> NumberSet:
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.ranges, *other.ranges]):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return NumberSet(tuple(merged))
