"""Numbers of a yes/no task from the predictions table, and what they must be compared with.

Knows only the table: whoever has ``predictions.parquet`` can recompute every number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dashvlm.metrics import functional as F
from dashvlm.metrics.intervals import RESAMPLES, Estimate, estimate, group_weights, mean_estimate, row_alarms

ORDER = ("roc_auc", "ap")
"""Metrics of the order of the scores alone."""
NO_PROBABILITY = "scores outside 0 to 1 are no probabilities; their order is scored"


def evaluate_binary(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Compute metrics, baselines and alarms.

    Args:
        table: a row a (clip, horizon) with ``clip_id, group, horizon_s, primary, target, score,
            answer, status, pixels_off_score``. A failed row (score nan) counts as wrong. Where ``score_is_rank``
            is set the scores only order the rows: what needs a threshold or a probability is left out.
        seed: of the bootstrap.

    Returns:
        ``metrics`` and ``baselines``: name -> {value, low, high}; ``counts``; ``alarms``: sentences.
    """
    known = _as_wrong(table[table["target"].notna()])
    main = known[known["primary"]]
    weights = group_weights(main["group"].tolist(), RESAMPLES, seed) if len(main) else np.ones((1, 0))
    target, score = _columns(main)
    ranks = bool(main["score_is_rank"].any()) if "score_is_rank" in main else False
    wanted = {n: m for n, m in F.METRICS.items() if not ranks or n in ORDER}
    metrics = {name: _estimate(metric, target, score, weights) for name, metric in wanted.items()}
    metrics |= {n: v for n, v in _horizons(known, seed).items() if not ranks or n != "mtta_s"}
    metrics |= _of_challenge(main, target, score, weights)
    if (main["status"].notna() & (main["status"] != "failed")).any():
        parsed = (main["status"] == "parsed").to_numpy(float)
        metrics["parse_rate"] = mean_estimate(parsed, weights)
        right = (main["answer"] == main["target"]).fillna(False).to_numpy(float)
        metrics["answer_accuracy"] = mean_estimate(right, weights)
    if "reasoned_score" in main and main["reasoned_score"].notna().any():
        reasoned = _as_wrong(main.assign(score=main["reasoned_score"]))["score"].to_numpy(np.float64)
        for name in ("roc_auc", "ap", "accuracy"):
            metrics[f"reasoned_{name}"] = _estimate(F.METRICS[name], target, reasoned, weights)
    baselines = {n: v for n, v in _baselines(main, target, weights).items() if not ranks or not n.endswith("accuracy")}
    unavailable = {n: NO_PROBABILITY for n in (*F.METRICS, "mtta_s") if n not in ORDER} if ranks else {}
    counted = dict(zip(("tn", "fp", "fn", "tp"), F.confusion(target, score).tolist(), strict=True))
    return {
        **({"unavailable": unavailable} if ranks else {}),
        "metrics": {k: vars(v) for k, v in metrics.items()},
        "baselines": {k: vars(v) for k, v in baselines.items()},
        "confusion": {} if ranks else counted,
        "counts": {
            "rows": len(table),
            "test_clips": len(main),
            "groups": int(main["group"].nunique()),
            "positives": int((target == 1).sum()),
            "failed_rows": int(table["score"].isna().sum()),
            "unlabelled_rows": int(table["target"].isna().sum()),
            "padded_rows": int((main["num_padded"] > 0).sum()) if "num_padded" in main else 0,
        },
        "slices": slices(main, seed),
        "alarms": alarms(main, metrics, baselines, ranks),
    }


def _of_challenge(main: pd.DataFrame, target: F.Array, score: F.Array, weights: F.Array) -> dict[str, Estimate]:
    """Nexar's own number, the mean of AP over the groups of its test: of all, of the public and of the private part."""
    if "slice_time_to_accident" not in main or not main["slice_time_to_accident"].notna().any():
        return {}
    group, found = main["slice_time_to_accident"], {}
    part = main["slice_part"] if "slice_part" in main else pd.Series(None, index=main.index)
    for name, of_part in {"": group.notna(), **{f"_{p}": part == p for p in sorted(part.dropna().unique())}}.items():
        rows = [((group == g) & of_part).to_numpy() for g in sorted(group[of_part].dropna().unique())]
        drawn = np.mean([F.average_precision(target[r], score[r], weights[:, r]) for r in rows], axis=0)
        value = float(np.mean([F.average_precision(target[r], score[r], np.ones(int(r.sum()))) for r in rows]))
        found[f"nexar_map{name}"] = estimate(value, drawn)
    return found


