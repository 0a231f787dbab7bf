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
from pathlib import Path

from dashvlm import api
from dashvlm.report.collect import axes_of
from dashvlm.report.compare import best_of, compare
from dashvlm.tasks.evaluation import evaluation_of

OUT = Path("runs/notebooks/sweep")
WORDS = [
    "experiment=crash_demo", "data.options.num_drives=60", "trainer.max_steps=12", "trainer.val_every_n_steps=12",
    f"paths.output_dir={OUT}",
]  # fmt: skip

# %%
runs = [api.train(api.compose(*WORDS, f"data.num_frames={count}")) for count in (1, 4)]
print("dashvlm report paths.output_dir=" + str(OUT), "writes tables, plots and one page of HTML")

# %% [markdown]
# The same as a table of plain values.

# %%
table = api.read_sweep(OUT)
axes = axes_of(table)
print(table[["run_id", *axes, "roc_auc", "roc_auc.low", "roc_auc.high", "pixels_off_roc_auc", "seconds"]])

# %% [markdown]
# Two runs on the same clips: paired differences, clusters resampled together, McNemar's exact test.

# %%
rows = {run.folder.name: run.predictions for run in runs}
first, second = rows
kind = evaluation_of(runs[0].result)
found = compare(rows[first], rows[second], kind)
print(f"{second} minus {first}: {found.difference}; only one of them right: {found.only_first}, {found.only_second}")
print("best, its value, how often it is best, how much of it is the choice:", best_of(rows, kind))
