"""Plots of scene descriptions: each parameter against its majority word, clips with most errors."""

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
from dashvlm.figures import BLUE, ORANGE, filmstrips, save


def draw(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
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
