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
# # Fine-tune, and read the result
#
# A tiny twin of SmolVLM2 on the embedded world; the same words train the real one (`model.checkpoint=500M data=nexar`).

# %%
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from dashvlm.tasks.evaluation import evaluate

OUT = Path("runs/notebooks/finetune")
WORDS = [
    "experiment=crash_demo", "data.options.num_drives=60", "data.num_frames=4", "trainer.max_steps=30",
    "trainer.val_every_n_steps=15", f"paths.output_dir={OUT}",
]  # fmt: skip

# %%
subprocess.run([sys.executable, "-m", "dashvlm.train", *WORDS], check=True)

# %% [markdown]
# The run's folder is named by what decides its result; the same words again would skip it.

# %%
run = sorted(p.parent for p in OUT.glob("*/result.json"))[0]
result = json.loads((run / "result.json").read_text())
print(run.name, {k: round(v["value"], 3) for k, v in result["metrics"].items() if v["value"] is not None})
print("alarms:", *result["alarms"], sep="\n  ")

# %% [markdown]
# Every number comes from `predictions.parquet`; computed again it is the same.

# %%
rows = pd.read_parquet(run / "predictions.parquet")
again = evaluate(rows, result.get("seed", 42), result["evaluation"])
assert abs(again["metrics"]["roc_auc"]["value"] - result["metrics"]["roc_auc"]["value"]) < 1e-12
print(rows[["clip_id", "target", "score", "text", "pixels_off_score"]].head())

# %% [markdown]
# What to believe: the value with its interval, beside what needs no pixels.

# %%
auc, blind = result["metrics"]["roc_auc"], result["baselines"]["pixels_off_roc_auc"]
print(f"ROC AUC {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}], without pixels {blind['value']:.3f}")
