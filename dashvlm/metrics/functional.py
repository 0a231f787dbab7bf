"""Binary metrics of scores, as pure functions that take weights.

Every function takes ``target`` [N] of 0/1, ``score`` [N] in [0, 1] and ``weight`` [..., N]. A
bootstrap is a batch of weights, so 1,000 resamples are one call. A metric that is not defined
(one class only, nothing predicted positive) is nan, never 0. Definitions are scikit-learn's
unless said otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

Array = NDArray[np.float64]
Metric = Callable[[ArrayLike, ArrayLike, ArrayLike], Array]
THRESHOLD = 0.5
BLOCK = 2_000_000
"""Weights that a metric looks at together: what it computes on the way then stays in the processor's cache."""
Function = TypeVar("Function", bound=Callable[..., Array])


def by_blocks(metric: Function) -> Function:
    """Let a metric take its weights [R, N] a block of rows at a time, so that memory does not grow with R."""

    @functools.wraps(metric)
    def blocked(target: ArrayLike, score: ArrayLike, *args: Any, **kwargs: Any) -> Array:
        last = "weight" not in kwargs and bool(args) and np.ndim(args[-1]) > 0
        weight = kwargs.get("weight", args[-1] if last else 1.0)
        if np.ndim(weight) != 2 or np.size(weight) <= BLOCK:
            return metric(target, score, *args, **kwargs)
        rows, rest = max(BLOCK // np.shape(weight)[1], 1), {k: v for k, v in kwargs.items() if k != "weight"}
        weights, others = np.asarray(weight), args[:-1] if last else args
        parts = [weights[first : first + rows] for first in range(0, len(weights), rows)]
        return np.concatenate([metric(target, score, *others, weight=part, **rest) for part in parts])

    return blocked  # type: ignore[return-value]


@by_blocks
def confusion(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Return weighted counts [..., 4] of true negatives, false positives, false negatives, true positives.

    Example:
        >>> confusion([0, 0, 1, 1], [0.1, 0.9, 0.2, 0.8]).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    y, s, w = _arrays(target, score, weight)
    said = s >= THRESHOLD
    cells = [(y == 0) & ~said, (y == 0) & said, (y == 1) & ~said, (y == 1) & said]
    return np.asarray(w @ np.stack(cells, axis=-1).astype(np.float64))


def accuracy(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Share of rows on the right side of 0.5."""
    tn, fp, fn, tp = np.moveaxis(confusion(target, score, weight), -1, 0)
    return _divide(tn + tp, tn + fp + fn + tp)


def balanced_accuracy(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Mean of the recalls of both classes."""
    tn, fp, fn, tp = np.moveaxis(confusion(target, score, weight), -1, 0)
    return (_divide(tp, tp + fn) + _divide(tn, tn + fp)) / 2


def precision(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Share of positives among rows said to be positive; nan if none is."""
    _, fp, _, tp = np.moveaxis(confusion(target, score, weight), -1, 0)
    return _divide(tp, tp + fp)


def recall(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Share of positives that are said to be positive."""
    _, _, fn, tp = np.moveaxis(confusion(target, score, weight), -1, 0)
    return _divide(tp, tp + fn)


def f1(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Harmonic mean of precision and recall of the positive class."""
    _, fp, fn, tp = np.moveaxis(confusion(target, score, weight), -1, 0)
    return _divide(2 * tp, 2 * tp + fp + fn)


def mcc(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Matthews correlation coefficient; 0 for a predictor that says one class only, undefined without rows."""
    tn, fp, fn, tp = np.moveaxis(confusion(target, score, weight), -1, 0)
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    found = np.where(scale > 0, (tp * tn - fp * fn) / np.where(scale > 0, scale, 1.0), 0.0)
    return np.where(tn + fp + fn + tp > 0, found, np.nan)


@by_blocks
def roc_auc(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Probability that a positive scores above a negative, ties counting half.

    Example:
        >>> float(roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]))
        0.75
    """
    pos, neg, _ = _by_score(target, score, weight)
    below = np.cumsum(neg, -1) - neg
    total = pos.sum(-1) * neg.sum(-1)
    return _divide((pos * (below + neg / 2)).sum(-1), total)


@by_blocks
def recall_at(target: ArrayLike, score: ArrayLike, most_false: float, weight: ArrayLike = 1.0) -> Array:
    """The highest recall at which at most so large a share of the negatives is called positive.

    Example:
        >>> float(recall_at([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.0)), float(recall_at([0, 1], [0.9, 0.1], 1.0))
        (0.5, 1.0)
    """
    pos, neg, _ = _by_score(target, score, weight)
    total, rest = pos.sum(-1), neg.sum(-1)
    hits, false = np.cumsum(pos[..., ::-1], -1), np.cumsum(neg[..., ::-1], -1)
    allowed = np.where(false <= most_false * rest[..., None] + 1e-9, hits, 0.0)
    best = allowed.max(-1) if allowed.shape[-1] else np.zeros(total.shape)
    return np.where(rest > 0, _divide(best, total), np.nan)


@by_blocks
def average_precision(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Area under the precision-recall steps, without interpolation.

    Example:
        >>> round(float(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])), 4)
        0.8333
    """
    pos, neg, _ = _by_score(target, score, weight)
    pos, neg = pos[..., ::-1], neg[..., ::-1]
    tp, fp = np.cumsum(pos, -1), np.cumsum(neg, -1)
    steps = np.where(tp + fp > 0, tp / np.where(tp + fp > 0, tp + fp, 1.0), 0.0)
    return _divide((pos * steps).sum(-1), pos.sum(-1))


@by_blocks
def brier(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Mean squared distance of the score from the label."""
    y, s, w = _arrays(target, score, weight)
    return _divide(w @ (s - y) ** 2, w.sum(-1))


@by_blocks
def ece(target: ArrayLike, score: ArrayLike, weight: ArrayLike = 1.0, num_bins: int = 10) -> Array:
    """Expected calibration error of P(positive): bins of equal width, weighted by their mass.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    """
    y, s, w = _arrays(target, score, weight)
    bins = np.minimum((s * num_bins).astype(int), num_bins - 1)
    gaps = w @ ((s - y)[:, None] * (bins[:, None] == np.arange(num_bins)))
    return _divide(np.abs(gaps).sum(-1), w.sum(-1))


def mean_time_to_accident(scores: ArrayLike, horizons_s: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Mean warning time before the event, averaged over all thresholds that detect something.

    At one threshold a clip's warning time is the longest horizon whose score reaches it; clips
    that never reach it do not count, as in Chan et al., ACCV 2016. Resolution is that of the
    horizons at which the clips were scored.

    Args:
        scores: [P, H], positives only, a column a horizon.
        horizons_s: [H] in seconds.
        weight: [..., P].

    Example:
        >>> float(mean_time_to_accident([[0.9, 0.2]], [0.5, 1.0]))
        0.75
    """
    matrix, h = np.asarray(scores, np.float64), np.asarray(horizons_s, np.float64)
    w = np.broadcast_to(np.asarray(weight, np.float64), (*np.shape(weight)[:-1], len(matrix)))
    thresholds = np.unique(matrix[np.isfinite(matrix)])
    if not len(thresholds):
        return np.full(w.shape[:-1], np.nan)
    # A clip warns h[j] before the event at the thresholds above its highest score at longer horizons, up to the one
    # at h[j]: steps at the highest score so far, whose weights add up from the highest threshold down.
    order = np.argsort(-h)
    reached = np.maximum.accumulate(np.where(np.isfinite(matrix), matrix, -np.inf)[:, order], axis=1)
    gained = h[order] - np.append(h[order][1:], 0.0)
    place = np.searchsorted(thresholds, reached)
    clip, column = np.nonzero(np.isfinite(reached))
    shape = len(matrix), len(thresholds)
    warned = sparse.csr_array((gained[column], (clip, place[clip, column])), shape)
    last = column == len(h) - 1
    hit = sparse.csr_array((np.ones(last.sum()), (clip[last], place[clip[last], -1])), shape)
    flat, means = w.reshape(-1, len(matrix)), []
    block = max(4_000_000 // len(thresholds), 1)  # rows of weights at a time: 100 MB
    for first in range(0, len(flat), block):
        part = flat[first : first + block]
        seconds, hits = (np.cumsum((part @ steps)[:, ::-1], axis=1) for steps in (warned, hit))
        defined = hits > 0
        mean = np.where(defined, seconds / np.where(defined, hits, 1.0), 0.0)
        means.append(_divide(mean.sum(1), defined.sum(1)))
    return np.concatenate(means).reshape(w.shape[:-1])


def roc_curve(target: ArrayLike, score: ArrayLike) -> tuple[Array, Array]:
    """False and true positive rates from the highest threshold down, beginning at (0, 0)."""
    pos, neg, _ = _by_score(target, score, 1.0)
    tp, fp = np.cumsum(pos[::-1]), np.cumsum(neg[::-1])
    return np.append(0.0, _divide(fp, fp[-1])), np.append(0.0, _divide(tp, tp[-1]))


def pr_curve(target: ArrayLike, score: ArrayLike) -> tuple[Array, Array]:
    """Recall and precision from the highest threshold down."""
    pos, neg, _ = _by_score(target, score, 1.0)
    tp, fp = np.cumsum(pos[::-1]), np.cumsum(neg[::-1])
    return _divide(tp, tp[-1]), _divide(tp, tp + fp)


@by_blocks
def macro_f1(target: ArrayLike, said: ArrayLike, weight: ArrayLike = 1.0) -> Array:
    """Mean F1 of the classes that occur in ``target``; ``said`` may hold others, or -1 for none.

    Classes are whole numbers; classes that a resample lacks are left out of its mean.

    Example:
        >>> round(float(macro_f1([0, 0, 1, 2], [0, 1, 1, -1])), 4)
        0.4444
    """
    y, s = np.asarray(target), np.asarray(said)
    w = np.broadcast_to(np.asarray(weight, np.float64), (*np.shape(weight)[:-1], len(y)))
    scores, present = [], []
    for c in np.unique(y):
        tp, support = (w * ((y == c) & (s == c))).sum(-1), (w * (y == c)).sum(-1)
        said_c = (w * (s == c)).sum(-1)
        scores.append(np.where(support > 0, 2 * tp / np.where(support + said_c > 0, support + said_c, 1), 0.0))
        present.append(support > 0)
    if not scores:
        return np.full(w.shape[:-1], np.nan)
    return _divide(np.sum(scores, 0), np.sum(present, 0).astype(np.float64))


METRICS: dict[str, Metric] = {
    "roc_auc": roc_auc,
    "ap": average_precision,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "mcc": mcc,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "brier": brier,
    "ece": ece,
}
"""Name -> function of (target, score, weight)."""


def _arrays(target: ArrayLike, score: ArrayLike, weight: ArrayLike) -> tuple[Array, Array, Array]:
    y, s = np.asarray(target, np.float64), np.asarray(score, np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise ValueError(f"target and score must be equally long vectors, got {y.shape} and {s.shape}")
    if len(s) and not (np.isfinite(s).all() and s.min() >= 0 and s.max() <= 1):
        raise ValueError("scores must be finite and within [0, 1]")
    w = np.asarray(weight, np.float64)
    return y, s, np.broadcast_to(w, (*w.shape[:-1], len(y)))


def _by_score(target: ArrayLike, score: ArrayLike, weight: ArrayLike) -> tuple[Array, Array, Array]:
    """Weight of positives and negatives [..., U] at each distinct score, ascending, and the scores."""
    y, s, w = _arrays(target, score, weight)
    order = np.argsort(s, kind="stable")
    y, s, w = y[order], s[order], w[..., order]
    first = np.flatnonzero(np.append(True, np.diff(s) > 0)) if len(s) else np.array([], int)
    if not len(first):
        empty = np.zeros((*w.shape[:-1], 0))
        return empty, empty, s
    pos = np.add.reduceat(w * (y == 1), first, axis=-1)
    neg = np.add.reduceat(w * (y == 0), first, axis=-1)
    return pos, neg, s[first]


def _divide(a: ArrayLike, b: ArrayLike) -> Array:
    top, bottom = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), np.nan)
