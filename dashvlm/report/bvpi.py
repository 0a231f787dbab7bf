"""Published BVPI predictions scored again: captions, mandatory fields, nearby objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashvlm.data.formats.bvpi import block_of
from dashvlm.data.formats.bvpi_build import joined, read_annotations
from dashvlm.errors import ConfigError, DataError
from dashvlm.metrics.captions import CaptionScores, caption_scores
from dashvlm.metrics.intervals import RESAMPLES, Estimate, group_weights, mean_estimate
from dashvlm.metrics.navigation import DEFINITIONS, Counts, Scope, contradicts_itself, field_rows, mentions
from dashvlm.report.predictions import Predictions, find_csvs, read_predictions
from dashvlm.report.recompute import Recomputed, Table
from dashvlm.tasks.navigation_text import OBJECTS, Truth

Weights = NDArray[np.float64]
Parts = dict[str, Any]
BLOCK = 25
"""Pictures with neighbouring numbers may be one walk: they are resampled together."""


def build(name: str, files: Sequence[Path], options: Mapping[str, Any]) -> list[Recomputed]:
    """Score files of published predictions.

    Args:
        name: ``bvpi_captions``, ``bvpi_fields`` or ``bvpi_objects``.
        files: predictions (JSON list or JSON lines; see :func:`dashvlm.report.predictions.read_predictions`).
        options: ``row`` (of the published table; ``auto`` goes by the path), ``clean``, ``text_key``,
            ``annotations`` and ``captions`` (CSV files; looked for beside the predictions by default), ``spice``,
            ``images`` and ``clip`` (for CLIPScore).

    Raises:
        ConfigError: if the table is unknown.
        DataError: if a file cannot be used.
    """
    tables: dict[str, Callable[[Predictions, Mapping[str, Any], Weights], Parts]]
    tables = {"bvpi_captions": _captions, "bvpi_fields": _fields, "bvpi_objects": _objects}
    if name not in tables:
        raise ConfigError("unknown table", got=name, do=f"use one of {', '.join(tables)}")
    loaded = [read_predictions(path, options) for path in files]
    apart = [f"{p.path.name} {p.split} ({len(p.texts)})" for p in loaded] if len({p.split for p in loaded}) > 1 else []
    made = []
    for found in loaded:
        weights = group_weights([block_of(i, BLOCK) for i in found.images], RESAMPLES, 0)
        parts = tables[name](found, options, weights)
        notes = [*found.notes, *parts.pop("notes")]
        if apart:
            notes.append(f"these files are of different splits and must not be compared: {', '.join(apart)}")
        made.append(
            Recomputed(
                found.row or found.path.stem, found.path.name, len(found.texts), split=found.split, notes=notes, **parts
            )
        )  # fmt: skip
    return made


def _captions(found: Predictions, options: Mapping[str, Any], weights: Weights) -> Parts:
    kept = [i for i, target in enumerate(found.targets) if target is not None]
    if not kept:
        raise DataError(f"{found.path} has no references", got="no target in its rows", do="use study=bvpi_fields")
    targets, texts = [str(found.targets[i]) for i in kept], [found.texts[i] for i in kept]
    scores = caption_scores(targets, texts, "none", bool(options.get("spice")))
    values, missing = dict(scores.values), {"CLIPScore": "give images=FOLDER", **scores.unavailable}
    if options.get("images"):
        values["CLIPScore"] = _clip(found, str(options["images"]), str(options["clip"]))
    notes = [f"tokenised by {scores.tokenizer}; all metrics are over the whole set, one reference a picture"]
    notes += [f"{metric} is unavailable: {missing[metric]}" for metric in missing if metric not in values]
    if scores.tokenizer == "plain":
        notes.append("without Java the tokeniser is a close copy of the metrics' own: digits may differ")
    mine = _with_intervals(scores, weights[:, kept])
    corrected = {m: e for m, e in mine.items() if np.isfinite(e.low)}
    usual, count = _usual_caption(found, options)
    constant: dict[str, Estimate] = {}
    if usual:
        same = caption_scores(targets, [usual] * len(targets), "none", bool(options.get("spice")))
        constant = _with_intervals(same, weights[:, kept])
        notes.append(f"constant: the training caption that occurs most often ({count} times) for every picture")
    return {"published": values, "corrected": corrected, "constant": constant, "notes": notes}


def _with_intervals(scores: CaptionScores, weights: Weights) -> dict[str, Estimate]:
    """Every metric; with an interval where the set's value is the mean over pictures (METEOR's and BLEU's are not)."""
    found = {m: Estimate(v, np.nan, np.nan) for m, v in scores.values.items()}
    each = {m: mean_estimate(np.asarray(v), weights) for m, v in scores.each.items()}
    return found | {m: e for m, e in each.items() if abs(e.value - found[m].value) < 1e-6}


def _usual_caption(found: Predictions, options: Mapping[str, Any]) -> tuple[str, int]:
    """The training caption that occurs most often, and how often; empty without the captions CSV."""
    captions, _ = find_csvs(found.path, options)
    if captions is None:
        return "", 0
    counted = Counter(item["target"] for item in joined(captions, None) if item["split"] == "train" and item["target"])
    return counted.most_common(1)[0] if counted else ("", 0)


def _clip(found: Predictions, folder: str, checkpoint: str) -> float:
    """CLIPScore over all pictures of a file."""
    from dashvlm.metrics.clip import clip_score, clip_scores

    by_name = {p.name: p for p in Path(folder).rglob("*") if p.is_file()}
    absent = [i for i in found.images if i not in by_name]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(found.images)} pictures are not below {folder}",
            got=absent[0],
            do="name the folder with images=FOLDER",
        )
    return clip_score(clip_scores([by_name[i] for i in found.images], found.texts, checkpoint))


