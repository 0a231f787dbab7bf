"""Confidence intervals by resampling whole groups: clips of one recording are not independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; nan where it is not defined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return "n/a"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def group_weights(groups: Sequence[str], num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Draw bootstrap weights [R, N]: groups with replacement, all rows of a group together.

    Field and Welsh, "Bootstrapping clustered data", JRSS B 2007 (the cluster bootstrap).
    """
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), num_resamples)
    return counts.astype(np.float64)[:, member]


def estimate(value: float, resampled: NDArray[np.float64], level: float = 0.95) -> Estimate:
    """Combine a value with the percentiles of its resamples (undefined ones left out)."""
    defined = resampled[np.isfinite(resampled)]
    if not len(defined):
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))


def mean_estimate(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Estimate:
    """Estimate the mean of values [N] under bootstrap weights [R, N]; nan without values."""
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"))
    total = weights.sum(-1)
    sums = weights @ values
    return estimate(float(values.mean()), np.where(total > 0, sums / np.where(total > 0, total, 1), np.nan))


def row_alarms(groups: Sequence[str], failed: int, counted_as: str) -> list[str]:
    """Say how many rows failed and whether there are too few groups for intervals; the same for all tasks."""
    out = [f"{failed} rows could not be computed and count as {counted_as}"] if failed else []
    number = len(set(groups))
    few = f"only {number} group{'s' * (number != 1)}: the intervals themselves are unreliable"
    return [*out, few] if number < 10 else out


def with_interval(node: Mapping[str, Any] | float | None, digits: int = 3) -> str:
    """``0.731 [0.650, 0.801]``; without an interval the value alone; a dash for what is not defined.

    Args:
        node: ``value, low, high``; or a number, as older results have it.
        digits: of the bounds.
    """
    node = node if isinstance(node, Mapping) else {"value": node}
    value, low = node["value"], node.get("low")
    if value is None or value != value:
        return "–"
    if low is None or low != low:
        return f"{value:.3f}" if abs(value) >= 0.01 or not value else f"{value:.2g}"
    return f"{value:.3f} [{low:.{digits}f}, {node['high']:.{digits}f}]"
