"""Numbers of a multiple-choice task from the predictions table, and what they must be compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dashvlm.metrics import functional as F
from dashvlm.metrics.intervals import RESAMPLES, Estimate, group_weights, mean_estimate, row_alarms

LETTERS = "ABCDEFGH"
LATENCY_LIMIT_S = 30.0
"""Seconds a sample that the RoadBuddy challenge allows."""


def evaluate_choice(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Compute metrics, baselines and alarms.

    Args:
        table: a row a question with ``clip_id, group, primary, target, scores`` (a probability for each
            existing choice, or None for a failed row), ``num_choices`` (0: unknown), ``answer, status, latency_s,
            pixels_off_scores, text_only_answer``. A failed row counts as wrong.
        seed: of the bootstrap.

    Returns:
        ``metrics`` and ``baselines``: name -> {value, low, high}; ``confusion``: rows of true letters,
        columns of said letters and none; ``answers``: how often each letter was said, unlabelled rows included;
        ``counts``; ``alarms``.
    """
    main = table[table["target"].notna() & table["primary"]].reset_index(drop=True)
    weights = group_weights(main["group"].tolist(), RESAMPLES, seed) if len(main) else np.ones((1, 0))
    target = main["target"].to_numpy(int)
    count = main["num_choices"].to_numpy(int)
    said = np.array([said_choice(s) for s in main["scores"]], int)
    right = (said == target).astype(float)
    metrics = {"accuracy": mean_estimate(right, weights)}
    chosen = [s[t] if said_choice(s) >= 0 else 1e-9 for s, t in zip(main["scores"], target, strict=True)]
    if any(0 < s < 1 for scores in main["scores"] if scores is not None for s in scores):  # answers have no log loss
        metrics["log_loss"] = mean_estimate(-np.log(np.clip(np.array(chosen, float), 1e-9, 1)), weights)
    for letter in sorted(set(target.tolist())):
        at = target == letter
        metrics[f"accuracy_{LETTERS[letter]}"] = mean_estimate(right[at], weights[:, at])
    for number in sorted(set(count.tolist()) - {0}):
        at = count == number
        metrics[f"accuracy_{number}_choices"] = mean_estimate(right[at], weights[:, at])
    if (main["status"].notna() & (main["status"] != "failed")).any():
        metrics["parse_rate"] = mean_estimate((main["status"] == "parsed").to_numpy(float), weights)
        same = (main["answer"] == main["target"]).fillna(False).to_numpy(float)
        metrics["answer_accuracy"] = mean_estimate(same, weights)
    latency = table["latency_s"].dropna().to_numpy(float)  # unlabelled rows take their time too
    if len(latency):
        metrics["latency_s"] = Estimate(float(latency.mean()), float("nan"), float("nan"))
        metrics["latency_p95_s"] = Estimate(float(np.quantile(latency, 0.95)), float("nan"), float("nan"))
    baselines, majority = _baselines(main, target, count, weights)
    if len(main):
        metrics["above_majority"] = mean_estimate(right - (target == majority), weights)
        if "text_only_answer" in main and main["text_only_answer"].notna().any():
            blind = (main["text_only_answer"] == main["target"]).fillna(False).to_numpy(float)
            metrics["above_text_only"] = mean_estimate(right - blind, weights)
    every = np.array([said_choice(s) for s in table["scores"]], int)
    letters = max([*table["num_choices"].tolist(), *(every + 1).tolist(), *(target + 1).tolist(), 1])
    confusion = [[int(((target == t) & (said == s)).sum()) for s in (*range(letters), -1)] for t in range(letters)]
    return {
        "metrics": {k: vars(v) for k, v in metrics.items()},
        "baselines": {k: vars(v) for k, v in baselines.items()},
        "confusion": {LETTERS[t]: dict(zip((*LETTERS[:letters], "none"), row, strict=True))
                      for t, row in enumerate(confusion)},
        "answers": {**{LETTERS[n]: int((every == n).sum()) for n in range(letters)}, "none": int((every < 0).sum())},
        "counts": {
            "rows": len(table),
            "test_clips": len(main),
            "groups": int(main["group"].nunique()),
            "failed_rows": int(sum(said_choice(s) < 0 for s in table["scores"])),
            "unlabelled_rows": int(table["target"].isna().sum()),
            "over_latency_limit": int((latency > LATENCY_LIMIT_S).sum()),
        },
        "unavailable": {} if "log_loss" in metrics or main.empty else {"log loss": "no choice has a probability"},
        "alarms": _alarms(main, said, latency, metrics, baselines),
    }  # fmt: skip


