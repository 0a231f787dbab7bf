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
# # A tour of the data, and what the model sees
#
# Open with Jupyter (`jupytext --to ipynb notebooks/01_data.py`) or run as a script. Everything is the embedded
# world: no download.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from dashvlm import api
from dashvlm.data.samples import build_samples
from dashvlm.engine.load import build_store, load_manifest
from dashvlm.shortcuts.audit import audit
from dashvlm.shortcuts.card import dataset_card
from dashvlm.tasks.base import make_task, observe

OUT = Path("runs/notebooks")


# %% [markdown]
# A configuration is plain values. The words are those of the command line.


def main():
    # %%
    cfg = api.compose("task=crash", "data=synthetic", "data.options.num_drives=40", "data.num_frames=4")
    store = build_store(cfg)
    manifest = load_manifest(cfg, store)  # renders the clips the first time
    print(pd.DataFrame(dataset_card(manifest, cfg["data"], make_task(cfg))["splits"]))

    # %% [markdown]
    # Which times of a clip are looked at? They end half a second before the event; a clip without event gets a
    # drawn time.

    # %%
    samples = {s: build_samples(manifest.split(s), cfg["data"])[0] for s in ("train", "val", "test")}
    first = samples["test"][0]
    print(first.clip.clip_id, "label", first.clip.label, "times", [round(t, 2) for t in first.times_s])

    # %% [markdown]
    # What the model sees: these frames, and this prompt. No label is within reach of the prompt.

    # %%
    frames, times = store.frames(Path(first.clip.path), first.times_s)
    task = make_task(cfg)
    print("".join(p.get("text", "[frame]") for p in task.messages(observe(first, times.tolist()))[0]["content"]))
    figure, axes = plt.subplots(1, len(frames), figsize=(2 * len(frames), 2.2))
    for axis, frame, time_s in zip(axes, frames, times, strict=True):
        axis.imshow(frame)
        axis.set_title(f"{time_s:.2f} s", fontsize=8)
        axis.axis("off")
    OUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT / "frames.png", bbox_inches="tight")

    # %% [markdown]
    # Can anybody tell the class without pixels? Twelve readers try: times, names, sizes, questions.

    # %%
    for reader in audit(samples, task.kind_of, store):
        print(f"{reader.name:12s} {reader.auc} {'FAILS' if reader.fails else ''}")


# %%
if __name__ == "__main__":
    main()
