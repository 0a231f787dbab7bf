"""From the rows of a run to its numbers and files. Every number comes from the rows' file."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.data.manifest import straddling_files
from dashvlm.data.samples import feasibility, sampling_skew
from dashvlm.engine.build import checkpoint_name, count_by_part
from dashvlm.engine.prepare import Data
from dashvlm.figures import STYLE
from dashvlm.metrics.functional import THRESHOLD
from dashvlm.safety.plaintext import cells
from dashvlm.shortcuts.leaks import label_alarms
from dashvlm.tasks.base import Task
from dashvlm.tasks.evaluation import Evaluation, evaluate_files
from dashvlm.training.module import VLMModule

log = logging.getLogger(__name__)
MAX_STALE = 0.02
"""Share of samples with frames from before a gap above which an alarm is raised."""
PACKAGES = ("torch", "transformers", "peft", "pytorch-lightning", "av")


def write_results(
    cfg: Mapping[str, Any],
    data: Data,
    rows: pd.DataFrame,
    folder: Path,
    module: VLMModule,
    stream: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Write ``predictions.parquet``, with a stream ``stream.parquet``, and compute every number from them."""
    rows.to_parquet(folder / "predictions.parquet", index=False)
    if cfg.get("csv"):
        write_csv(rows, module.task, folder / "predictions.csv")
    if cfg.get("verbose"):
        for line in lines_of(rows, module.task):
            log.info("%s", line)
    if stream is not None:
        stream.to_parquet(folder / "stream.parquet", index=False)
    numbers = evaluate_files(folder, module.task.evaluation, int(cfg["seed"]))
    if data.asked not in (None, "test"):
        numbers["alarms"].append(f"these are numbers of the {data.asked} split, not of the test split")
    elif data.test_split != "test":
        numbers["alarms"].append("there is no test split: these are validation numbers")
    shared = straddling_files(data.manifest.clips)
    if shared:
        numbers["alarms"].append(f"{len(shared)} files are in several splits: {'; '.join(shared[:3])}")
    stale = rows["stale_s"] > 0
    if stale.mean() > MAX_STALE:
        numbers["alarms"].append(
            f"{int(stale.sum())} of {len(rows)} samples show frames older than asked, up to "
            f"{rows['stale_s'].max():.1f} s: the videos have gaps (stale_s in predictions.parquet)"
        )
    options = cfg["data"]
    skew = sampling_skew(data.samples, options)
    if len({round(v, 3) for v in skew.values()}) > 1:
        shares = ", ".join(f"{split} {share:.0%}" for split, share in skew.items())
        numbers["alarms"].append(
            f"sampling differs between the splits: samples seen around annotated moments are {shares} "
            f"(data.support_frames={options['support_frames']})"
        )
    taught_by = {
        str(c.extra["annotated_by"]) for c in data.manifest.split(data.test_split) if "annotated_by" in c.extra
    }
    if taught_by:
        numbers["alarms"].append(f"the answers compared with were written by {', '.join(sorted(taught_by))}")
    if options.get("labels") and module.task.choices and module.supervision == "answer":
        numbers["alarms"] += label_alarms(options["labels"], options["label_options"]["mode"])
    numbers["alarms"] += module.task.write(rows, folder)
    points = [(int(options["num_frames"]), float(options["frame_interval_s"]))]
    return numbers | {
        "run_id": folder.name,
        "status": "done",
        "latency_s": float(rows["latency_s"].dropna().mean()) if rows["latency_s"].notna().any() else None,
        "split": data.test_split,
        "precision": cfg["trainer"]["precision"],
        "overrides": (cfg.get("sweep") or {}).get("overrides", []),
        "sweep_id": (cfg.get("sweep") or {}).get("id"),
        "feasibility": feasibility(data.manifest.split(data.test_split), options, points)
        if options["sampling"] == "anchored"
        else [],
        "sampling_skew": skew,
        "parameters": count_by_part(module),
        "checkpoint": {
            "name": checkpoint_name(cfg["model"]),
            "commit": getattr(module.backbone, "commit", None),
            "fingerprint": cfg["model"].get("fingerprint"),
        },
        "quarantined": len(data.manifest.quarantine),
        "stale": int(stale.sum()),
        "commit": _commit(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def write_csv(rows: pd.DataFrame, task: Task, path: Path) -> None:
    """Write the rows of the primary horizon for spreadsheets and other tools.

    Choices are written as letters, with the one of the highest score. A two-choice task begins with
    ``file_name,risk`` (0 or 1; empty for a failed row), the form of yunzhong1105/crash-risk-detection-vlm, and keeps
    the score behind it.
    """
    primary = rows[rows["primary"]]
    kept = ["clip_id", "split", "target", "status", "answer", "score", "scores", "text", "problem"]
    table = primary[[c for c in kept if c in primary]].copy()
    if "scores" in table:
        table["scores"] = [None if v is None or not np.ndim(v) else " ".join(f"{x:.6g}" for x in v)
                           for v in table["scores"]]  # fmt: skip
    if len(task.choices) > 2:  # letters, as `score` reads them; `predicted` is what counts
        named = [v is not None and np.ndim(v) > 0 for v in primary["scores"]]
        best = [task.choices[int(np.argmax(v))] if n else None for v, n in zip(primary["scores"], named, strict=True)]
        table.insert(2, "predicted", best)
        for column in ("target", "answer"):
            table[column] = [None if pd.isna(v) else task.choices[int(v)] for v in table[column]]
    if len(task.choices) == 2:
        table.insert(0, "file_name", [Path(p).name for p in primary["path"]])
        table.insert(1, "risk", (primary["score"] >= THRESHOLD).astype("Int64").where(primary["score"].notna()))
    cells(table).to_csv(path, index=False)


def lines_of(rows: pd.DataFrame, task: Task) -> list[str]:
    """A line for each scored sample: clip, target, scores, answer, text."""
    lines = []
    for row in rows[rows["primary"]].to_dict("records"):
        scores = row.get("scores")
        parts = [str(row["sample_id"]), f"target {_shown(row['target'], task)}"]
        if scores is not None and np.ndim(scores):
            parts.append(", ".join(f"{c} {v:.3f}" for c, v in zip(task.choices, scores, strict=False)))
        if row.get("text") is not None:
            parts.append(f"wrote {' '.join(str(row['text']).split())[:200]!r} ({row['status']})")
        if row.get("problem"):
            parts.append(f"failed: {row['problem']}")
        lines.append(" | ".join(parts))
    return lines


def _shown(target: Any, task: Task) -> str:
    if isinstance(target, str):
        return target[:100]
    return "unknown" if pd.isna(target) else str((task.choices or [target] * 99)[int(target)])


def plot_run(
    kind: Evaluation,
    rows: pd.DataFrame,
    results: Mapping[str, Any],
    folder: Path,
    store: FrameStore,
    stream: pd.DataFrame | None = None,
) -> dict[str, Path]:
    """Draw the plots of one run: name -> PNG file."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        drawn = {} if kind.plots is None else kind.plots(rows, results, folder, store)
        if stream is not None and kind.stream_plots is not None:
            drawn |= kind.stream_plots(stream, results, folder)
        return drawn


def _commit() -> str | None:
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip() or None
