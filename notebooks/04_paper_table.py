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
# # Build a paper's table
#
# A study holds what was published, what its predictions say when they are scored again, and what our runs find.

# %%
import os
from pathlib import Path

import pandas as pd

from dashvlm.report.tables import to_latex
from dashvlm.reproductions.studies import load_study, study_names
from dashvlm.reproductions.study_tables import grids, markdown

print(study_names())

# %%
study = load_study("nexar_models")
title, header, body = grids(study)[0]
print(pd.DataFrame(body, columns=header).to_string(index=False))

# %% [markdown]
# Why the corrected row differs:

# %%
print("\n".join(f"* {why}" for why in study.spec["why"]))

# %% [markdown]
# The table for the paper, and the command that runs the study on the real data.

# %%
print(to_latex(title, header, body))
print("python -m dashvlm.train", *study.words("full"))
assert markdown(study) == (study.folder / "table.md").read_text(encoding="utf-8")

# %% [markdown]
# With the published responses at hand (`PREDICTIONS=val_results.csv`) the row is computed again.

# %%
path = Path(os.environ.get("PREDICTIONS", "val_results.csv"))
if path.is_file():
    from dashvlm.reproductions.recompute import against_published, recompute

    (found,) = recompute(study, [path], {})
    _, header, body = against_published(study, found)
    print(pd.DataFrame(body, columns=header).to_string(index=False))
    print(*[f"{name}: {value}" for name, value in found.corrected.items()], *found.notes, sep="\n")
