# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Read a sweep
#
# How many frames? Frames are decoded once for all points; the best of several is too good by construction, and the
# notes say by how much.

# %%
import subprocess
import sys
from pathlib import Path

import pandas as pd

from dashvlm.report.collect import axes_of, collect
from dashvlm.report.compare import best_of, compare

OUT = Path("runs/notebooks/sweep")
WORDS = [
    "experiment=crash_demo", "data.options.num_drives=60", "trainer.max_steps=12", "trainer.val_every_n_steps=12",
    f"paths.output_dir={OUT}", "-m", "data.num_frames=1,4",
]  # fmt: skip

# %%
subprocess.run([sys.executable, "-m", "dashvlm.train", *WORDS], check=True)
subprocess.run([sys.executable, "-m", "dashvlm.report", f"paths.output_dir={OUT}"], check=True)
print("open", OUT / "report.html")

# %% [markdown]
# The same as a table of plain values.

# %%
folders = sorted(p.parent for p in OUT.glob("*/result.json"))
table = collect(folders)
axes = axes_of(table)
print(table[["run_id", *axes, "roc_auc", "roc_auc.low", "roc_auc.high", "pixels_off_roc_auc", "seconds"]])

# %% [markdown]
# Two runs on the same clips: paired differences, clusters resampled together, McNemar's exact test.

# %%
rows = {f.name: pd.read_parquet(f / "predictions.parquet") for f in folders}
first, second = list(rows)[:2]
found = compare(rows[first], rows[second], "binary")
print(f"{second} minus {first}: {found.difference}; only one of them right: {found.only_first}, {found.only_second}")
print("best, its value, how often it is best, how much of it is the choice:", best_of(rows, "binary"))
