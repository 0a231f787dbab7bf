"""Curves of what was logged while training."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from dashvlm.figures import STYLE, save

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
