"""Numbers of navigation descriptions from the predictions table: captions, fields, objects, sides, omissions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.metrics.captions import NOT_ASKED, CaptionScores, caption_scores
from dashvlm.metrics.functional import Array
from dashvlm.metrics.intervals import RESAMPLES, Estimate, estimate, group_weights, mean_estimate, row_alarms
from dashvlm.tasks.caption.navigation import (
    DANGEROUS,
    contradicts_itself,
    field_rows,
    object_counts,
    object_marks,
    omissions,
    side_rows,
)
from dashvlm.text.navigation import OBJECTS, parse_fields

SPICE = "python -m dashvlm.score task=caption predictions=RUN/predictions.parquet spice=true"
"""Where to get it: minutes a set are too long for every run."""


def evaluate_caption(table: pd.DataFrame, seed: int = 0) -> dict[str, Any]:
    """Compute metrics, baselines and alarms.

    Args:
        table: a row a picture with ``group, primary, target`` (JSON: mandatory fields and ``near``, or null),
            ``reference`` (the text that was to be written), ``text, status``, ``prefix`` (what was forced) and
            ``pixels_off_text``. A picture without text counts as an empty one.
        seed: of the bootstrap.

    Returns:
        ``metrics``, ``baselines``, ``objects`` (a row an object and scope), ``counts``, ``unavailable``, ``alarms``.
    """
    main = table[table["primary"]].reset_index(drop=True)
    annotated = main["target"].map(lambda t: isinstance(t, str) and t != "{}")
    known = main[annotated].reset_index(drop=True)
    weights = group_weights(known["group"].tolist(), RESAMPLES, seed) if len(known) else np.ones((1, 0))
    texts, truths = _texts(known["text"]), [json.loads(t) for t in known["target"]]
    metrics: dict[str, Estimate] = {}
    baselines: dict[str, Estimate] = {}
    if truths:
        fields = field_rows(texts, truths)
        blind = field_rows(_texts(known["pixels_off_text"]), truths) if "pixels_off_text" in known else None
        for name, row in fields.items():
            metrics[f"accuracy_{name}"] = mean_estimate(row["right"].astype(float), weights)
            baselines[f"majority_accuracy_{name}"] = mean_estimate(row["majority_right"].astype(float), weights)
            mine, usual = known_accuracy(row, [t[name.removesuffix("_derived")] for t in truths], weights)
            if usual is not None:
                metrics[f"accuracy_{name}_known"], baselines[f"majority_accuracy_{name}_known"] = mine, usual
            if blind is not None:
                off = mean_estimate(blind[name]["right"].astype(float), weights)
                baselines[f"pixels_off_accuracy_{name}"] = off
        above = fields["sidewalk_pos"]["right"].astype(float) - fields["sidewalk_pos"]["majority_right"]
        metrics["sidewalk_above_majority"] = mean_estimate(above, weights)
        for name in ("sidewalk_pos", "road_pos", "road_vs_sidewalk"):
            metrics[f"presence_{name}"] = mean_estimate(fields[name]["present"].astype(float), weights)
        metrics |= _safety(texts, truths, weights)
    scores = None
    told = main[main["reference"].notna()]
    if len(told):
        references, drawn = told["reference"].tolist(), group_weights(told["group"].tolist(), RESAMPLES, seed)
        scores = caption_scores(references, _texts(told["text"]))
        metrics |= with_intervals(scores, drawn)
        if "usual_reference" in told and isinstance(told["usual_reference"].iloc[0], str):
            usual_scores = with_intervals(caption_scores(references, told["usual_reference"].tolist()), drawn)
            baselines |= {f"usual_{k}": v for k, v in usual_scores.items()}
    prefixes = sorted({str(p) for p in main.get("prefix", pd.Series(dtype=object)).dropna() if p})
    return {
        "metrics": {k: vars(v) for k, v in metrics.items()},
        "baselines": {k: vars(v) for k, v in baselines.items()},
        "objects": _objects(texts, truths, weights),
        "unavailable": {k: SPICE if v == NOT_ASKED else v for k, v in scores.unavailable.items()} if scores else {},
        "forced_prefix": prefixes,
        "counts": {
            "rows": len(table),
            "test_clips": len(main),
            "annotated": len(known),
            "groups": int(main["group"].nunique()),
            "failed_rows": int((table["status"] == "failed").sum()),
            "unlabelled_rows": int(table["target"].isna().sum()),
        },
        "alarms": _unavailable(scores) + _alarms(main, texts, truths, metrics, baselines, prefixes),
    }


def _safety(texts: Sequence[str], truths: Sequence[Mapping[str, Any]], weights: Array) -> dict[str, Estimate]:
    """Unsafe omissions of close objects, sides of those told, relations against the own positions."""
    left_out = [omissions(t, g["near"]) for t, g in zip(texts, truths, strict=True)]
    sides = [side_rows(t, g["near"]) for t, g in zip(texts, truths, strict=True)]
    out = {
        "unsafe_omission": _rate([[v != "told" for v in o.values()] for o in left_out], weights),
        "said_absent": _rate([[v == "denied" for v in o.values()] for o in left_out], weights),
    }
    for name in DANGEROUS:
        if any(name in o for o in left_out):
            out[f"unsafe_omission_{name}"] = _rate(
                [[o[name] != "told"] if name in o else [] for o in left_out], weights
            )
    if any(sides):
        out["side_accuracy"] = _rate([list(s.values()) for s in sides], weights)
    near = object_counts(texts, [t["near"] for t in truths])
    present = [c for c in near.values() if c.tp + c.fn]
    if present:
        out["object_recall"] = Estimate(float(np.mean([c.recall for c in present])), float("nan"), float("nan"))
    said = [c for c in present if c.tp + c.fp]  # what is never mentioned has no precision
    if said:
        out["object_precision"] = Estimate(float(np.mean([c.precision for c in said])), float("nan"), float("nan"))
    wrong = np.array([contradicts_itself(t) for t in texts], float)
    out["contradicts_itself"] = mean_estimate(wrong, weights)
    return out


def known_accuracy(row: Mapping[str, Any], truths: Sequence[str], weights: Array) -> tuple[Estimate, Estimate | None]:
    """Accuracy of a field over the pictures where it is annotated, and the commonest word's there.

    Args:
        row: of :func:`dashvlm.tasks.caption.navigation.field_rows`.
        truths: the field's word a picture; ``unknown`` where it is not annotated.
        weights: bootstrap weights [R, N].

    Returns:
        Both values; the second is None where every picture, or none, is annotated.
    """
    known = np.array([t != "unknown" for t in truths])
    mine = mean_estimate(row["right"][known].astype(float), weights[:, known])
    if known.all() or not known.any():
        return mine, None
    word = Counter(t for t in truths if t != "unknown").most_common(1)[0][0]
    same = np.array([float(t == word) for t in truths])
    return mine, mean_estimate(same[known], weights[:, known])


def with_intervals(scores: CaptionScores, weights: Array) -> dict[str, Estimate]:
    """Every metric; with an interval where the set's value is the mean over pictures (METEOR's and BLEU's are not)."""
    found = {m: Estimate(v, np.nan, np.nan) for m, v in scores.values.items()}
    each = {m: mean_estimate(np.asarray(v), weights) for m, v in scores.each.items()}
    return found | {m: e for m, e in each.items() if abs(e.value - found[m].value) < 1e-6}


