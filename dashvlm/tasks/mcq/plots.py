"""Plots of multiple choice: confusion of letters, accuracy against baselines, confident errors."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.figures import BLUE, GREY, ORANGE, filmstrips, save
from dashvlm.tasks.mcq.metrics import LETTERS, said_choice


def draw(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
    """Draw the confusion of letters, accuracy against baselines, and the most confident errors."""
    main = rows[rows["primary"] & rows["target"].notna()]
    if main.empty:
        return {}
    said = np.array([said_choice(s) for s in main["scores"]])
    grid = np.array([list(row.values()) for row in results["confusion"].values()])
    figure, axes = plt.subplots(figsize=(3.8, 3.2))
    axes.grid(False)
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=max(grid.max(), 1))
    for (i, j), value in np.ndenumerate(grid):
        dark = value > grid.max() / 2
        axes.text(j, i, str(value), ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(grid.shape[1]), [*LETTERS[: grid.shape[1] - 1], "none"])
    axes.set_yticks(range(len(grid)), list(LETTERS[: len(grid)]))
    axes.set(xlabel="said (highest score)", ylabel="right")
    made = {"confusion": save(figure, folder / "confusion.png"), "accuracy": _bars(results, folder / "accuracy.png")}
    confident = np.array([max(s) if said_choice(s) >= 0 else 0.0 for s in main["scores"]])
    worst = main.assign(_said=said, _sure=confident)
    worst = worst[(worst["_said"] != worst["target"]) & (worst["_said"] >= 0)].sort_values("_sure", ascending=False)
    worst = worst.head(6)
    captions = [
        f"{r['clip_id']}: {textwrap.shorten(str(r.get('question') or ''), 60)}\n"
        f"{_choice(r, r['_said'])} ({r['_sure']:.2f}); right {_choice(r, r['target'])}"
        for _, r in worst.iterrows()
    ]
    strips = filmstrips(worst, captions, store) if len(worst) else None
    if strips is not None:
        made["worst_errors"] = save(strips, folder / "worst_errors.png")
    return made


def _bars(results: Mapping[str, Any], path: Path) -> Path:
    shown = {"all": "accuracy"} | {
        name.removeprefix("accuracy_").replace("_", " "): name
        for name in results["metrics"]
        if name.startswith("accuracy_") and name.endswith("choices")
    }
    figure, axes = plt.subplots(figsize=(1.6 + 1.1 * len(shown), 3.2))
    for place, name in enumerate(shown.values()):
        node = results["metrics"][name]
        spread = [[max(node["value"] - node["low"], 0)], [max(node["high"] - node["value"], 0)]]
        axes.bar(
            place, node["value"], 0.55, color=BLUE, yerr=spread, capsize=3, label="accuracy" if not place else None
        )
        for prefix, colour, style in (
            ("majority", ORANGE, "-"), ("random", GREY, ":"), ("text_only", ORANGE, "--"),
            ("pixels_off", "black", "--"),
        ):  # fmt: skip
            base = results["baselines"].get(f"{prefix}_{name}")
            if base:
                label = prefix.replace("_", " ") if not place else None
                axes.hlines(base["value"], place - 0.4, place + 0.4, color=colour, ls=style, label=label)
    axes.set_xticks(range(len(shown)), list(shown))
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, path)


def _choice(row: Any, number: int) -> str:
    """A letter, with the text of the choice where the task names texts."""
    texts = row.get("choices")
    named = texts is not None and np.ndim(texts) == 1 and number < len(texts)
    return LETTERS[number] + (f" ({textwrap.shorten(str(texts[number]), 25)})" if named else "")
