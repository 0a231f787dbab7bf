"""Plots of yes/no runs: ROC, precision and recall, reliability, confusion, worst errors, risk over time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.figures import BLUE, GREY, ORANGE, STYLE, filmstrips, save
from dashvlm.metrics import functional as F
from dashvlm.metrics.intervals import with_interval
from dashvlm.tasks.binary.stream import MAIN_RATE, RATES

log = logging.getLogger(__name__)


def draw(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
    """Draw the plots of one run; none where the rows have one class only."""
    main = rows[rows["primary"] & rows["target"].notna() & rows["score"].notna()]
    made: dict[str, Path] = {}
    if main["target"].nunique() < 2:
        log.info("no curves: only one class among the evaluated clips")
        return made
    target, score = main["target"].to_numpy(float), main["score"].to_numpy(float)
    for name, panel in (("roc", _roc), ("pr", _pr), ("reliability", _reliability)):
        figure, axes = plt.subplots(figsize=(3.6, 3.4))
        panel(axes, target, score, results["metrics"])
        made[name] = save(figure, folder / f"{name}.png")
    figure, axes = plt.subplots(figsize=(3.2, 3.0))
    _confusion(axes, results["confusion"])
    made["confusion"] = save(figure, folder / "confusion.png")
    strips = _worst(main, store)
    if strips is not None:
        made["worst_errors"] = save(strips, folder / "worst_errors.png")
    return made


def draw_stream(stream: pd.DataFrame, results: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Recall against false alarms an hour, and the risk by the time to the event."""
    found = results["stream"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    rate, recall, low, high = (np.array([p[k] for p in found["curve"]]) for k in ("per_hour", "recall", "low", "high"))
    left.fill_between(rate, low, high, color=BLUE, alpha=0.2, lw=0, label="95 % interval")
    left.plot(rate, recall, color=BLUE, marker="o", ms=3, label="this run")
    for name, kind, style in (("time_prior", "time alone", "--"), ("pixels_off", "no pixels", ":")):
        theirs = [(r, results["baselines"].get(f"{name}_stream_recall@{r:g}")) for r in RATES]
        if all(v is not None for _, v in theirs):
            left.plot([r for r, _ in theirs], [v["value"] for _, v in theirs], style, color=GREY, label=kind)
    left.set(xscale="log", xlabel="false alarms an hour", ylabel="recall of events", ylim=(-0.02, 1.02))
    left.xaxis.set_major_formatter("{x:g}")
    left.set_title(f"{found['events']} events, {found['hours']:.1f} h without one", loc="left")
    left.legend(frameon=False, fontsize=7)
    known = stream[stream["score"].notna()]
    ahead = known["time_s"] - known["event_time_s"]
    calm = known[known["event_time_s"].isna()]["score"].quantile([0.25, 0.5, 0.75]).to_numpy()
    if len(calm) and np.isfinite(calm).all():
        right.axhspan(calm[0], calm[2], color=GREY, alpha=0.25, lw=0)
        right.axhline(calm[1], color=GREY, lw=1, label="clips without an event")
    near = known[ahead.between(-10, 2)].assign(bin=(ahead[ahead.between(-10, 2)] * 2).round() / 2)
    by_time = near.groupby("bin")["score"].quantile([0.25, 0.5, 0.75]).unstack()
    if len(by_time):
        right.fill_between(by_time.index, by_time[0.25], by_time[0.75], color=ORANGE, alpha=0.25, lw=0)
        right.plot(by_time.index, by_time[0.5], color=ORANGE, marker="o", ms=3, label="clips with an event")
    right.axvline(0, color="black", lw=1, ls=":")
    right.set(xlabel="time from the event (s)", ylabel="risk: median, quartiles", ylim=(-0.02, 1.02))
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize=7, loc="upper left")
    figure.tight_layout()
    return {"stream": save(figure, folder / "stream.png")}


