"""Numbers of a yes/no task whose predictions are answers without a score, and what they must be compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dashvlm.metrics.functional import Array
from dashvlm.metrics.intervals import RESAMPLES, Estimate, estimate, group_weights, mean_estimate, row_alarms

NO_SCORE = "the predictions are answers, without a score to rank or calibrate"


def evaluate_answers(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Compute metrics, baselines and alarms of answers.

    A text that cannot be read is wrong; it is neither a yes nor a no.

    Args:
        table: a row a clip with ``group, primary, target, answer`` (0, 1 or missing) and ``status``.
        seed: of the bootstrap.

    Returns:
        As :func:`dashvlm.tasks.binary.metrics.evaluate_binary`, without what needs scores (``unavailable`` says
        why), and ``numbers``: how many rows a metric rests on where these are not all.
    """
    main = table[table["target"].notna() & table["primary"]].reset_index(drop=True)
    weights = group_weights(main["group"].tolist(), RESAMPLES, seed) if len(main) else np.ones((1, 0))
    target = main["target"].to_numpy(int)
    said = main["answer"].fillna(-1).to_numpy(int)
    parsed, yes, right = said >= 0, said == 1, said == target
    asked = {  # metric -> which answers it is a mean of, over which rows
        "accuracy": (right, np.ones_like(parsed)),
        "precision": (right, yes),
        "recall": (right, target == 1),
        "specificity": (right, target == 0),
        "parse_rate": (parsed, np.ones_like(parsed)),
        "accuracy_of_parsed": (right, parsed),
    }
    metrics = {name: _share(of, among, weights) for name, (of, among) in asked.items()}
    metrics["f1"] = _ratio(2.0 * (yes & (target == 1)), 1.0 * yes + (target == 1), weights)
    each = [_rates(right[target == k], weights[:, target == k]) for k in (0, 1)]
    both = (metrics["recall"].value + metrics["specificity"].value) / 2
    metrics["balanced_accuracy"] = estimate(both, np.mean(each, axis=0))
    baselines = {}
    for name in ("accuracy", "accuracy_of_parsed"):
        among = asked[name][1]
        if among.any():
            most = int(target[among].mean() >= 0.5)
            baselines[f"majority_{name}"] = mean_estimate((target[among] == most).astype(float), weights[:, among])
    return {
        "metrics": {k: vars(v) for k, v in metrics.items() if np.isfinite(v.value)},
        "baselines": {k: vars(v) for k, v in baselines.items()},
        "numbers": {k: int(among.sum()) for k, (_, among) in asked.items() if not among.all()},
        "confusion": {
            kind: int(((target == truth) & (said == word)).sum())
            for kind, truth, word in (("tn", 0, 0), ("fp", 0, 1), ("fn", 1, 0), ("tp", 1, 1),
                                      ("no_answer_0", 0, -1), ("no_answer_1", 1, -1))
        },
        "unavailable": dict.fromkeys(("ROC AUC", "AP", "Brier score", "calibration error"), NO_SCORE),
        "counts": {
            "rows": len(table),
            "test_clips": len(main),
            "groups": int(main["group"].nunique()),
            "positives": int((target == 1).sum()),
            "failed_rows": int((table["status"] == "failed").sum()),
            "unlabelled_rows": int(table["target"].isna().sum()),
        },
        "alarms": _alarms(main, said, metrics, baselines),
    }  # fmt: skip


def _share(of: Array, among: Array, weights: Array) -> Estimate:
    return mean_estimate(of[among].astype(float), weights[:, among])


def _rates(right: Array, weights: Array) -> Array:
    total = weights.sum(-1)
    return np.where(total > 0, (weights * right).sum(-1) / np.where(total > 0, total, 1), np.nan)


def _ratio(above: Array, below: Array, weights: Array) -> Estimate:
    """A ratio of sums; undefined where nothing is below."""
    if not below.sum():
        return Estimate(float("nan"), float("nan"), float("nan"))
    total = (weights * below).sum(-1)
    again = np.where(total > 0, (weights * above).sum(-1) / np.where(total > 0, total, 1), np.nan)
    return estimate(float(above.sum() / below.sum()), again)


def _alarms(main: pd.DataFrame, said: Array, metrics: dict[str, Estimate], baselines: dict[str, Estimate]) -> list[str]:
    if main.empty:
        return ["no row has a known answer: there is nothing to measure"]
    out = []
    spoken = set(said[said >= 0].tolist())
    if len(spoken) == 1:
        out.append(f"degenerate: every answer is {'Yes' if spoken == {1} else 'No'}")
    usual = baselines["majority_accuracy"].value
    if metrics["accuracy"].low <= usual:
        out.append(f"not better than one answer for every clip: accuracy {metrics['accuracy']}, majority {usual:.3f}")
    rate = metrics["parse_rate"].value
    if rate < 0.9:
        out.append(f"only {rate:.0%} of the answers could be read; the rest counts as wrong")
    return out + row_alarms(main["group"].tolist(), int((main["status"] == "failed").sum()), "wrong")
