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
from pathlib import Path

from dashvlm import api
from dashvlm.tasks.evaluation import evaluate, evaluation_of

OUT = Path("runs/notebooks/finetune")
WORDS = [
    "experiment=crash_demo", "data.options.num_drives=60", "data.num_frames=4", "trainer.max_steps=30",
    "trainer.val_every_n_steps=15", f"paths.output_dir={OUT}",
]  # fmt: skip

# %%
run = api.train(api.compose(*WORDS))

# %% [markdown]
# The run's folder is named by what decides its result; the same words again would skip it.

# %%
print(run.folder.name, *(f"{name} {value}" for name, value in run.metrics.items()), sep="\n  ")
print("alarms:", *run.alarms, sep="\n  ")

# %% [markdown]
# Every number comes from `predictions.parquet`; computed again it is the same.

# %%
rows = run.predictions
again = evaluate(rows, evaluation_of(run.result), run.config["seed"])
assert abs(again["metrics"]["roc_auc"]["value"] - run.metrics["roc_auc"].value) < 1e-12
print(rows[["clip_id", "target", "score", "text", "pixels_off_score"]].head())

# %% [markdown]
# What to believe: the value with its interval, beside what needs no pixels.

# %%
print(f"ROC AUC {run.metrics['roc_auc']}, without pixels {run.baselines['pixels_off_roc_auc']}")

# %% [markdown]
# What the run says of a video, moment by moment.

# %%
(answer,) = run.predict(rows["path"].iloc[0], stride_s=1.0)
print(answer["status"], [(time_s, round(risk, 3)) for time_s, risk in answer["risk"]])
