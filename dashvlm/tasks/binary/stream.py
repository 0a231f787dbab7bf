"""Numbers of a yes/no task over whole drives, from the table of anchors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.metrics import functional as F
from dashvlm.metrics.anticipation import curve, summary
from dashvlm.metrics.intervals import RESAMPLES, Estimate, estimate, group_weights
from dashvlm.metrics.stream import Drive, Points, in_blocks, operating_points

RATES = (0.5, 1.0, 2.0, 6.0)
"""False alarms an hour at which recall is reported."""
MAIN_RATE = 2.0
MOST_FALSE = 0.01
"""Share of false positives at anchors whose recall is held against that of the stream."""
CURVE = tuple(float(f"{r:.3g}") for r in np.geomspace(0.2, 200, 25))
TIMES_TO_EVENT = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
RIVALS = {"pixels_off": "pixels_off_score", "time_prior": "time_prior", "position_prior": "position_prior"}
"""Baseline -> its column: readers that see no pixels, or only when in the clip a moment is."""


def evaluate_stream(table: pd.DataFrame, seed: int = 0, anchors: pd.DataFrame | None = None) -> dict[str, Any]:
    """Compute the stream's metrics, baselines and alarms.

    Args:
        table: a row an anchor, clip by clip, oldest first, with ``clip_id, group, time_s, target`` (1 in the positive
            window, 0 before it and without an event, missing for what counts neither way), ``score, event_time_s,
            window_start_s, stride_s, refractory_s`` and the columns of :data:`RIVALS` that are there.
        seed: of the bootstrap.
        anchors: predictions of the same model at the anchors near events.

    Returns:
        ``metrics`` and ``baselines``: name -> {value, low, high}; ``stream``: hours, events, the curve, and AP and ROC
        AUC by the time to the event; ``alarms``.
    """
    stride, refractory = float(table["stride_s"].iloc[0]), float(table["refractory_s"].iloc[0])
    clips = list(table.groupby("clip_id", sort=False))
    unknown = [
        str(i) for i, t in clips if "clip_label" in t and t["clip_label"].eq(1).all() and t["target"].isna().all()
    ]
    lost = [str(i) for i, t in clips if t["event_time_s"].notna().any() and not (t["target"] == 1).any()]
    clips = [(i, t) for i, t in clips if i not in set(lost)]
    table = table[~table["clip_id"].isin(lost)]
    weights = group_weights([str(t["group"].iloc[0]) for _, t in clips], RESAMPLES, seed)
    rows = pd.factorize(table["clip_id"])[0]  # in the order in which groupby meets them
    points = _points(clips, "score", stride, refractory)
    metrics: dict[str, Estimate] = {}
    recalls, leads = _at(points, RATES, weights)
    metrics |= {f"stream_recall@{rate:g}": recalls[i] for i, rate in enumerate(RATES)}
    metrics |= {f"stream_mtta_s@{rate:g}": leads[i] for i, rate in enumerate(RATES)}
    metrics |= _of_moments(table, "score", weights, rows)
    metrics |= _theirs(clips, weights)
    early = _early(table, refractory, weights, rows)
    metrics |= {"early_roc_auc": early} if early is not None else {}
    near = _near_misses(clips, weights, stride)
    metrics |= {"near_miss_roc_auc": near} if near is not None else {}
    baselines: dict[str, Estimate] = {}
    known = table["target"].notna()
    counted = np.bincount(rows, known, len(clips)), np.bincount(rows, (table["target"] == 1).fillna(False), len(clips))
    drawn = np.divide(weights @ counted[1], weights @ counted[0])
    baselines["constant_stream_ap"] = estimate(float(counted[1].sum() / counted[0].sum()), drawn)
    baselines[f"constant_stream_recall@{MAIN_RATE:g}"] = Estimate(0.0, 0.0, 0.0)  # on or off, all through
    for name, column in RIVALS.items():
        if column in table and table[column].notna().any():
            theirs = _at(_points(clips, column, stride, refractory), RATES, weights)[0]
            baselines |= {f"{name}_stream_recall@{rate:g}": theirs[i] for i, rate in enumerate(RATES)}
            baselines |= {f"{name}_{k}": v for k, v in _of_moments(table, column, weights, rows).items()}
    hours, events = float(points.hours.sum()), int(points.events.sum())
    return {
        "metrics": {k: vars(v) for k, v in metrics.items()},
        "baselines": {k: vars(v) for k, v in baselines.items()},
        "stream": {
            "metrics": list(metrics),
            "hours": hours,
            "events": events,
            "stride_s": stride,
            "refractory_s": refractory,
            "curve": _curve(points, weights),
            "by_time_to_event": _by_time_to_event(clips, stride, weights),
            "unseen_events": lost,
        },
        "alarms": [*_useless(anchors, metrics, baselines, seed), *_alarms(hours, events, lost, unknown, early)],
    }


def _useless(
    anchors: pd.DataFrame | None, metrics: Mapping[str, Estimate], baselines: Mapping[str, Estimate], seed: int
) -> list[str]:
    """Say where anchors near events promise more than a whole drive holds."""
    recall = metrics[f"stream_recall@{MAIN_RATE:g}"]
    if anchors is None or not np.isfinite(recall.value):
        return []
    main = anchors[anchors["primary"] & anchors["target"].notna() & anchors["score"].notna()]
    target, score = main["target"].to_numpy(np.float64), main["score"].to_numpy(np.float64)
    weights = group_weights(main["group"].astype(str).tolist(), RESAMPLES, seed) if len(main) else np.ones((1, 0))
    auc = estimate(float(F.roc_auc(target, score)), F.roc_auc(target, score, weights))
    if not auc.low > 0.5:
        return []
    whole = f"recall {recall} at {MAIN_RATE:g} false alarms an hour over whole clips"
    names = {f"{n}_stream_recall@{MAIN_RATE:g}": n.replace("_", " ") for n in ("constant", *RIVALS)}
    best, what = max((baselines[k].value, what) for k, what in names.items() if k in baselines)
    if recall.low <= best:
        return [f"good at anchors, useless on the stream: ROC AUC {auc} near events, but {whole}, not above {what}"]
    near = estimate(float(F.recall_at(target, score, MOST_FALSE)), F.recall_at(target, score, MOST_FALSE, weights))
    if recall.high < near.low:
        return [
            f"good at anchors, much less on the stream: near events recall {near} at {MOST_FALSE:.0%} false positives, "
            f"but {whole}"
        ]
    return []


def _points(clips: list[tuple[Any, pd.DataFrame]], column: str, stride: float, refractory: float) -> Points:
    drives = []
    for _, clip in clips:
        event = clip["event_time_s"].iloc[0]
        drives.append(
            Drive(
                clip["time_s"].to_numpy(float),
                clip[column].to_numpy(float),
                clip["target"].fillna(-1).to_numpy(int),
                None if pd.isna(event) else float(event),
            )
        )
    return operating_points(drives, stride, refractory)


def _theirs(clips: list[tuple[Any, pd.DataFrame]], weights: F.Array) -> dict[str, Estimate]:
    """What the scripts of DAD and CCD make of the risks; see :mod:`dashvlm.metrics.anticipation`."""
    risks, flags, accidents, kept = [], [], [], []
    for place, (_, clip) in enumerate(clips):
        event = clip["event_time_s"].iloc[0]
        mine = clip if pd.isna(event) else clip[clip["time_s"] < event]
        if len(mine) and clip["target"].notna().any():
            risks.append(mine["score"].fillna(float(pd.isna(event))).to_numpy(float))  # a failed moment is wrong
            flags.append(not pd.isna(event))
            accidents.append(float(len(mine)))
            kept.append(place)
    if not any(flags):
        return {}
    seconds = float(np.median([c["time_s"].iloc[-1] - c["time_s"].iloc[0] for _, c in clips]))
    _, reached, left = curve(risks, flags, accidents)
    values = summary(reached, left, flags, seconds)
    drawn = summary(reached, left, flags, seconds, weights[:, kept])
    return {f"dad_{name}": estimate(float(value), drawn[name]) for name, value in values.items()}


def _at(points: Points, rates: Sequence[float], weights: F.Array) -> tuple[list[Estimate], list[Estimate]]:
    """Recall and time to accident at each rate, with intervals."""
    values, drawn = points.at(rates), points.at(rates, weights)
    found = [[estimate(float(v[i]), d[..., i]) for i in range(len(rates))] for v, d in zip(values, drawn, strict=True)]
    return found[0], found[1]


def _of_moments(table: pd.DataFrame, column: str, weights: F.Array, rows: Any) -> dict[str, Estimate]:
    """AP and ROC AUC of all moments; a moment that failed counts as wrong."""
    known = table["target"].notna().to_numpy()
    target = table["target"][known].to_numpy(np.float64)
    score = table[column][known].fillna(pd.Series(1.0 - table["target"][known].astype(float))).to_numpy(np.float64)
    found = {}
    for name, metric in {"stream_ap": F.average_precision, "stream_roc_auc": F.roc_auc}.items():
        value = float(metric(target, score, np.ones(len(target))))
        found[name] = estimate(value, in_blocks(metric, target, score, weights, rows[known]))
    return found


def _early(table: pd.DataFrame, margin_s: float, weights: F.Array, rows: Any) -> Estimate | None:
    """ROC AUC of moments long before an event against those of clips without one; above chance something else is seen.

    Moments, not means of clips: a stretch before an event is shorter than a clip, and rare peaks would tell it. And
    moments at the same times: what comes before an event comes early in a clip.
    """
    before = table["time_s"] < table["window_start_s"] - margin_s
    calm = table["event_time_s"].isna() & (table["target"] == 0).fillna(False)
    kept = ((calm | before) & table["score"].notna()).to_numpy(bool)
    target, score = table["event_time_s"].notna()[kept].to_numpy(np.float64), table["score"][kept].to_numpy(np.float64)
    mass = _like(table["time_s"][kept].to_numpy(float), target)
    if not (mass * target).sum() or not (mass * (1 - target)).sum():
        return None
    value = float(F.roc_auc(target, score, mass))
    return estimate(value, in_blocks(F.roc_auc, target, score, weights, rows[kept], mass))


def _like(time_s: F.Array, target: F.Array, bin_s: float = 2.0) -> F.Array:
    """Mass [N] of moments so that negatives are spread over time as the positives are; 0 where one kind is missing."""
    place = (time_s / bin_s).astype(int)
    ones, noughts = np.bincount(place, target), np.bincount(place, 1 - target)
    both = (ones > 0) & (noughts > 0)
    share = np.divide(ones, noughts, out=np.zeros_like(ones), where=both)
    return np.asarray(np.where(target > 0, both[place], share[place]), np.float64)


def _near_misses(clips: list[tuple[Any, pd.DataFrame]], weights: F.Array, stride: float) -> Estimate | None:
    """ROC AUC of events against near misses, by the highest risk of the two seconds up to each; None without any.

    Both have as many anchors. What could not be computed counts as wrong.
    """
    target, score, kept, size = [], [], [], max(round(2.0 / stride), 1)
    for place, (_, clip) in enumerate(clips):
        moments = clip["near_misses_s"].iloc[0] if "near_misses_s" in clip else ()
        event = clip["event_time_s"].iloc[0]
        spans = [(float(m), 0.0) for m in (() if moments is None else moments) if not m > event - 2.0]
        spans += [] if pd.isna(event) else [(float(event), 1.0)]
        for moment, label in spans:
            last = clip["score"][clip["time_s"] <= moment].iloc[-size:]
            if len(last) == size:
                target.append(label)
                score.append(float(last.fillna(1.0 - label).max()))
                kept.append(place)
    if len(set(target)) < 2:
        return None
    y, s = np.array(target), np.array(score)
    return estimate(float(F.roc_auc(y, s)), F.roc_auc(y, s, weights[:, kept]))


def _curve(points: Points, weights: F.Array) -> list[dict[str, float]]:
    """Recall at rates of false alarms from few to many, with its interval."""
    found = _at(points, CURVE, weights)[0]
    return [
        {"per_hour": rate, "recall": here.value, "low": here.low, "high": here.high}
        for rate, here in zip(CURVE, found, strict=True)
    ]


def _by_time_to_event(clips: list[tuple[Any, pd.DataFrame]], stride: float, weights: F.Array) -> list[dict[str, Any]]:
    """AP and ROC AUC of the anchor so long before each event against anchors of the clips without one.

    Anchors without an event are weighed to be at the times of the others, and so that AP is at the clips' share of
    events. What could not be computed counts as wrong.
    """
    safe = [(p, c) for p, (_, c) in enumerate(clips) if c["event_time_s"].isna().iloc[0] and (c["target"] == 0).any()]
    calm = [(p, s, t) for p, c in safe for s, t in zip(c["score"].fillna(1.0), c["time_s"], strict=True)]
    out = []
    for ahead in TIMES_TO_EVENT:
        near = []
        for place, (_, clip) in enumerate(clips):
            wanted = clip["event_time_s"].iloc[0] - ahead
            if pd.isna(wanted) or wanted < clip["time_s"].iloc[0]:
                continue
            row = (clip["time_s"] - wanted).abs().idxmin()
            if abs(clip["time_s"][row] - wanted) <= stride / 2 + 1e-6:
                near.append((place, float(np.nan_to_num(clip["score"][row])), clip["time_s"][row]))
        if not near or not calm:
            continue
        drives, score, times = (np.array(column) for column in zip(*near, *calm, strict=True))
        target = np.r_[np.ones(len(near)), np.zeros(len(calm))]
        mass = _like(times, target)
        total = (mass * (1 - target)).sum()
        if not total:
            continue
        mass = np.where(target > 0, mass, mass * len(safe) / total * (mass * target).sum() / len(near))
        made: dict[str, Any] = {
            "time_to_event_s": ahead, "events": int((mass * target).sum()), "safe_clips": len(safe),
        }  # fmt: skip
        for name, metric in {"ap": F.average_precision, "roc_auc": F.roc_auc}.items():
            drawn = in_blocks(metric, target, score, weights, drives.astype(int), mass)
            made[name] = vars(estimate(float(metric(target, score, mass)), drawn))
        out.append(made)
    return out


def _alarms(
    hours: float, events: int, lost: Sequence[str], unknown: Sequence[str], early: Estimate | None
) -> list[str]:
    out = []
    if events and 0 < hours < 1 / RATES[0]:
        out.append(
            f"{hours:.2f} h of driving without an event: one false alarm is {1 / hours:.1f} an hour, "
            "recall at a lower rate means none at all"
        )
    if lost:
        out.append(f"{len(lost)} events have no anchor in their window and are left out of the stream: {lost[0]}")
    if unknown:
        out.append(f"{len(unknown)} clips whose event has no known time are not in the stream: {unknown[0]}")
    if early is not None and early.low > 0.5:
        out.append(
            f"risk long before the event already tells the clips apart, ROC AUC {early}: something else than the "
            "event is seen"
        )
    return out
