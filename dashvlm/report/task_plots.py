"""Plots of runs that are not yes or no: multiple choice, scene description, descriptions for pedestrians."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.metrics.choice import LETTERS, said_choice
from dashvlm.metrics.navigation import omissions
from dashvlm.report.plots import BLUE, GREY, ORANGE, filmstrips, save


def plot_choice(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
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
        f"{r['clip_id']}: {textwrap.shorten(str(r['question']), 60)}\n{LETTERS[r['_said']]} ({r['_sure']:.2f}): "
        f"{textwrap.shorten(str(r['choices'][r['_said']]), 25)}; right {LETTERS[r['target']]}: "
        f"{textwrap.shorten(str(r['choices'][r['target']]), 25)}"
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


def plot_scene(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
    """Draw accuracy and macro-F1 of each parameter against the majority word, and the clips with most errors."""
    fields = results["fields"]
    if not fields:
        return {}
    figure, both = plt.subplots(1, 2, figsize=(8.4, 0.36 * len(fields) + 1.2), sharey=True)
    at = np.arange(len(fields))
    for axes, name, title in zip(both, ("accuracy", "macro_f1"), ("accuracy", "macro-F1"), strict=True):
        axes.barh(at - 0.19, [f[name]["value"] for f in fields], 0.36, color=BLUE, label="model")
        usual = [f[f"majority_{name}"]["value"] for f in fields]
        axes.barh(at + 0.19, usual, 0.36, color=ORANGE, label="majority word")
        low = [max(f[name]["value"] - f[name]["low"], 0) for f in fields]
        high = [max(f[name]["high"] - f[name]["value"], 0) for f in fields]
        axes.errorbar(
            [f[name]["value"] for f in fields], at - 0.19, xerr=[low, high], fmt="none", ecolor="black", lw=0.8
        )
        axes.set_xlim(0, 1)
        axes.set_xlabel(title)
    both[0].set_yticks(at, [f["field"] for f in fields])
    both[0].invert_yaxis()
    both[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    made = {"fields": save(figure, folder / "fields.png")}
    main = rows[rows["primary"] & rows["target"].notna()]
    pairs = [(json.loads(t), json.loads(a)["fields"] if isinstance(a, str) else {})
             for t, a in zip(main["target"], main["answer"], strict=True)]  # fmt: skip
    wrong = [[f"{k}: {a.get(k, '–')}, right {v}" for k, v in t.items() if a.get(k) != v] for t, a in pairs]
    order = sorted(range(len(wrong)), key=lambda i: -len(wrong[i]))[:6]
    captions = [
        f"{main['clip_id'].iloc[i]}: "
        + (
            f"{len(wrong[i])} wrong\n" + textwrap.fill(textwrap.shorten("; ".join(wrong[i]), 190), 100)
            if pairs[i][1]
            else "nothing could be read from the text"
        )
        for i in order
    ]
    strips = filmstrips(main.iloc[order], captions, store) if order else None
    if strips is not None:
        made["worst_errors"] = save(strips, folder / "worst_errors.png")
    return made


def plot_caption(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
    """Draw the mandatory fields against their baselines, objects and omissions, and pictures with what was left out."""
    made: dict[str, Path] = {}
    names = [n for n in ("sidewalk_pos", "road_pos", "road_vs_sidewalk") if f"accuracy_{n}" in results["metrics"]]
    if names:
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.2))
        for place, name in enumerate(names):
            node = results["metrics"][f"accuracy_{name}"]
            spread = [[max(node["value"] - node["low"], 0)], [max(node["high"] - node["value"], 0)]]
            label = None if place else "accuracy"
            left.bar(place, node["value"], 0.55, color=BLUE, yerr=spread, capsize=3, label=label)
            for prefix, colour, style in (("majority", ORANGE, "-"), ("pixels_off", "black", "--")):
                base = results["baselines"].get(f"{prefix}_accuracy_{name}")
                if base:
                    text = None if place else prefix.replace("_", " ")
                    left.hlines(base["value"], place - 0.4, place + 0.4, color=colour, ls=style, label=text)
        left.set_xticks(range(len(names)), [n.replace("_pos", "").replace("_vs_", " / ") for n in names])
        left.set(ylim=(0, 1.02), ylabel="accuracy")
        left.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        near = [r for r in results["objects"] if r["scope"] == "nearby"]
        at = np.arange(len(near))
        right.bar(at - 0.2, [r["recall"]["value"] for r in near], 0.38, color=BLUE, label="recall")
        right.bar(at + 0.2, [r["precision"]["value"] for r in near], 0.38, color=GREY, label="precision")
        right.set_xticks(at, [r["object"].replace("_", "\n") + f"\n({r['there']})" for r in near], fontsize=8)
        right.set(ylim=(0, 1.02), xlabel="objects near the way (pictures that have one)")
        right.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        made["fields"] = save(figure, folder / "fields.png")
    main = rows[rows["primary"] & rows["target"].notna() & rows["text"].notna()]
    missed = []
    for _, row in main.iterrows():
        left_out = omissions(row["text"], json.loads(row["target"]).get("near", {}))
        missed.append([f"{n} {how}" for n, how in left_out.items() if how != "told"])
    order = [i for i in sorted(range(len(missed)), key=lambda i: -len(missed[i])) if missed[i]][:6]
    captions = [
        f"{main['clip_id'].iloc[i]}: {', '.join(missed[i])}\n"
        + "\n".join(textwrap.wrap(str(main["text"].iloc[i]), 90)[:3])
        for i in order
    ]
    strips = filmstrips(main.iloc[order], captions, store) if order else None
    if strips is not None:
        made["unsafe_omissions"] = save(strips, folder / "unsafe_omissions.png")
    return made
