"""A metric over a sweep: a line, points or a heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dashvlm.figures import BLUE, GREY, ORANGE, STYLE, save
from dashvlm.report.tables import kinds_of


def plot_sweep(table: pd.DataFrame, axes_names: Sequence[str], path: Path, metric: str | None = None) -> Path | None:
    """Draw a metric over a sweep: a line over one axis of numbers, points over names or runs, a heatmap over two axes.

    Args:
        table: from :func:`dashvlm.report.collect.collect`.
        axes_names: the swept keys.
        path: the PNG file.
        metric: the column; by default the primary metric of the runs' kind of task.

    Returns:
        The file, or None if there is nothing to draw.
    """
    kinds = kinds_of(table)
    metric = metric or (kinds[0].primary if kinds else "")
    if metric not in table:
        return None
    title = next((k.columns[metric] for k in kinds if metric in k.columns), metric)
    chance = next((k.chance for k in kinds if k.primary == metric), None)
    done = table[(table["status"] == "done") & table[metric].notna()]
    axes_names = [a for a in axes_names if a != "seed"] or list(axes_names)
    if done.empty or not axes_names:
        return None
    drawn = [c for c in done if c.split(".")[0].endswith(metric)]
    done = done.assign(**{c: pd.to_numeric(done[c], errors="coerce") for c in drawn})
    seeds = done.groupby(axes_names, sort=False, dropna=False)[drawn]
    what = "test, 95 % interval"
    if seeds.size().max() > 1:  # several seeds of a point: their mean, with the mean of their intervals
        what = "test, mean of seeds; bars: mean of their 95 % intervals"
        done = seeds.mean().reset_index().assign(run_id=[str(i) for i in range(len(seeds))])
    with mpl.rc_context(STYLE):
        if len(axes_names) == 2:
            figure = _heatmap(done, axes_names[0], axes_names[1], metric, title)
        else:
            figure = _line(done, axes_names, metric, what, title, chance)
        return save(figure, path)


def _line(done: pd.DataFrame, names: Sequence[str], metric: str, what: str, title: str, chance: float | None) -> Any:
    key = names[0]
    label = done["run_id"] if len(names) > 1 else done[key]  # several keys make no axis
    numeric = len(names) == 1 and pd.to_numeric(label, errors="coerce").notna().all()
    x = pd.to_numeric(label) if numeric else pd.Series(range(len(done)), index=done.index)
    done = done.assign(_x=x).sort_values("_x")
    figure, axes = plt.subplots(figsize=(5.0, 3.4))
    y, low, high = (done[c].to_numpy(float) for c in (metric, f"{metric}.low", f"{metric}.high"))
    spread = np.clip(np.nan_to_num(np.stack([y - low, high - y])), 0, None)
    line = "-" if numeric else "none"  # nothing lies between two names
    axes.errorbar(done["_x"], y, yerr=spread, fmt="o", ls=line, capsize=3, color=BLUE, label=what)
    if f"pixels_off_{metric}" in done and done[f"pixels_off_{metric}"].notna().any():
        axes.plot(
            done["_x"],
            done[f"pixels_off_{metric}"],
            "s",
            ls="--" if numeric else "none",
            color=GREY,
            ms=4,
            label="same model, pixels off",
        )
    if f"majority_{metric}" in done and done[f"majority_{metric}"].notna().any():
        axes.plot(done["_x"], done[f"majority_{metric}"], color=ORANGE, lw=1, ls=":", label="majority")
    if chance is not None:
        axes.axhline(chance, color=ORANGE, lw=1, ls=":", label="chance")
        axes.set_ylim(min(0.35, float(np.nanmin(low)) - 0.03), 1.02)
    axes.set_xticks(done["_x"], [str(v) for v in label.loc[done.index]], rotation=0 if numeric else 20)
    axes.set_xlabel("run" if len(names) > 1 else _short(key))
    axes.set_ylabel(title)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _heatmap(done: pd.DataFrame, row: str, column: str, metric: str, title: str) -> Any:
    grid = done.pivot_table(index=row, columns=column, values=metric)
    figure, axes = plt.subplots(figsize=(1.6 + 0.9 * len(grid.columns), 1.4 + 0.6 * len(grid)))
    axes.grid(False)
    image = axes.imshow(
        grid.to_numpy(),
        cmap="viridis",
        aspect="auto",
        vmin=min(float(np.nanmin(grid)), float(np.nanmax(grid)) - 0.2),  # noise should not look like a landscape
        vmax=float(np.nanmax(grid)),
    )
    axes.set_xticks(range(len(grid.columns)), [str(c) for c in grid.columns])
    axes.set_yticks(range(len(grid)), [str(i) for i in grid.index])
    axes.set_xlabel(_short(column))
    axes.set_ylabel(_short(row))
    for i in range(len(grid)):
        for j in range(len(grid.columns)):
            value = grid.iloc[i, j]
            if np.isfinite(value):
                colour = "white" if image.norm(value) < 0.7 else "black"
                axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=colour)
    figure.colorbar(image, label=title)
    return figure


def _short(key: str) -> str:
    return key.removesuffix(".name").rsplit(".", 1)[-1]
