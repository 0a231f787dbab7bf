"""What is measured of scene descriptions, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.data.frames import FrameStore
from dashvlm.metrics.functional import Array
from dashvlm.metrics.intervals import with_interval
from dashvlm.tasks.evaluation import DetailTable, Evaluation
from dashvlm.tasks.scene.metrics import evaluate_scene


def right(table: pd.DataFrame) -> Array:
    """Share of the parameters that are right."""
    shares = []
    for answer, target in zip(table["answer"], table["target"], strict=True):
        wanted = json.loads(target)
        said = json.loads(answer) if isinstance(answer, str) else {}
        given = said.get("fields", said)
        names = [k for k, v in wanted.items() if isinstance(v, str)]
        shares.append(sum(given.get(k) == wanted[k] for k in names) / max(len(names), 1))
    return np.array(shares, dtype=np.float64)


def parameters(result: Mapping[str, Any]) -> list[DetailTable]:
    """One row per parameter, with the majority word beside it."""
    rows = [
        [r["field"], with_interval(r["accuracy"]), with_interval(r["macro_f1"]), r["majority"],
         with_interval(r["majority_accuracy"]), with_interval(r["majority_macro_f1"])]
        for r in result.get("fields") or ()
    ]  # fmt: skip
    header = ["parameter", "accuracy", "macro-F1", "majority word", "its accuracy", "its macro-F1"]
    return [("driving parameters", header, rows)] if rows else []


def plots(rows: pd.DataFrame, results: Mapping[str, Any], folder: Path, store: FrameStore) -> dict[str, Path]:
    """See :func:`dashvlm.tasks.scene.plots.draw`."""
    from dashvlm.tasks.scene.plots import draw

    return draw(rows, results, folder, store)


SCENE = Evaluation(
    name="scene",
    numbers=evaluate_scene,
    primary="field_accuracy",
    columns={
        "field_accuracy": "field accuracy", "majority_field_accuracy": "majority",
        "field_macro_f1": "macro-F1", "majority_field_macro_f1": "majority F1",
        "pixels_off_field_accuracy": "no pixels", "constrained_field_accuracy": "constrained",
        "json_valid": "valid JSON", "risk_macro_f1": "risk F1",
    },
    right=right,
    details=parameters,
    plots=plots,
)  # fmt: skip
