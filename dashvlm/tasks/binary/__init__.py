"""Yes or no: what is measured of tasks with two choices, of which the second is the event."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.metrics import functional as F
from dashvlm.metrics.intervals import with_interval
from dashvlm.tasks.binary.answers import evaluate_answers
from dashvlm.tasks.binary.metrics import evaluate_binary, monitor_binary
from dashvlm.tasks.binary.stream import evaluate_stream
from dashvlm.tasks.evaluation import DetailTable, Evaluation


def right(table: pd.DataFrame) -> F.Array:
    """1 where the score is on the right side of the threshold."""
    said = (table["score"].fillna(-1.0) >= F.THRESHOLD).astype(float)
    return np.where(table["score"].isna(), 0.0, said == table["target"].astype(float)).astype(np.float64)


def nearness(table: pd.DataFrame) -> F.Array:
    """1 minus the distance of the score from the label; 0 for a failed row."""
    return np.asarray(1 - (table["score"] - table["target"].astype(float)).abs().fillna(1.0), np.float64)


def roc_auc(table: pd.DataFrame, weights: F.Array) -> F.Array:
    """ROC AUC under weights [R, N]; a failed row has the worst score."""
    target = table["target"].to_numpy(np.float64)
    score = table["score"].fillna(1.0 - table["target"].astype(float)).to_numpy(np.float64)
    return np.asarray(F.roc_auc(target, score, weights), dtype=np.float64)


def shown(row: Any, right: float) -> float:
    """The score."""
    return float("nan") if pd.isna(row.get("score")) else float(row["score"])


def verdict(row: Any, right: float) -> str:
    """Hit, false alarm, missed, correct rejection or failed."""
    if row.get("status") == "failed" or pd.isna(row["score"]):
        return "failed"
    said, true = row["score"] >= F.THRESHOLD, row["target"] == 1
    return ("hit" if true else "false alarm") if said else ("missed" if true else "correct rejection")


def slices(result: Mapping[str, Any]) -> list[DetailTable]:
    """The primary metric by slice of the data, and over whole clips by the time to the event."""
    rows = [
        [r["slice"], r["value"], str(r["rows"]), str(r["positives"]), with_interval(r["roc_auc"])]
        for r in result.get("slices") or ()
    ]
    found: list[DetailTable] = []
    if rows:
        found.append(("by slice", ["slice", "value", "clips", "positives", "ROC AUC"], rows))
    ahead = [
        [f"{r['time_to_event_s']:g} s", str(r["events"]), with_interval(r["roc_auc"]), with_interval(r["ap"])]
        for r in (result.get("stream") or {}).get("by_time_to_event") or ()
    ]
    if ahead:
        found.append(("by time to the event", ["before the event", "events", "ROC AUC", "AP"], ahead))
    return found


def draw_run(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
    """See :func:`dashvlm.tasks.binary.plots.draw`."""
    from dashvlm.tasks.binary.plots import draw

    return draw(rows, results, folder, store)


def draw_overlay(runs: Mapping[str, pd.DataFrame]) -> Any:
    """See :func:`dashvlm.tasks.binary.plots.overlay`."""
    from dashvlm.tasks.binary.plots import overlay as drawn

    return drawn(runs)


def draw_stream(stream: pd.DataFrame, results: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """See :func:`dashvlm.tasks.binary.plots.draw_stream`."""
    from dashvlm.tasks.binary.plots import draw_stream as drawn

    return drawn(stream, results, folder)


def draw_streams(results: Mapping[str, Mapping[str, Any]]) -> Any:
    """See :func:`dashvlm.tasks.binary.plots.overlay_streams`."""
    from dashvlm.tasks.binary.plots import overlay_streams

    return overlay_streams(results)


ANSWERS = Evaluation(
    name="answers",
    numbers=evaluate_answers,
    primary="accuracy",
    columns={
        "accuracy": "accuracy", "majority_accuracy": "majority", "precision": "precision", "recall": "recall",
        "f1": "F1", "parse_rate": "parsed", "accuracy_of_parsed": "of parsed",
    },
    right=lambda table: (table["answer"] == table["target"]).fillna(False).to_numpy(np.float64),
)  # fmt: skip
SCORES = Evaluation(
    name="binary",
    numbers=evaluate_binary,
    primary="roc_auc",
    columns={
        "roc_auc": "ROC AUC", "ap": "AP", "map_horizons": "mAP", "accuracy": "accuracy",
        "majority_accuracy": "majority", "pixels_off_roc_auc": "AUC no pixels", "stream_recall@2": "recall at 2 FA/h",
        "stream_ap": "stream AP", "parse_rate": "parsed",
        "reward": "reward", "before_reward": "reward before", "format": "format",
    },
    right=right,
    monitor=monitor_binary,
    monitors={"roc_auc": "max", "ap": "max", "accuracy": "max", "brier": "min"},
    primary_values=roc_auc,
    nearness=nearness,
    shown=shown,
    verdict=verdict,
    details=slices,
    plots=draw_run,
    overlay=draw_overlay,
    stream=evaluate_stream,
    stream_plots=draw_stream,
    stream_overlay=draw_streams,
    unscored=ANSWERS,
    chance=0.5,
)  # fmt: skip
EVALUATIONS = (SCORES, ANSWERS)
