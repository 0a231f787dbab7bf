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
from dashvlm.metrics.captions import caption_scores
from dashvlm.metrics.intervals import RESAMPLES, Estimate, group_weights, mean_estimate
from dashvlm.reproductions.published import Predictions, Recomputed, Table, find_csvs, read_predictions
from dashvlm.tasks.caption.metrics import known_accuracy, with_intervals
from dashvlm.tasks.caption.navigation import DEFINITIONS, Counts, Scope, contradicts_itself, field_rows, object_marks
from dashvlm.text.navigation import OBJECTS, Truth, parse_fields, segment

Weights = NDArray[np.float64]
Parts = dict[str, Any]
BLOCK = 25
"""Pictures with neighbouring numbers may be one walk: they are resampled together."""


SCOPES: Mapping[str, Scope] = {"openflamingo": "published", "smolvlm2": "published_nearby"}
"""Row of the published table of objects -> the definition that gives it back."""


def build(name: str, files: Sequence[Path], options: Mapping[str, Any], known: Mapping[str, str]) -> list[Recomputed]:
    """Score files of published predictions.

    Args:
        name: ``bvpi_captions``, ``bvpi_fields`` or ``bvpi_objects``.
        files: predictions (JSON list or JSON lines; see :func:`dashvlm.reproductions.published.read_predictions`).
        options: ``clean``, ``text_key``,
            ``annotations`` and ``captions`` (CSV files; looked for beside the predictions by default), ``spice``,
            ``images`` and ``clip`` (for CLIPScore).
        known: digest of a published file -> its row.

    Raises:
        ConfigError: if the table is unknown.
        DataError: if a file cannot be used.
    """
    tables: dict[str, Callable[[Predictions, Mapping[str, Any], Weights, str], Parts]]
    tables = {"bvpi_captions": _captions, "bvpi_fields": _fields, "bvpi_objects": _objects}
    if name not in tables:
        raise ConfigError("unknown table", got=name, do=f"use one of {', '.join(tables)}")
    loaded = [read_predictions(path, options) for path in files]
    apart = [f"{p.path.name} {p.split} ({len(p.texts)})" for p in loaded] if len({p.split for p in loaded}) > 1 else []
    made = []
    for found in loaded:
        weights = group_weights([block_of(i, BLOCK) for i in found.images], RESAMPLES, 0)
        row = known.get(found.digest, "")
        parts = tables[name](found, options, weights, row)
        notes = [*found.notes, *parts.pop("notes")]
        if apart:
            notes.append(f"these files are of different splits and must not be compared: {', '.join(apart)}")
        made.append(
            Recomputed(
                row, found.path.name, len(found.texts), split=found.split, notes=notes, digest=found.digest, **parts
            )
        )
    return made


def _captions(found: Predictions, options: Mapping[str, Any], weights: Weights, of: str) -> Parts:
    kept = [i for i, target in enumerate(found.targets) if target is not None]
    if not kept:
        raise DataError(
            f"{found.path} has no references", got="no target in its rows",
            do=f"python -m dashvlm.score task=caption predictions={found.path} truth=CAPTIONS_CSV",
        )  # fmt: skip
    targets, texts = [str(found.targets[i]) for i in kept], [found.texts[i] for i in kept]
    scores = caption_scores(targets, texts, "none", bool(options.get("spice")))
    values, missing = dict(scores.values), {"CLIPScore": "give images=FOLDER", **scores.unavailable}
    if options.get("images"):
        values["CLIPScore"] = _clip(found, str(options["images"]), str(options["clip"]))
    notes = ["all metrics are over the whole set, one reference a picture"]
    notes += [f"{metric} is unavailable: {missing[metric]}" for metric in missing if metric not in values]
    mine = with_intervals(scores, weights[:, kept])
    corrected = {m: e for m, e in mine.items() if np.isfinite(e.low)}
    usual, count = _usual_caption(found, options)
    constant: dict[str, Estimate] = {}
    if usual:
        same = caption_scores(targets, [usual] * len(targets), "none", bool(options.get("spice")))
        constant = with_intervals(same, weights[:, kept])
        notes.append(f"constant: the training caption that occurs most often ({count} times) for every picture")
    return {"published": values, "corrected": corrected, "constant": constant, "notes": notes}


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


def _fields(found: Predictions, options: Mapping[str, Any], weights: Weights, of: str) -> Parts:
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
        mine, common = known_accuracy(row, [t[name] for t in truths], weights)
        if common is None:
            continue
        column += "_known"
        counts[column] = sum(t[name] != "unknown" for t in truths)
        corrected[column], constant[column] = mine, common
        if mine.value <= common.value:
            notes.append(
                f"{name}, the {counts[column]} pictures where it is known: {mine.value:.3f} is not above always "
                f"saying the commonest word ({common.value:.3f})"
            )
    against = sum(contradicts_itself(t) for t in found.texts)
    notes.append(f"the written relation contradicts the text's own positions in {against} of {n} texts")
    if all(row["present"].all() for row in rows.values()):
        heads = len({tuple(parse_fields(t).items()) for t in found.texts})
        notes.append(
            f"every text has every field, so presence tells nothing apart; {heads} different heads in {n} texts"
        )
    told = Counter(filter(None, (segment(t, "Context") for t in found.texts)))
    if told and told.most_common(1)[0][1] > n / 2:
        notes.append(f"{told.most_common(1)[0][1]} of {n} texts have one and the same Context")
    table = (f"mandatory fields of {found.path.name}", ["field", "present", "right", "majority word"], body)
    counted = {"corrected": counts, "constant": counts}
    return {"published": values, "corrected": corrected, "constant": constant, "counts": counted, "notes": notes,
            "details": [table]}  # fmt: skip


def _objects(found: Predictions, options: Mapping[str, Any], weights: Weights, of: str) -> Parts:
    near = [t.near for t in _truths(found, options)]
    theirs = SCOPES.get(of, "published")
    values: dict[str, float] = {}
    corrected: dict[str, Estimate] = {}
    constant: dict[str, Estimate] = {}
    counts: dict[str, int] = {}
    made: list[Table] = []
    scopes: tuple[Scope, ...] = (theirs, "nearby", "full_text")
    if not of:
        scopes = ("published", "published_nearby", *scopes[1:])
    for scope in scopes:
        body = []
        for name in OBJECTS:
            there, said = object_marks(found.texts, near, name, scope)
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
