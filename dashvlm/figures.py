"""What all plots share: one style, filmstrips, bars of errors, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.errors import DataError

STYLE = {
    "figure.dpi": 130, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "text.parse_math": False,  # a dollar sign in somebody's text is no formula
    "axes.grid": True, "grid.alpha": 0.3, "axes.titlesize": 10, "savefig.bbox": "tight",
}  # fmt: skip
BLUE, ORANGE, GREY = "#1f5fa8", "#d9772b", "#8a8a8a"


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


def save(figure: Any, path: Path) -> Path:
    """Write a figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path