def _unavailable(scores: CaptionScores | None) -> list[str]:
    if scores is None or "METEOR" not in scores.unavailable:
        return []
    lacking = [name for name, why in scores.unavailable.items() if why == scores.unavailable["METEOR"]]
    return [f"{', '.join(lacking)}: unavailable, {scores.unavailable['METEOR']}"]


def _rate(cases: Sequence[Sequence[bool]], weights: Array) -> Estimate:
    """Share of cases over all pictures; a picture has any number of them."""
    hits, sizes = np.array([sum(c) for c in cases], float), np.array([len(c) for c in cases], float)
    if not sizes.sum():
        return Estimate(float("nan"), float("nan"), float("nan"))
    total = (weights * sizes).sum(-1)
    resampled = np.where(total > 0, (weights * hits).sum(-1) / np.where(total > 0, total, 1), np.nan)
    return estimate(float(hits.sum() / sizes.sum()), resampled)


def _objects(texts: Sequence[str], truths: Sequence[Mapping[str, Any]], weights: Array) -> list[dict[str, Any]]:
    """A row an object and scope; recall and precision are None where nothing is there, or nothing was said."""
    rows: list[dict[str, Any]] = []
    if not truths:
        return rows
    for scope in ("nearby", "full_text"):
        for name in OBJECTS:
            there, said = object_marks(texts, [t["near"] for t in truths], name, scope)
            hit = (there & said).astype(float)
            recall, precision = (mean_estimate(hit[a], weights[:, a]) for a in (there, said))
            rows.append({"object": name, "scope": scope, "there": int(there.sum()), "tp": int(hit.sum()),
                         "fn": int((there & ~said).sum()), "fp": int((said & ~there).sum()),
                         "recall": vars(recall), "precision": vars(precision)})  # fmt: skip
    return rows


def _texts(column: pd.Series) -> list[str]:
    return [t if isinstance(t, str) else "" for t in column]


def _alarms(
    main: pd.DataFrame, texts: Sequence[str], truths: Sequence[Any], metrics: Mapping[str, Estimate],
    baselines: Mapping[str, Estimate], prefixes: Sequence[str],
) -> list[str]:  # fmt: skip
    out = []
    written = _texts(main["text"]) if not texts else []
    if len(written) > 1 and len(set(written)) == 1:
        out.append("degenerate: all texts are the same")
    heads = {json.dumps(parse_fields(t), sort_keys=True) for t in texts}
    if len(texts) > 1 and len(heads) == 1:
        out.append("degenerate: all texts have the same mandatory fields")
    elif len(texts) > 1 and len(set(texts)) == 1:
        out.append("degenerate: all texts are the same")
    for name in ("sidewalk_pos", "road_pos", "road_vs_sidewalk"):
        mine, usual = metrics.get(f"accuracy_{name}"), baselines.get(f"majority_accuracy_{name}")
        if mine is not None and usual is not None and mine.low <= usual.value:
            out.append(f"{name}: accuracy {mine} is not clear of the majority word's {usual.value:.3f}")
        off = baselines.get(f"pixels_off_accuracy_{name}")
        if off is not None and usual is not None and off.low > usual.value:
            out.append(f"shortcut: without pixels {name} is still right in {off}, majority {usual.value:.3f}")
    if prefixes:
        out.append(f"texts were made to begin with {prefixes[0]!r}: the presence of that field says nothing")
    omitted = metrics.get("unsafe_omission")
    if omitted is not None and omitted.value > 0.25:
        out.append(f"unsafe: {omitted.value:.0%} of the close people, obstacles, bicycles and cars are not told of")
    out += row_alarms(main["group"].tolist(), int((main["status"] == "failed").sum()), "empty texts")
    return out