def overlay_streams(results: Mapping[str, Mapping[str, Any]]) -> Any:
    """Recall against false alarms an hour of several runs.

    Args:
        results: label -> ``result.json`` with a stream.
    """
    figure, axes = plt.subplots(figsize=(5.4, 3.4))
    for label, result in results.items():
        curve = result["stream"]["curve"]
        rate, recall, low, high = (np.array([p[k] for p in curve]) for k in ("per_hour", "recall", "low", "high"))
        (line,) = axes.plot(rate, recall, marker="o", ms=3, label=label)
        axes.fill_between(rate, low, high, color=line.get_color(), alpha=0.15, lw=0)
    axes.axvline(MAIN_RATE, color=GREY, lw=1, ls=":")
    axes.set(xscale="log", xlabel="false alarms an hour", ylabel="recall of events", ylim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("over whole clips, with 95 % intervals", loc="left")
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def overlay(runs: Mapping[str, pd.DataFrame]) -> Any:
    """ROC, precision and recall, and reliability of several runs.

    Args:
        runs: label -> predictions.
    """
    figure, (roc, pr, reliability) = plt.subplots(1, 3, figsize=(10.5, 3.4))
    for label, table in runs.items():
        if "score" not in table:  # of another kind than its result says
            continue
        rows = table[table["primary"] & table["target"].notna() & table["score"].notna()]
        if rows["target"].nunique() < 2:
            continue
        target, score = rows["target"].to_numpy(float), rows["score"].to_numpy(float)
        roc.plot(*F.roc_curve(target, score), lw=1.2, alpha=0.8, label=label)
        pr.plot(*F.pr_curve(target, score), lw=1.2, drawstyle="steps-post")
        pr.axhline(target.mean(), ls=":", color="grey", lw=1)
        # As many samples a point: bins of equal width may hold one sample and jump to 0 or 1.
        parts = np.array_split(np.argsort(score, kind="stable"), min(8, max(len(score) // 10, 1)))
        reliability.plot([score[p].mean() for p in parts], [target[p].mean() for p in parts], "o-", ms=3, lw=1.2)
    roc.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    reliability.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    roc.set(xlabel="false positive rate", ylabel="true positive rate")
    pr.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    reliability.set(xlabel="score", ylabel="share of positives")
    if roc.get_legend_handles_labels()[0]:
        roc.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def plot_risk(
    rows: Sequence[Mapping[str, Any]], path: Path, title: str, marks: Mapping[str, float] | None = None
) -> Path:
    """Draw risk over time; anchors with a note are shaded, known moments are lines."""
    times, risk = np.array([r["time_s"] for r in rows]), np.array([r["risk"] for r in rows], np.float64)
    step = times[1] - times[0] if len(times) > 1 else 1.0
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 2.8))
        for number, note in enumerate(dict.fromkeys(r["note"] for r in rows if r["note"])):
            for place in [i for i, r in enumerate(rows) if r["note"] == note]:
                axes.axvspan(
                    times[place] - step / 2, times[place] + step / 2, color=GREY, alpha=0.15 + 0.1 * number, lw=0
                )
            axes.fill_between([], [], color=GREY, alpha=0.15 + 0.1 * number, label=note)
        axes.plot(times, risk, color=BLUE, marker="o", ms=2.5, lw=1.2, label="risk")
        axes.axhline(F.THRESHOLD, color=ORANGE, lw=1, ls="--", label=f"threshold {F.THRESHOLD:g}")
        for name, moment in (marks or {}).items():
            axes.axvline(
                moment, color="#b3261e", lw=1.5, ls="-" if name == "event" else ":", label=f"{name}, {moment:.1f} s"
            )
        axes.set(ylim=(-0.02, 1.02), xlim=(0, None), xlabel="time in the video (s)", ylabel="risk, P(Yes)")
        axes.set_title(title, loc="left")
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return save(figure, path)


def _roc(axes: Any, target: F.Array, score: F.Array, metrics: Mapping[str, Any]) -> None:
    fpr, tpr = F.roc_curve(target, score)
    axes.plot(fpr, tpr, color=BLUE, drawstyle="steps-post")
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
    axes.set(
        xlabel="false positive rate",
        ylabel="true positive rate",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axes.set_title(f"ROC AUC {_value(metrics['roc_auc'])}", loc="left")


def _pr(axes: Any, target: F.Array, score: F.Array, metrics: Mapping[str, Any]) -> None:
    rec, prec = F.pr_curve(target, score)
    axes.plot(rec, prec, color=BLUE, drawstyle="steps-post")
    axes.axhline(target.mean(), color=GREY, lw=1, ls=":")
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(0, 1.02))
    axes.set_title(f"AP {_value(metrics['ap'])}", loc="left")


def _reliability(axes: Any, target: F.Array, score: F.Array, metrics: Mapping[str, Any]) -> None:
    bins = np.minimum((score * 10).astype(int), 9)
    used = [b for b in range(10) if (bins == b).any()]
    said = [score[bins == b].mean() for b in used]
    was = [target[bins == b].mean() for b in used]
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
    axes.plot(said, was, "o-", color=BLUE)
    for x, y, b in zip(said, was, used, strict=True):
        axes.annotate(
            str(int((bins == b).sum())),
            (x, y),
            textcoords="offset points",
            xytext=(4, -9),
            fontsize=7,
        )
    axes.set(xlabel="score", ylabel="share of positives", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(f"ECE {_value(metrics['ece'])}", loc="left")


def _confusion(axes: Any, counts: Mapping[str, float]) -> None:
    grid = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
    axes.grid(False)
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=max(grid.sum() / 2, 1))
    for i in range(2):
        for j in range(2):
            dark = grid[i, j] > grid.sum() / 4
            axes.text(
                j,
                i,
                f"{grid[i, j]:g}",
                ha="center",
                va="center",
                color="white" if dark else "black",
            )
    axes.set_xticks([0, 1], ["No", "Yes"])
    axes.set_yticks([0, 1], ["No", "Yes"])
    axes.set(xlabel="said (score at 0.5)", ylabel="label")


def _worst(main: pd.DataFrame, store: FrameStore, count: int = 6) -> Any:
    """Filmstrips of the errors with the most confident score."""
    gap = (main["score"] - main["target"].astype(float)).abs()
    measured = main.assign(_gap=gap)  # before choosing: a column assigned to no rows would make new ones
    worst = measured[gap >= 0.5].sort_values("_gap", ascending=False).head(count)
    kinds = ["missed" if t == 1 else "false alarm" for t in worst["target"]]
    captions = [f"{k}: {i}, score {s:.2f}" for k, i, s in zip(kinds, worst["clip_id"], worst["score"], strict=True)]
    return filmstrips(worst, captions, store)


def _value(node: Mapping[str, Any]) -> str:
    """A value with its interval for a title; ``n/a`` where it is not defined."""
    known = node["value"] is not None and np.isfinite(node["value"])
    return with_interval(node, digits=2) if known else "n/a"