def said_choice(scores: Any) -> int:
    """The number of the choice with the highest score; -1 without scores."""
    values = np.asarray([] if scores is None or np.ndim(scores) == 0 else scores, np.float64)
    return int(values.argmax()) if len(values) and np.isfinite(values).all() else -1


def monitor_choice(target: F.Array, scores: F.Array) -> dict[str, float]:
    """Validation metrics of scores [N, C]; the first is shown while training."""
    at = np.arange(len(target))
    return {
        "accuracy": float((scores.argmax(1) == target).mean()),
        "log_loss": float(-np.log(np.clip(scores[at, target], 1e-9, 1)).mean()),
    }


def _baselines(
    main: pd.DataFrame, target: F.Array, count: F.Array, weights: F.Array
) -> tuple[dict[str, Estimate], int]:
    if not len(main):
        return {}, 0
    majority = int(np.bincount(target).argmax())
    out = {
        "majority_accuracy": mean_estimate((target == majority).astype(float), weights),
        "always_a_accuracy": mean_estimate((target == 0).astype(float), weights),
    }
    if count.all():  # where their number is unknown there is no chance level
        out["random_accuracy"] = mean_estimate(1.0 / count, weights)
    for number in sorted(set(count.tolist()) - {0}):  # within questions of one kind the best letter may be another
        at = count == number
        best = int(np.bincount(target[at]).argmax())
        out[f"majority_accuracy_{number}_choices"] = mean_estimate((target[at] == best).astype(float), weights[:, at])
        out[f"random_accuracy_{number}_choices"] = mean_estimate(1.0 / count[at], weights[:, at])
    if "text_only_answer" in main and main["text_only_answer"].notna().any():
        same = (main["text_only_answer"] == main["target"]).fillna(False).to_numpy(float)
        out["text_only_accuracy"] = mean_estimate(same, weights)
    if "pixels_off_scores" in main and main["pixels_off_scores"].notna().any():
        off = np.array([said_choice(s) for s in main["pixels_off_scores"]], int)
        out["pixels_off_accuracy"] = mean_estimate((off == target).astype(float), weights)
    return out, majority


def _alarms(
    main: pd.DataFrame, said: F.Array, latency: F.Array, metrics: dict[str, Estimate], baselines: dict[str, Estimate]
) -> list[str]:
    late = int((latency > LATENCY_LIMIT_S).sum())
    out = [f"{late} samples took longer than {LATENCY_LIMIT_S:g} s"] if late else []
    if main.empty:
        return [*out, "no row has a known answer: there is nothing to measure"]
    spoken = said[said >= 0]
    if len(spoken) and len(set(spoken.tolist())) == 1:
        out.append(f"degenerate: every answer is {LETTERS[spoken[0]]}")
    above = metrics.get("above_majority")
    if above is not None and above.low <= 0:
        out.append(f"not better than the majority letter: accuracy above it is {above}")
    text = metrics.get("above_text_only")
    if text is not None and text.low <= 0:
        out.append(f"not better than a reader who saw the training questions and no frame: accuracy above it is {text}")
    rate = metrics.get("parse_rate")
    if rate is not None and rate.value < 0.9:
        out.append(f"only {rate.value:.0%} of the answers could be parsed; answer_accuracy counts the rest as wrong")
    out += row_alarms(main["group"].tolist(), int((said < 0).sum()), "wrong")
    blind, majority = baselines.get("pixels_off_accuracy"), baselines.get("majority_accuracy")
    if blind is not None and majority is not None and blind.low > majority.value:
        out.append(f"shortcut: without pixels the model still reaches accuracy {blind}, majority {majority.value:.3f}")
    return out
