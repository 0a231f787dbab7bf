"""Plots of descriptions for pedestrians: mandatory fields, objects near the way, unsafe omissions."""

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
from dashvlm.figures import BLUE, GREY, ORANGE, filmstrips, save
from dashvlm.tasks.caption.navigation import omissions


def draw(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
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
