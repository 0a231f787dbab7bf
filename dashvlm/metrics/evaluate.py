"""Numbers from a predictions table, whatever the task. Knows only the table.

Whoever has ``predictions.parquet`` can recompute every number. A task names its evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.metrics import functional as F
from dashvlm.metrics.binary import evaluate_binary, monitor_binary
from dashvlm.metrics.choice import evaluate_choice, monitor_choice
from dashvlm.metrics.description import evaluate_caption
from dashvlm.metrics.scene import evaluate_scene

EVALUATIONS: dict[str, Callable[[pd.DataFrame, int], dict[str, Any]]] = {
    "binary": evaluate_binary,
    "choice": evaluate_choice,
    "scene": evaluate_scene,
    "caption": evaluate_caption,
}
PRIMARY = {"binary": "roc_auc", "choice": "accuracy", "scene": "field_accuracy", "caption": "accuracy_sidewalk_pos"}
"""The metric that a sweep's plot shows."""


def evaluate(table: pd.DataFrame, seed: int = 0, kind: str = "binary") -> dict[str, Any]:
    """Compute metrics, baselines and alarms.

    Args:
        table: the predictions.
        seed: of the bootstrap.
        kind: a key of :data:`EVALUATIONS`; ``result.json`` of a run names it.

    Returns:
        ``metrics`` and ``baselines``: name -> {value, low, high}; ``counts``; ``alarms``: sentences;
        and what the kind adds.
    """
    return EVALUATIONS[kind](table, seed) | {"evaluation": kind, "primary_metric": PRIMARY[kind]}


def validation_metrics(kind: str, target: F.Array, scores: F.Array) -> dict[str, float]:
    """Metrics to choose checkpoints by.

    Args:
        kind: a key of :data:`EVALUATIONS`.
        target: [N] numbers of the right choices.
        scores: probabilities [N, C], or for tasks that write text the answers' losses [N].
    """
    if kind == "binary":
        return monitor_binary(target, scores)
    return monitor_choice(target, scores) if kind == "choice" else {"loss": float(np.mean(scores))}
