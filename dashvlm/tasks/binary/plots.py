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


def plot_risk(times_s: Sequence[float], risk: Sequence[float], path: Path, title: str) -> Path:
    """Draw risk over time."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.0, 2.6))
        axes.plot(times_s, risk, color=BLUE, marker="o", ms=3)
        axes.axhline(F.THRESHOLD, color=ORANGE, lw=1, ls=":")
        axes.set_ylim(0, 1)
        axes.set_xlabel("time in the video (s)")
        axes.set_ylabel("risk, P(Yes)")
        axes.set_title(title, loc="left")
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
