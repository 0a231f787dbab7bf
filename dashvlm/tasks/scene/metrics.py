"""Numbers of scene descriptions from the predictions table: validity, parameters, risk, prose."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.metrics import functional as F
from dashvlm.metrics.intervals import RESAMPLES, Estimate, estimate, group_weights, mean_estimate, row_alarms
from dashvlm.metrics.text import overlap

Fields = Mapping[str, str]


def evaluate_scene(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Compute metrics, baselines and alarms.

    Args:
        table: a row a clip with ``group, primary, target`` (JSON of the normalised parameters), ``answer``
            (JSON of what was read: fields, strict, sections; or None), ``status, reference`` (JSON of the
            reference prose), and optionally ``constrained_answer`` and ``pixels_off_answer``. A parameter
            that was not written counts as wrong.
        seed: of the bootstrap.

    Returns:
        ``metrics``, ``baselines``, ``fields`` (a row a parameter), ``counts``, ``alarms``.
    """
    main = table[table["target"].notna() & table["primary"]].reset_index(drop=True)
    weights = group_weights(main["group"].tolist(), RESAMPLES, seed) if len(main) else np.ones((1, 0))
    targets: list[Fields] = [json.loads(t) for t in main["target"]]
    answers = [_answer(a) for a in main["answer"]]
    names = list(targets[0]) if targets else []
    constrained: list[str] = []
    metrics, rows = _fields(names, targets, [a["fields"] for a in answers], weights)
    metrics["json_valid"] = mean_estimate(np.array([float(a["strict"]) for a in answers]), weights)
    share = [len(set(a["fields"]) & set(t)) / max(len(t), 1) for a, t in zip(answers, targets, strict=True)]
    metrics["key_completeness"] = mean_estimate(np.array(share), weights)
    metrics["parse_rate"] = mean_estimate((main["status"] == "parsed").to_numpy(float), weights)
    metrics |= _prose(main, answers)
    if "constrained_answer" in main and main["constrained_answer"].notna().any():
        held, _ = _fields(names, targets, [_answer(a)["fields"] for a in main["constrained_answer"]], weights)
        metrics |= {f"constrained_{k}": v for k, v in held.items()}
        constrained = list(held)
    majority = {name: Counter(t[name] for t in targets).most_common(1)[0][0] for name in names}
    found, usual = _fields(names, targets, [majority] * len(targets), weights)
    baselines = {f"majority_{k}": v for k, v in found.items()}
    baselines |= {f"majority_constrained_{k}": found[k] for k in constrained}
    if "pixels_off_answer" in main:
        off, _ = _fields(names, targets, [_answer(a)["fields"] for a in main["pixels_off_answer"]], weights)
        baselines |= {f"pixels_off_{k}": v for k, v in off.items()}
    for row, plain in zip(rows, usual, strict=True):
        row |= {"majority": majority[row["field"]], "majority_accuracy": plain["accuracy"],
                "majority_macro_f1": plain["macro_f1"]}  # fmt: skip
    if names:
        mine, theirs = (_right(names, targets, said) for said in ([a["fields"] for a in answers],
                                                                  [majority] * len(targets)))  # fmt: skip
        metrics["above_majority"] = mean_estimate(mine.mean(1) - theirs.mean(1), weights)
        if "pixels_off_answer" in main:
            blind = _right(names, targets, [_answer(a)["fields"] for a in main["pixels_off_answer"]])
            baselines["pixels_off_above_majority"] = mean_estimate(blind.mean(1) - theirs.mean(1), weights)
    return {
        "metrics": {k: vars(v) for k, v in metrics.items()},
        "baselines": {k: vars(v) for k, v in baselines.items()},
        "fields": rows,
        "counts": {
            "rows": len(table),
            "test_clips": len(main),
            "groups": int(main["group"].nunique()),
            "failed_rows": int((table["status"] == "failed").sum()),
            "unlabelled_rows": int(table["target"].isna().sum()),
        },
        "alarms": _alarms(main, answers, metrics, baselines),
    }


def _fields(
    names: Sequence[str], targets: Sequence[Fields], said: Sequence[Fields], weights: F.Array
) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
    """Accuracy and macro-F1, over all parameters and for each."""
    metrics: dict[str, Estimate] = {}
    rows, values, resamples = [], [], []
    right = _right(names, targets, said)
    ones = np.ones(len(targets))
    for column, name in enumerate(names):
        words = sorted({t[name] for t in targets})
        y = np.array([words.index(t[name]) for t in targets])
        s = np.array([words.index(a[name]) if a.get(name) in words else -1 for a in said])
        f1, f1s = float(F.macro_f1(y, s, ones)), F.macro_f1(y, s, weights)
        accuracy = mean_estimate(right[:, column], weights)
        values.append(f1)
        resamples.append(f1s)
        rows.append({"field": name, "accuracy": vars(accuracy), "macro_f1": vars(estimate(f1, f1s)), "n": len(y)})
    if names:
        metrics["field_accuracy"] = mean_estimate(right.mean(1), weights)
        metrics["field_macro_f1"] = estimate(float(np.mean(values)), np.mean(resamples, axis=0))
        if "risk_factor" in names:
            at = list(names).index("risk_factor")
            metrics["risk_macro_f1"] = estimate(values[at], resamples[at])
    return metrics, rows


def _right(names: Sequence[str], targets: Sequence[Fields], said: Sequence[Fields]) -> F.Array:
    """1 where a parameter was written right, [N, fields]."""
    return np.array([[float(a.get(n) == t[n]) for n in names] for t, a in zip(targets, said, strict=True)])


def _prose(main: pd.DataFrame, answers: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Overlap of each prose section with the reference's, where both exist; an unwritten one is empty."""
    metrics: dict[str, Estimate] = {}
    if "reference" not in main:
        return metrics
    references = [json.loads(r) if isinstance(r, str) else {} for r in main["reference"]]
    for section in ("description", "risk"):
        pairs = [(r[section], a["sections"].get(section, "")) for r, a in zip(references, answers, strict=True)
                 if r.get(section)]  # fmt: skip
        if any(text for _, text in pairs):
            for name, value in overlap([r for r, _ in pairs], [t for _, t in pairs]).items():
                metrics[f"{section}_{name}"] = Estimate(value, float("nan"), float("nan"))
    return metrics


def _answer(value: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"fields": {}, "strict": False, "sections": {}}
    return json.loads(value) if isinstance(value, str) else empty


def _alarms(
    main: pd.DataFrame, answers: Sequence[Mapping[str, Any]], metrics: dict[str, Estimate],
    baselines: dict[str, Estimate],
) -> list[str]:  # fmt: skip
    out = []
    written = [json.dumps(a["fields"], sort_keys=True) for a in answers if a["fields"]]
    if len(written) > 1 and len(set(written)) == 1:
        out.append("degenerate: all answers have the same parameters")
    above = metrics.get("above_majority")
    if above is not None and above.low <= 0:
        out.append(f"not better than the majority words: field accuracy above them is {above}")
    rate = metrics["parse_rate"]
    if np.isfinite(rate.value) and rate.value < 0.9:
        out.append(f"only {rate.value:.0%} of the answers could be read; what was not written counts as wrong")
    out += row_alarms(main["group"].tolist(), int((main["status"] == "failed").sum()), "wrong")
    blind = baselines.get("pixels_off_above_majority")
    if blind is not None and blind.low > 0:
        out.append(f"shortcut: without pixels the model's field accuracy is {blind} above the majority words'")
    return out
