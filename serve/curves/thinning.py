"""Fewer points of a curve, whose spread and outliers stay visible.

    for bucket in buckets(versions, 300):
        spread([version.metrics.get("reward") for version in bucket])

A chart of 300 pixels can't show 5000 versions. Taking every n-th one would hide the single version in which the reward
collapsed, so neighbours are put together, with their minimum, mean and maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import fmean
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """The values of one metric in a bucket."""

    min: float
    mean: float
    max: float


def buckets(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Yield the items in order, in at most `most` buckets of sizes that differ by at most 1."""
    number = min(len(items), most)
    for index in range(number):
        yield items[index * len(items) // number : (index + 1) * len(items) // number]


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(min(known), _mean(known), max(known))


def _mean(values: Sequence[float]) -> float:
    try:
        return fmean(values)
    except OverflowError:  # of the sum
        return fsum(value / len(values) for value in values)
