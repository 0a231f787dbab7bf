"""Risk over whole drives: false alarms an hour against the events that are caught, as pure functions.

An alarm is raised where the risk reaches a threshold and none was raised within the refractory time before. Alarms in
negative time are false. An event is caught if the risk reaches the threshold in its positive window, whether or not
an earlier alarm still lasts. What comes after an event counts neither way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dashvlm.metrics.functional import Array, Metric

MOST_THRESHOLDS = 2000


@dataclass(frozen=True)
class Drive:
    """What was said of one clip, oldest first. N anchors.

    Attributes:
        time_s: times of the anchors in seconds, ascending, [N].
        risk: in [0, 1]; nan where it could not be computed, [N].
        label: 1 in the positive window, 0 before it and without an event, -1 for what does not count, [N].
        event_s: time of the event, or None.
    """

    time_s: Array
    risk: Array
    label: NDArray[np.int64]
    event_s: float | None


def count_alarms(time_s: ArrayLike, risk: ArrayLike, thresholds: ArrayLike, refractory_s: float) -> NDArray[np.int64]:
    """How often an alarm is raised at each threshold, [K].

    Lower thresholds never raise fewer: the alarms are the fewest spans of the refractory time that cover every
    moment at risk.

    Example:
        >>> count_alarms([0.0, 1.0, 2.0, 6.0], [0.9, 0.9, 0.2, 0.9], [0.5, 0.1, 0.95], 5.0).tolist()
        [2, 2, 0]
    """
    levels = np.asarray(thresholds, np.float64)
    found, free = np.zeros(len(levels), np.int64), np.full(len(levels), -np.inf)
    for now, value in zip(np.asarray(time_s, np.float64), np.asarray(risk, np.float64), strict=True):
        raised = (value >= levels) & (now >= free - 1e-9)
        found += raised
        free[raised] = now + refractory_s
    return found


@dataclass(frozen=True)
class Points:
    """Every operating point that matters. D drives, K thresholds, highest first.

    Attributes:
        thresholds: the risks in the events' windows, [K].
        false: false alarms, [D, K].
        caught: whether the drive's event is caught, [D, K].
        lead_s: seconds from the first moment at risk in the window to the event, nan where it is missed, [D, K].
        hours: negative time that was scored, [D].
        events: whether the drive has an event, [D].
    """

    thresholds: Array
    false: Array
    caught: Array
    lead_s: Array
    hours: Array
    events: Array

    def rates(self, weight: ArrayLike = 1.0) -> tuple[Array, Array]:
        """False alarms an hour and recall at each threshold, each [..., K], under weights [..., D] of the drives."""
        w = np.broadcast_to(np.asarray(weight, np.float64), (*np.shape(weight)[:-1], len(self.hours)))
        hours, events = (w @ self.hours)[..., None], (w @ self.events)[..., None]
        return _divide(w @ self.false, hours), _divide(w @ self.caught, events)

    def at(self, rates: Sequence[float], weight: ArrayLike = 1.0) -> tuple[Array, Array]:
        """Recall at the lowest threshold that raises so many false alarms an hour or fewer, and the time it leaves.

        Args:
            rates: false alarms an hour, [Q].
            weight: of the drives, [..., D].

        Returns:
            Recall [..., Q], 0 where every threshold raises more; and the mean time to accident of the events that
            are caught, in seconds [..., Q], undefined where none is.
        """
        w = np.broadcast_to(np.asarray(weight, np.float64), (*np.shape(weight)[:-1], len(self.hours)))
        undefined = (w @ self.hours <= 0) | (w @ self.events <= 0)
        found, leads = (np.full((*undefined.shape, len(rates)), np.nan) for _ in range(2))
        if len(self.thresholds):
            false, recall = self.rates(w)
            seconds = _divide(w @ np.nan_to_num(self.lead_s), w @ self.caught)
            for place, rate in enumerate(rates):
                allowed = (false <= rate).sum(-1)  # false alarms only grow from the highest threshold down
                last = (allowed - 1).clip(min=0)[..., None]
                found[..., place] = np.where(allowed > 0, np.take_along_axis(recall, last, -1)[..., 0], 0.0)
                leads[..., place] = np.where(allowed > 0, np.take_along_axis(seconds, last, -1)[..., 0], np.nan)
        else:
            found[:] = 0.0
        found[undefined], leads[undefined] = np.nan, np.nan
        return found, leads


def operating_points(drives: Sequence[Drive], stride_s: float, refractory_s: float) -> Points:
    """Count alarms of all drives at every threshold at which an event is caught, or caught earlier.

    A threshold in between raises more false alarms and catches no more. Of more than :data:`MOST_THRESHOLDS` that
    many are kept, evenly spread, so that a recall is that of a slightly higher threshold.

    Args:
        drives: what was said.
        stride_s: seconds that an anchor stands for.
        refractory_s: an alarm counts once in this time.
    """
    reached = [d.risk[d.label == 1] for d in drives if d.event_s is not None]
    values = np.concatenate([*reached, np.zeros(0)])
    levels = np.unique(values[np.isfinite(values)])[::-1]
    if len(levels) > MOST_THRESHOLDS:
        levels = levels[np.linspace(0, len(levels) - 1, MOST_THRESHOLDS).round().astype(int)]
    false, caught, lead = (np.zeros((len(drives), len(levels))) for _ in range(3))
    lead[:] = np.nan
    for row, drive in enumerate(drives):
        calm, window = drive.label == 0, drive.label == 1
        false[row] = count_alarms(drive.time_s[calm], drive.risk[calm], levels, refractory_s)
        if drive.event_s is None or not window.any():
            continue
        at_risk = drive.risk[window][:, None] >= levels  # [window, K]; nan reaches nothing
        caught[row] = at_risk.any(0)
        first = drive.time_s[window][at_risk.argmax(0)]
        lead[row] = np.where(at_risk.any(0), drive.event_s - first, np.nan)
    return Points(
        levels, false, caught, lead,
        np.array([float(((d.label == 0) & np.isfinite(d.risk)).sum()) * stride_s / 3600 for d in drives]),
        np.array([float(d.event_s is not None) for d in drives]),
    )  # fmt: skip


def in_blocks(
    metric: Metric,
    target: Array,
    score: Array,
    weight: Array,
    drive: NDArray[np.int64],
    mass: Array | float = 1.0,
    most: int = 4_000_000,
) -> Array:
    """A metric of moments under weights of their drives [R, D], some resamples at a time: a drive is hundreds of rows.

    Args:
        metric: of target, score and weight.
        target: 0 or 1, [N].
        score: risk, [N].
        weight: of the drives, [R, D].
        drive: number of each moment's drive, [N].
        mass: of the moments beside that, [N].
        most: numbers in memory at once.
    """
    size = max(most // max(len(target), 1), 1)
    parts = [metric(target, score, weight[i : i + size][:, drive] * mass) for i in range(0, len(weight), size)]
    return np.concatenate(parts)


def _divide(a: Array, b: Array) -> Array:
    return np.where(b > 0, a / np.where(b > 0, b, 1.0), np.nan)
