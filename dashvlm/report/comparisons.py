"""What a table of several runs needs beside its rows: which best is chance, who saw what, seeds together."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pandas as pd

from dashvlm.errors import DataError
from dashvlm.report.collect import axes_of, label_of
from dashvlm.report.compare import best_of, over_seeds, shared_rows
from dashvlm.report.tables import kinds_of
from dashvlm.safety.files import read_table
from dashvlm.tasks.evaluation import Evaluation


def comparison_notes(output: Path, table: pd.DataFrame) -> list[str]:
    """Notes about the finished runs of one kind of task.

    Args:
        output: folder of the runs.
        table: from :func:`dashvlm.report.collect.collect`.

    Returns:
        How much of the best run is the choice, the numbers on the clips that every run could see, and
        runs that differ in their seed alone as mean and interval.
    """
    done = table[table["status"] == "done"]
    kinds = kinds_of(done)
    if len(done) < 2 or len(kinds) != 1 or kinds[0].primary not in done or done[kinds[0].primary].isna().all():
        return []
    kind = kinds[0]
    if "data.fingerprint" in done and done["data.fingerprint"].nunique() > 1:
        return ["the runs are on different data: no run is best"]
    tables = {}
    for run in done["run_id"]:
        path = output / str(run) / "predictions.parquet"
        if path.is_file():
            with contextlib.suppress(DataError):  # the table of runs shows it as damaged
                tables[str(run)] = read_table(path)
    if len(tables) < 2 or not len(shared_rows(list(tables.values()))[0]):
        return []
    name, value, share, optimism = best_of(tables, kind)
    metric = kind.primary
    top = done[metric].max() if metric in done else value.value
    equal = int((done[metric] >= top - 1e-12).sum()) if metric in done else 1
    if equal == len(done):
        notes = [f"all {len(done)} runs have the same {metric}: none is best"]
    else:
        ties = f" (tied with {equal - 1})" if equal > 1 else ""
        notes = [
            f"best of {len(tables)} runs by {metric}, seeds counted as runs: {name} {value.value:.3f}{ties}; it is "
            f"best in {share:.0%} of resamples, and the best of {len(tables)} is too high by about {optimism:.3f} "
            "because it was chosen on these clips"
        ]
    return notes + _common_support(tables, kind) + _seeds(done, metric)


def _common_support(tables: dict[str, pd.DataFrame], kind: Evaluation) -> list[str]:
    """The primary metric on the clips with enough history in every run, where the runs differ in that."""
    padded = {n: int((t["primary"] & (t["num_padded"] > 0)).sum()) for n, t in tables.items() if "num_padded" in t}
    if len(set(padded.values())) < 2:
        return []
    rows = shared_rows(list(tables.values()), unpadded=True)
    if not len(rows[0]):
        return ["no clip has enough history in every run: they cannot be compared on common support"]
    ones = np.ones((1, len(rows[0])))
    values = ", ".join(f"{n} {kind.of_resamples(t, ones)[0]:.3f}" for n, t in zip(tables, rows, strict=True))
    return [f"on the {len(rows[0])} clips with enough history in every run: {values}"]


def _seeds(done: pd.DataFrame, metric: str) -> list[str]:
    """Runs that differ in their seed alone."""
    if "seed" not in done or done["seed"].nunique() < 2 or metric not in done:
        return []
    other = [c for c in done if c.split(".")[0] in ("model", "task", "data", "objective", "peft", "optim", "trainer")]
    other += [c for c in ("start_from",) if c in done]
    notes = []
    axes = [a for a in axes_of(done) if a != "seed"]
    alike = done[other].map(str).agg("|".join, axis=1) if other else pd.Series("", index=done.index)
    for _, mine in done.groupby(alike):
        if mine["seed"].nunique() < 2:
            continue
        values = mine[metric].tolist()
        # Two values give an interval of twelve times their distance, or of none: it says nothing.
        spread = (
            f"{over_seeds(values)} (t-interval)"
            if len(values) > 2 and len(set(values)) > 1
            else f"{np.mean(values):.3f}"
        )
        what = label_of(mine.iloc[0], axes) if axes else "this configuration"
        notes.append(
            f"seeds {', '.join(map(str, sorted(mine['seed'])))} of {what}: {metric} {spread}, from {min(values):.3f} "
            f"to {max(values):.3f}: the spread between seeds, not between clips"
        )
    return notes
