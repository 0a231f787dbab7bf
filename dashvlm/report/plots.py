"""Plots of a run in one style: ROC, PR, reliability, confusion, filmstrips, curves of training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.errors import DataError
from dashvlm.metrics import functional as F

log = logging.getLogger(__name__)
STYLE = {
    "figure.dpi": 130, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "text.parse_math": False,  # a dollar sign in somebody's text is no formula
    "axes.grid": True, "grid.alpha": 0.3, "axes.titlesize": 10, "savefig.bbox": "tight",
}  # fmt: skip
BLUE, ORANGE, GREY = "#1f5fa8", "#d9772b", "#8a8a8a"


def plot_run(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
    """Draw the plots of one run.

    Args:
        rows: the predictions table.
        results: metrics computed from it.
        folder: where the PNG files go.
        store: for the filmstrips.

    Returns:
        Name -> file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = results.get("evaluation", "binary")
    if kind != "binary":
        from dashvlm.report.task_plots import plot_caption, plot_choice, plot_scene

        with mpl.rc_context(STYLE):
            return {"choice": plot_choice, "scene": plot_scene, "caption": plot_caption}[kind](
                rows, results, folder, store
            )
    main = rows[rows["primary"] & rows["target"].notna() & rows["score"].notna()]
    made: dict[str, Path] = {}
    if main["target"].nunique() < 2:
        log.info("no curves: only one class among the evaluated clips")
        return made
    target, score = main["target"].to_numpy(float), main["score"].to_numpy(float)
    with mpl.rc_context(STYLE):
        for name, draw in (("roc", _roc), ("pr", _pr), ("reliability", _reliability)):
            figure, axes = plt.subplots(figsize=(3.6, 3.4))
            draw(axes, target, score, results["metrics"])
            made[name] = save(figure, folder / f"{name}.png")
        figure, axes = plt.subplots(figsize=(3.2, 3.0))
        _confusion(axes, results["confusion"])
        made["confusion"] = save(figure, folder / "confusion.png")
        figure = _worst(main, store)
        if figure is not None:
            made["worst_errors"] = save(figure, folder / "worst_errors.png")
    return made


CURVES = (
    ("train/loss", "val/loss"), ("train/reward", "val/reward"), ("val/format_rate",), ("train/kl",),
    ("train/completion_tokens",), ("train/zero_variance_groups", "train/cut_off"),
    ("train/preference_accuracy", "val/preference_accuracy"), ("train/margin",),
    ("train/chosen_tokens", "train/rejected_tokens"), ("train/p_right",), ("train/parsed_penalty",),
)  # fmt: skip
"""Curves that share a panel; a panel appears where one of them was logged."""


def plot_curves(metrics: Path, folder: Path) -> dict[str, Path]:
    """Draw what was logged during training, each reward by itself.

    Args:
        metrics: ``metrics.csv`` of a run.
        folder: where ``curves.png`` goes.
    """
    if not metrics.is_file():
        return {}
    table = pd.read_csv(metrics)
    rewards = tuple(c for c in table if c.startswith("train/reward_") and c != "train/reward_std")
    panels = [[c for c in group if c in table and table[c].notna().sum() > 1] for group in (*CURVES, rewards)]
    panels = [p for p in panels if p]
    if not panels:
        return {}
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(lines, columns, figsize=(3.4 * columns, 2.4 * lines), squeeze=False)
        for axis, names in zip(axes.flat, panels, strict=False):
            for name in names:
                known = table[table[name].notna()]
                validated = name.startswith("val/")
                axis.plot(known["step"], known[name], "o-" if validated else "-", ms=3, lw=1.2,
                          label=name.removeprefix("train/reward_").replace("train/", ""))  # fmt: skip
            axis.set_xlabel("step")
            axis.legend(frameon=False, fontsize=7)
        for axis in list(axes.flat)[len(panels) :]:
            axis.axis("off")
        figure.tight_layout()
        return {"curves": save(figure, folder / "curves.png")}


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


def filmstrips(rows: pd.DataFrame, captions: Sequence[str], store: FrameStore) -> Any:
    """Draw a strip of frames a row under its caption; None if no frame can be shown."""
    if "path" not in rows:
        return None
    strips = []
    for (_, row), caption in zip(rows.iterrows(), captions, strict=True):
        try:
            frames, times = store.frames(Path(row["path"]), row["frame_times_s"])
        except (DataError, TypeError):  # a failed row has no times
            continue
        pick = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), 6)).round().astype(int))
        strips.append((caption, frames[pick], times[pick]))
    if not strips:
        return None
    columns = max(max(len(f) for _, f, _ in strips), 2)
    lines = 1 + max(c.count("\n") for c, _, _ in strips)
    figure, axes = plt.subplots(
        len(strips), columns, figsize=(1.5 * columns, (1.6 + 0.15 * lines) * len(strips)), squeeze=False
    )
    for line, (caption, frames, times) in zip(axes, strips, strict=True):
        for place, axis in enumerate(line):
            axis.axis("off")
            if place < len(frames):
                axis.imshow(frames[place])
                axis.set_title(f"{times[place]:.2f} s", fontsize=7, pad=2)
        line[0].set_title("")
        still = len(times) == 1 and times[0] == 0  # a picture
        line[0].set_title(caption if still else f"{caption}\n{times[0]:.2f} s", fontsize=7, pad=2, loc="left")
    figure.subplots_adjust(hspace=0.35 + 0.1 * lines)
    return figure


def _value(node: Mapping[str, Any]) -> str:
    if node["value"] is None or not np.isfinite(node["value"]):
        return "n/a"
    return f"{node['value']:.3f} [{node['low']:.2f}, {node['high']:.2f}]"


def save(figure: Any, path: Path) -> Path:
    """Write a figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path
