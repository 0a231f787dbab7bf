"""AP and time to accident as the scripts of DAD, CCD and their followers define them, beside our own by name.

Source: ``evaluation`` in Cogito2012/UString (src/eval_tools.py, commit 1730733), after Chan et al., ACCV 2016; the
precision is DSTA's, which follows them. BADAS publishes a time of this kind without the script that made it. Their
numbers differ from ours: a clip is positive from its first frame on, any frame over the threshold detects it, and a
clip is a false positive once. Time is a share of the time before the accident, multiplied by the whole clip's length.
At a threshold of exactly 0 their script also counts negatives as caught; this one does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dashvlm.metrics.functional import Array

STEP = 0.001


def curve(
    risks: Sequence[Array], positive: ArrayLike, accident: ArrayLike, step: float = STEP
) -> tuple[Array, Array, Array]:
    """When each clip first reaches each threshold.

    Args:
        risks: of each clip, oldest first; those of a positive are cut at its accident.
        positive: whether a clip has one, [N].
        accident: number of the frame of the accident, [N]; read for positives only.
        step: between thresholds, from the lowest risk of any clip up to 1.

    Returns:
        Thresholds [K]; whether a clip reaches them [N, K]; the share of the time before the accident that is left
        then [N, K], 0 for clips that are not positive or do not reach it.
    """
    lowest = max(min(float(np.min(r)) for r in risks), 0.0)
    levels = np.arange(lowest, 1.0, step)
    flags = np.asarray(positive, bool)
    reached = np.zeros((len(risks), len(levels)), bool)
    left = np.zeros((len(risks), len(levels)))
    for row, (risk, flag, frame) in enumerate(zip(risks, flags, np.asarray(accident, np.float64), strict=True)):
        first = np.searchsorted(np.maximum.accumulate(risk), levels)  # the first frame at or over each threshold
        reached[row] = first < len(risk)
        if flag:
            left[row] = np.where(reached[row], 1 - first / frame, 0.0)
    return levels, reached, left


def summary(
    reached: Array, left: Array, positive: ArrayLike, seconds: float, weight: ArrayLike = 1.0
) -> dict[str, Array]:
    """AP, mean time to accident, the time at the recall nearest to 80 %, the precision at the first from 80 % on.

    Of thresholds of equal recall the best precision and the longest time count, but for the highest recall, of which
    the lowest threshold counts (their order of equal recalls is left open by the sort that they use).

    Args:
        reached: from :func:`curve`.
        left: from :func:`curve`.
        positive: whether a clip has an accident, [N].
        seconds: length of a clip.
        weight: of the clips, [..., N].

    Returns:
        ``ap, mtta_s, tta_s@r80, p@r80``, each [...]; nan where no threshold catches anything.
    """
    flags = np.asarray(positive, np.float64)
    weights = np.broadcast_to(np.asarray(weight, np.float64), (*np.shape(weight)[:-1], len(flags)))
    flat = weights.reshape(-1, len(flags))
    hits = flat @ (reached * flags[:, None])
    said = flat @ reached
    ahead = flat @ left
    found = np.full((len(flat), 4), np.nan)
    for row, total in enumerate(flat @ flags):
        kept = hits[row] > 0
        if not kept.any() or total <= 0:
            continue
        precision, recall, time = (
            hits[row][kept] / said[row][kept],
            hits[row][kept] / total,
            ahead[row][kept] / hits[row][kept],
        )
        # Thresholds rise, so recall falls: equal recalls are runs, the highest recall comes first.
        starts = np.flatnonzero(np.append(True, np.diff(recall) != 0))
        best_p, best_t = np.maximum.reduceat(precision, starts), np.maximum.reduceat(time, starts)
        best_p[0], best_t[0] = precision[0], time[0]
        r, p, t = recall[starts][::-1], best_p[::-1], best_t[::-1]
        ap = p[0] * r[0] + float(((p[:-1] + p[1:]) / 2 * np.diff(r)).sum())
        near, enough = int(np.abs(r - 0.8).argmin()), np.flatnonzero(r >= 0.8)
        found[row] = ap, t.mean() * seconds, t[near] * seconds, p[enough[0]] if len(enough) else np.nan
    names = ("ap", "mtta_s", "tta_s@r80", "p@r80")
    return {name: found[:, i].reshape(weights.shape[:-1]) for i, name in enumerate(names)}
