"""Means with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean, the ends of its 95 % confidence interval, and how many values it is of."""

    mean: float
    low: float
    high: float
    cases: int


def bootstrap(values: Sequence[float], groups: Sequence[str], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean with its 95 % percentile interval.

    Photographs are drawn with replacement, not values: several holes in one photograph are not independent.

    Args:
        values: One for each case.
        groups: The photograph of each case.
        resamples: How often photographs are drawn; 0 gives the mean alone, as both ends.
        seed: Of the draws.

    Raises:
        ValueError: No values, or another number of groups.
    """
    if not len(values) or len(values) != len(groups):
        raise ValueError(f"wanted at least one value and a group for each, got {len(values)} and {len(groups)}")
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if resamples < 1 or len(names) < 2:
        return Interval(mean, mean, mean, len(array))
    sums, counts = np.bincount(index, array), np.bincount(index)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)  # (resamples, groups)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), len(array))