def _truths(found: Predictions, options: Mapping[str, Any]) -> list[Truth]:
    if found.path.suffix == ".parquet":
        raise DataError(
            f"{found.path} is of a run", do="its result.json has fields and objects; use study=bvpi_captions"
        )
    _, annotations = find_csvs(found.path, options)
    if annotations is None:
        raise DataError(
            f"no annotation CSV for {found.path}",
            got="none in its folder or the two above it",
            do="name it with annotations=FILE",
        )
    known, _ = read_annotations(annotations)
    missing = [i for i in found.images if i not in known]
    if missing:
        found.notes.append(f"{len(missing)} pictures have no annotation and count as unknown, first {missing[0]}")
    return [known.get(i, Truth("unknown", "unknown")) for i in found.images]


def _fields(found: Predictions, options: Mapping[str, Any], weights: Weights) -> Parts:
    truths = [t.fields for t in _truths(found, options)]
    rows = field_rows(found.texts, truths)
    n, body, notes = len(found.texts), [], []
    values: dict[str, float] = {}
    corrected: dict[str, Estimate] = {}
    constant: dict[str, Estimate] = {}
    counts: dict[str, int] = {}
    for name, row in rows.items():
        right, usual = row["right"].astype(np.float64), row["majority_right"].astype(np.float64)
        column, count = f"accuracy_{name}", int(row["right"].sum())
        corrected[column], constant[column] = mean_estimate(right, weights), mean_estimate(usual, weights)
        body.append([name, f"{int(row['present'].sum())}/{n}", f"{count}/{n} = {count / n:.3f}",
                     f"{row['majority']} {int(usual.sum())}/{n} = {usual.mean():.3f}"])  # fmt: skip
        if name == "road_vs_sidewalk_derived":  # not in the published table
            continue
        values |= {f"presence_{name}": float(row["present"].mean()), column: float(right.mean())}
        if count <= usual.sum():
            notes.append(f"{name}: {count / n:.3f} is not above always saying {row['majority']!r} ({usual.mean():.3f})")
        known = np.array([t[name] != "unknown" for t in truths])
        if not known.any():
            continue
        word = Counter(t[name] for t in truths if t[name] != "unknown").most_common(1)[0][0]
        same = np.array([float(t[name] == word) for t in truths])
        column += "_known"
        counts[column] = int(known.sum())
        corrected[column] = mean_estimate(right[known], weights[:, known])
        constant[column] = mean_estimate(same[known], weights[:, known])
        if corrected[column].value <= constant[column].value:
            notes.append(
                f"{name}, the {counts[column]} pictures where it is known: {corrected[column].value:.3f} is not above "
                f"always saying {word!r} ({constant[column].value:.3f})"
            )
    against = sum(contradicts_itself(t) for t in found.texts)
    notes.append(f"the written relation contradicts the text's own positions in {against} of {n} texts")
    if all(row["present"].all() for row in rows.values()):
        notes.append(
            "every text has every field: presence measures nothing where a prefix was forced or a header added"
        )
    table = (f"mandatory fields of {found.path.name}", ["field", "present", "right", "majority word"], body)
    counted = {"corrected": counts, "constant": counts}
    return {"published": values, "corrected": corrected, "constant": constant, "counts": counted, "notes": notes,
            "details": [table]}  # fmt: skip


def _objects(found: Predictions, options: Mapping[str, Any], weights: Weights) -> Parts:
    near = [t.near for t in _truths(found, options)]
    theirs: Scope = "published_nearby" if (found.row or "").startswith("smolvlm2") else "published"
    values: dict[str, float] = {}
    corrected: dict[str, Estimate] = {}
    constant: dict[str, Estimate] = {}
    counts: dict[str, int] = {}
    made: list[Table] = []
    scopes: tuple[Scope, ...] = (theirs, "nearby", "full_text")
    for scope in scopes:
        body = []
        for name in OBJECTS:
            there = np.array([bool(n.get(name)) for n in near])
            said = np.array([mentions(t, name, scope) for t in found.texts])
            c = Counts(int((there & said).sum()), int((there & ~said).sum()), int((said & ~there).sum()))
            body.append([name, str(c.tp + c.fn), f"{c.tp} / {c.fn} / {c.fp}", f"{c.recall:.3f}", f"{c.precision:.3f}"])
            if scope == theirs:
                values |= {f"recall_{name}": c.recall, f"precision_{name}": c.precision}
            elif scope == "nearby":
                hit = (there & said).astype(np.float64)
                for column, among in ((f"recall_{name}", there), (f"precision_{name}", said)):
                    corrected[column], counts[column] = mean_estimate(hit[among], weights[:, among]), int(among.sum())
                constant[f"recall_{name}"] = Estimate(1.0, np.nan, np.nan)
                constant[f"precision_{name}"] = mean_estimate(there.astype(np.float64), weights)
        header = ["object", "there", "tp / fn / fp", "recall", "precision"]
        made.append((f"nearby objects of {found.path.name}, {scope}: {DEFINITIONS[scope]}", header, body))
    notes = [
        "truth: the object is annotated on the way; several of a kind count once; sides are not compared",
        "constant: naming the object for every picture",
    ]
    seen = {column: n for column, n in counts.items() if column.startswith("recall_")}
    counted = {"corrected": counts, "constant": seen}
    return {"published": values, "corrected": corrected, "constant": constant, "counts": counted, "notes": notes,
            "details": made}  # fmt: skip