def slices(main: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """The primary metric on parts of the rows, one for each value of each ``slice_...`` column.

    Returns:
        ``slice, value, rows, positives, roc_auc``; the last undefined where a part has one class.
    """
    found = []
    for column in [c for c in main if c.startswith("slice_")]:
        for value, part in main.groupby(column):
            target, score = _columns(part)
            weights = group_weights(part["group"].tolist(), RESAMPLES, seed)
            auc = vars(_estimate(F.METRICS["roc_auc"], target, score, weights))
            found.append({"slice": column.removeprefix("slice_"), "value": str(value), "rows": len(part),
                          "positives": int((target == 1).sum()), "roc_auc": auc})  # fmt: skip
    return found


def monitor_binary(target: F.Array, scores: F.Array) -> dict[str, float]:
    """Validation metrics of scores [N, 2]; the first is shown while training."""
    ones = np.ones(len(target))
    # Undefined where a split has one class; such a value chooses no checkpoint.
    return {n: float(F.METRICS[n](target, scores[:, -1], ones)) for n in ("roc_auc", "ap", "accuracy", "brier")}


def alarms(
    main: pd.DataFrame, metrics: dict[str, Estimate], baselines: dict[str, Estimate], ranks: bool = False
) -> list[str]:
    """Say in sentences why a number might not measure what it seems to."""
    out = []
    score = main["score"][~main["_failed"]]
    said = (score >= F.THRESHOLD).astype(int)
    if len(score) and score.nunique() == 1:
        out.append(f"degenerate: every score is {score.iloc[0]:.4f}")
    elif len(score) > 4 and score.std() < 1e-3:
        out.append(f"degenerate: scores hardly vary (standard deviation {score.std():.1e})")
    elif len(score) and said.nunique() == 1 and not ranks:
        out.append(f"degenerate at 0.5: every clip is called {'positive' if said.iloc[0] else 'negative'}")
    if len(main) and main["target"].nunique() == 1:
        out.append("one class only: ROC AUC is not defined, AP says nothing")
    auc = metrics["roc_auc"]
    if np.isfinite(auc.value) and auc.low <= 0.5 <= auc.high:
        out.append(f"not better than chance: ROC AUC {auc} contains 0.5")
    rate = metrics.get("parse_rate")
    if rate is not None and rate.value < 0.9:
        out.append(f"only {rate.value:.0%} of the answers could be parsed; answer_accuracy counts the rest as wrong")
    out += row_alarms(main["group"].tolist(), int(main["_failed"].sum()), "wrong")
    blind = baselines.get("pixels_off_roc_auc")
    if blind is not None and (blind.low > 0.5 or blind.high < 0.5):
        out.append(f"shortcut: without pixels the model still reaches ROC AUC {blind}")
    return out


def _as_wrong(known: pd.DataFrame) -> pd.DataFrame:
    """Give rows that could not be computed the worst score there is, so that failures never flatter."""
    worst = 1.0 - known["target"].astype(float)
    failed = known["status"] == "failed" if "status" in known else known["score"].isna()
    out = known.assign(_failed=known["score"].isna(), score=known["score"].fillna(worst))
    if "pixels_off_score" in out:
        out["pixels_off_score"] = out["pixels_off_score"].where(out["pixels_off_score"].notna() | ~failed, worst)
    return out


def _columns(rows: pd.DataFrame) -> tuple[F.Array, F.Array]:
    return rows["target"].to_numpy(np.float64), rows["score"].to_numpy(np.float64)


def _estimate(metric: F.Metric, target: F.Array, score: F.Array, weights: F.Array) -> Estimate:
    return estimate(float(metric(target, score, np.ones(len(target)))), metric(target, score, weights))


def _horizons(known: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """AP at each horizon, their mean (the Nexar challenge's metric), and the mean warning time."""
    horizons = sorted(known["horizon_s"].unique())
    wide = known.pivot_table(index="clip_id", columns="horizon_s", values="score", dropna=False)
    wide = wide.dropna()
    if len(horizons) < 2 or wide.empty:
        return {}
    about = known.drop_duplicates("clip_id").set_index("clip_id").loc[wide.index]
    target = about["target"].to_numpy(np.float64)
    weights = group_weights(about["group"].tolist(), RESAMPLES, seed)
    ones = np.ones(len(wide))
    out: dict[str, Estimate] = {}
    values, resamples = [], []
    for horizon in horizons:
        score = wide[horizon].to_numpy(np.float64)
        values.append(float(F.average_precision(target, score, ones)))
        resamples.append(F.average_precision(target, score, weights))
        out[f"ap@{horizon:g}s"] = estimate(values[-1], resamples[-1])
    out["map_horizons"] = estimate(float(np.mean(values)), np.mean(resamples, axis=0))
    positive = target == 1
    scores = wide.to_numpy(np.float64)[positive]
    out["mtta_s"] = estimate(
        float(F.mean_time_to_accident(scores, horizons, np.ones(len(scores)))),
        F.mean_time_to_accident(scores, horizons, weights[:, positive]),
    )
    return out


def _baselines(main: pd.DataFrame, target: F.Array, weights: F.Array) -> dict[str, Estimate]:
    if not len(main):
        return {}
    prior = float(target.mean())
    majority = np.full(len(target), float(prior >= 0.5))
    total = np.maximum(weights.sum(-1), 1)
    chance = weights @ target / total
    out = {
        "majority_accuracy": _estimate(F.accuracy, target, majority, weights),
        "prior_random_accuracy": estimate(prior**2 + (1 - prior) ** 2, chance**2 + (1 - chance) ** 2),
        "prior_random_roc_auc": Estimate(0.5, 0.5, 0.5),
        "prior_random_ap": estimate(prior, chance),
    }
    if "pixels_off_score" in main and main["pixels_off_score"].notna().all():
        off = main["pixels_off_score"].to_numpy(np.float64)
        for name in ("roc_auc", "ap", "accuracy"):
            out[f"pixels_off_{name}"] = _estimate(F.METRICS[name], target, off, weights)
    return out
