"""Numbers from a predictions table, whatever the task. Knows only the table.

Whoever has ``predictions.parquet`` can recompute every number. A task names its evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.metrics import functional as F
from dashvlm.metrics.answers import evaluate_answers
from dashvlm.metrics.binary import evaluate_binary, monitor_binary
from dashvlm.metrics.choice import evaluate_choice, monitor_choice
from dashvlm.metrics.description import evaluate_caption
from dashvlm.metrics.intervals import RESAMPLES, group_weights, mean_estimate
from dashvlm.metrics.scene import evaluate_scene

EVALUATIONS: dict[str, Callable[[pd.DataFrame, int], dict[str, Any]]] = {
    "binary": evaluate_binary,
    "answers": evaluate_answers,
    "choice": evaluate_choice,
    "scene": evaluate_scene,
    "caption": evaluate_caption,
}
PRIMARY = {"binary": "roc_auc", "answers": "accuracy", "choice": "accuracy", "scene": "field_accuracy",
           "caption": "accuracy_sidewalk_pos"}  # fmt: skip
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
    found = EVALUATIONS[kind](table, seed) | {"evaluation": kind, "primary_metric": PRIMARY[kind]}
    metrics, baselines, alarms = measured_by_objective(table[table["primary"]], seed)
    found["metrics"] |= metrics
    found["baselines"] |= baselines
    found["alarms"] += alarms
    return found


def measured_by_objective(main: pd.DataFrame, seed: int) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Means of what an objective measured (rewards, preferences), before training and after.

    Returns:
        Metrics; the values before training and of a reader of lengths as baselines; alarms.
    """
    names = {c: c for c in main if c == "format" or c == "reward" or c.startswith("reward_")}
    names |= {
        c: n for c, n in {"preferred": "preference_accuracy", "likelier": "likelier_accuracy"}.items() if c in main
    }
    metrics, baselines, alarms = {}, {}, []
    for column, name in names.items():
        known = main[main[column].notna()]
        if known.empty:
            continue
        weights = group_weights(known["group"].tolist(), RESAMPLES, seed)
        after = known[column].to_numpy(float)
        metrics[name] = vars(mean_estimate(after, weights))
        if f"before_{column}" in known and known[f"before_{column}"].notna().all():
            before = known[f"before_{column}"].to_numpy(float)
            baselines[f"before_{name}"] = vars(mean_estimate(before, weights))
            gain = mean_estimate(after - before, weights)
            metrics[f"{name}_gain"] = vars(gain)
            if name in ("reward", "preference_accuracy") and gain.low <= 0:
                alarms.append(f"no clear gain: {name} changed by {gain} since the start")
        if column == "preferred" and (known["chosen_tokens"] != known["rejected_tokens"]).any():
            apart = (known["chosen_tokens"] - known["rejected_tokens"]).to_numpy(float)
            longer = mean_estimate(0.5 + 0.5 * np.sign(apart), weights)
            baselines[f"longer_{name}"] = vars(longer)
            if longer.value > 0.9 or longer.value < 0.1:
                which = "longer" if longer.value > 0.5 else "shorter"
                alarms.append(f"length decides the pairs: the {which} text is the better one in {longer}")
    return metrics, baselines, alarms


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
