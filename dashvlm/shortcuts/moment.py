"""What the time alone tells of a moment: the share of positive moments at that time of the training clips."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def prior_over(train: Array, label: Array, asked: Array, width: float) -> Array:
    """The share of positive training moments in each bin, with one moment of the mean share added to each.

    Args:
        train: times in seconds, or places from 0 to 1, of training moments, [N].
        label: their labels, [N].
        asked: times or places to give the share for, [M].
        width: of a bin.

    Example:
        >>> prior_over(np.array([0.0, 0.1, 5.0]), np.array([0, 0, 1]), np.array([0.2, 5.5]), 1.0).round(3).tolist()
        [0.111, 0.667]
    """
    mean = float(label.mean())
    place, wanted = (train / width).astype(int), (asked / width).astype(int)
    size = int(max(place.max(), wanted.max())) + 1
    count, positive = np.bincount(place, minlength=size), np.bincount(place, label, minlength=size)
    return np.asarray(((positive + mean) / (count + 1))[wanted], np.float64)
