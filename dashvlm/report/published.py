"""Tables of published BVPI predictions: published, recomputed, difference, with the counts behind them.

python -m dashvlm.report table=bvpi_captions predictions=FILE [predictions='[FILE,FILE]']
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dashvlm.data.formats.bvpi_build import read_annotations
from dashvlm.errors import ConfigError, DataError
from dashvlm.metrics.captions import caption_scores
from dashvlm.metrics.navigation import DEFINITIONS, Scope, contradicts_itself, field_rows, object_counts
from dashvlm.report.predictions import Predictions, find_csvs, read_predictions
from dashvlm.tasks.navigation_text import OBJECTS, Truth

STUDIES = Path(__file__).resolve().parents[2] / "experiments"
Table = tuple[str, list[str], list[list[str]]]
Published = list[dict[str, Any]]
Value = tuple[str, str, float, int]


def build(name: str, options: Mapping[str, Any]) -> tuple[list[Table], list[str], list[Value]]:
    """Build a table of the BVPI study.

    Args:
        name: ``bvpi_captions``, ``bvpi_fields`` or ``bvpi_objects``.
        options: ``predictions`` (a file or a list), ``row`` (of the published table; ``auto`` goes by the
            path), ``clean`` (``auto | none | chat | openflamingo``), ``text_key``, ``annotations`` and
            ``captions`` (CSV files; looked for beside the predictions by default), ``spice``.

    Returns:
        Tables (title, header, rows), notes, and the recomputed values (row, column, value, number of pictures).

    Raises:
        ConfigError: if the table is unknown or no file is named.
        DataError: if a file cannot be used.
    """
    tables = {"bvpi_captions": _captions, "bvpi_fields": _fields, "bvpi_objects": _objects}
    if name not in tables:
        raise ConfigError("unknown table", got=name, do=f"use one of {', '.join(tables)}")
    wanted = options.get("predictions")
    files = [wanted] if isinstance(wanted, str) else list(wanted or [])
    if not files:
        raise ConfigError(f"table={name} needs predictions=FILE", do="for several: predictions='[A.json,B.json]'")
    published = read_published(name)
    loaded = [read_predictions(Path(str(f)), options) for f in files]
    unknown = [p.row for p in loaded if p.row and not any(r["row"] == p.row for r in published)]
    if unknown:
        rows = sorted({str(r["row"]) for r in published})
        raise ConfigError(f"row={unknown[0]} is not in the published table", do=f"use one of {', '.join(rows)}")
    made: list[Table] = []
    notes: list[str] = []
    values: list[Value] = []
    for found in loaded:
        more, said, numbers = tables[name](found, [r for r in published if r["row"] == found.row], options)
        made += more
        values += [(found.row or found.path.stem, c, v, len(found.texts)) for c, v in numbers.items()]
        notes += [f"{found.path.name}: {note}" for note in [*found.notes, *said]]
    return made, notes + _split_notes(loaded, published), values


def read_published(name: str) -> list[dict[str, Any]]:
    """Read a study's published numbers.

    Raises:
        DataError: if the study's folder is not there (it does not come with a wheel).
    """
    path = STUDIES / name / "published.csv"
    if not path.is_file():
        raise DataError(f"{path} is missing", do="install from a checkout: pip install -e .")
    with path.open(encoding="utf-8", newline="") as file:
        return [{**r, "value": float(r["value"]), "n": int(r["n"]), "tolerance": float(r["tolerance"])}
                for r in csv.DictReader(file)]  # fmt: skip


def _captions(
    found: Predictions, published: list[dict[str, Any]], options: Mapping[str, Any]
) -> tuple[list[Table], list[str], dict[str, float]]:
    pairs = [(t, x) for t, x in zip(found.targets, found.texts, strict=True) if t is not None]
    if not pairs:
        raise DataError(f"{found.path} has no references", got="no target in its rows", do="use table=bvpi_fields")
    scores = caption_scores([t for t, _ in pairs], [x for _, x in pairs], "none", bool(options.get("spice")))
    values, missing = dict(scores.values), {"CLIPScore": "give images=FOLDER", **scores.unavailable}
    if options.get("images"):
        values["CLIPScore"] = _clip(found, str(options["images"]), str(options["clip"]))
    by_name = {r["column"]: r for r in published}
    body = []
    for name in dict.fromkeys([*by_name, *values]):
        mine, theirs = values.get(name), by_name.get(name)
        verdict = "–"
        if mine is not None and theirs is not None:
            verdict = "reproduced" if abs(mine - theirs["value"]) <= theirs["tolerance"] else "not reproduced"
        body.append([
            name, _number(theirs["value"] if theirs else None), _number(mine),
            _number(mine - theirs["value"] if mine is not None and theirs else None, signed=True),
            verdict if mine is not None else "unavailable",
        ])  # fmt: skip
    absent = [n for n in by_name if n not in values]
    title = f"captions of {found.path.name}: {len(pairs)} pictures, {found.split} split, row {found.row or '–'}"
    length = by_name.get("avg_target_length")
    mine_length = values.get("avg_target_length")
    strange = length is not None and mine_length is not None and abs(mine_length - length["value"]) > 0.5
    notes = [f"tokenised by {scores.tokenizer}; all metrics are over the whole set, one reference a picture"]
    if strange:
        notes.append(
            f"the references are not those of the published row {found.row} (length {mine_length:.1f}, published "
            f"{length['value']:.1f}): another file, row=, text_key= or clean= is meant"  # type: ignore[index]
        )
    notes += [f"{n} is unavailable: {missing.get(n, 'not computed')}" for n in absent]
    if scores.tokenizer == "plain":
        notes.append("without Java the tokeniser is a close copy of the metrics' own: digits may differ")
    return [(title, ["metric", "published", "recomputed", "difference", "verdict"], body)], notes, values


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
            f"{found.path} is of a run", do="its result.json has fields and objects; use table=bvpi_captions"
        )
    _, annotations = find_csvs(found.path, options)
    if annotations is None:
        raise DataError(f"no annotation CSV for {found.path}", do="name it with annotations=FILE")
    known, _ = read_annotations(annotations)
    missing = [i for i in found.images if i not in known]
    if missing:
        found.notes.append(f"{len(missing)} pictures have no annotation and count as unknown, first {missing[0]}")
    return [known.get(i, Truth("unknown", "unknown")) for i in found.images]


def _fields(
    found: Predictions, published: list[dict[str, Any]], options: Mapping[str, Any]
) -> tuple[list[Table], list[str], dict[str, float]]:
    rows = field_rows(found.texts, [t.fields for t in _truths(found, options)])
    by_name = {r["column"]: r for r in published}
    n, body, notes = len(found.texts), [], []
    values: dict[str, float] = {}
    for kind, key in (("presence", "present"), ("accuracy", "right")):
        for name, row in rows.items():
            count, theirs = int(row[key].sum()), by_name.get(f"{kind}_{name}")
            usual = int(row["majority_right"].sum())
            values[f"{kind}_{name}"] = count / n
            body.append([
                f"{kind} {name}", _number(theirs["value"] if theirs else None, 3), f"{count}/{n} = {count / n:.3f}",
                _number(round(count / n, 3) - theirs["value"] if theirs else None, 3, signed=True),
                f"{row['majority']} {usual}/{n} = {usual / n:.3f}" if kind == "accuracy" else "–",
            ])  # fmt: skip
            if kind == "accuracy" and count <= usual:
                notes.append(
                    f"{name}: {count / n:.3f} is not above always saying {row['majority']!r} ({usual / n:.3f})"
                )
    against = sum(contradicts_itself(t) for t in found.texts)
    notes.append(f"the written relation contradicts the text's own positions in {against} of {n} texts")
    if all(row["present"].all() for row in rows.values()):
        notes.append(
            "every text has every field: presence measures nothing where a prefix was forced or a header added"
        )
    title = f"mandatory fields of {found.path.name}: {n} pictures, {found.split} split, row {found.row or '–'}"
    header = ["measure", "published", "recomputed", "difference", "majority word"]
    return [(title, header, body)], notes, values


def _objects(
    found: Predictions, published: list[dict[str, Any]], options: Mapping[str, Any]
) -> tuple[list[Table], list[str], dict[str, float]]:
    near = [t.near for t in _truths(found, options)]
    theirs_scope: Scope = "published_nearby" if (found.row or "").startswith("smolvlm2") else "published"
    by_name = {r["column"]: r["value"] for r in published}
    made: list[Table] = []
    values: dict[str, float] = {}
    scopes: tuple[Scope, ...] = (theirs_scope, "nearby", "full_text")
    for scope in scopes:
        counts = object_counts(found.texts, near, scope)
        body = []
        for name in OBJECTS:
            c = counts[name]
            line = [name, str(c.tp + c.fn), f"{c.tp} / {c.fn} / {c.fp}", f"{c.recall:.3f}", f"{c.precision:.3f}"]
            if scope == theirs_scope:
                values |= {f"recall_{name}": c.recall, f"precision_{name}": c.precision}
                line += _against(scope, c.recall, by_name.get(f"recall_{name}"))
                line += _against(scope, c.precision, by_name.get(f"precision_{name}"))
            body.append(line)
        header = ["object", "there", "tp / fn / fp", "recall", "precision"]
        if scope == theirs_scope:
            header += ["published recall", "difference", "published precision", "difference "]
        title = (
            f"nearby objects, {scope}: {DEFINITIONS[scope]}; {found.path.name}, {len(near)} pictures of {found.split}"
        )
        made.append((title, header, body))
    notes = [
        "truth: the object is annotated on the way; several of a kind count once; sides are not compared",
        "the two published object tables use two definitions and two ways of rounding: they cannot be compared",
    ]
    return made, notes, values


def _against(scope: Scope, value: float, known: float | None) -> list[str]:
    """The published value, and the difference after rounding as that table rounds."""
    shown = math.floor(value * 100 + 1e-9) / 100 if scope == "published" else round(value, 2)
    return [_number(known, 2), _number(None if known is None else shown - known, 2, signed=True)]


def _split_notes(loaded: Sequence[Predictions], published: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    splits = {p.split for p in loaded}
    if len(splits) > 1:
        shown = ", ".join(f"{p.path.name} {p.split} ({len(p.texts)})" for p in loaded)
        notes.append(f"these files are of different splits and must not be compared: {shown}")
    rows = {str(r["row"]): (r["split"], r["n"]) for r in published}
    if len({s for s, _ in rows.values()}) > 1:
        shown = ", ".join(f"{row} {split} ({n})" for row, (split, n) in rows.items())
        notes.append(f"the published rows themselves are of different splits: {shown}")
    notes += [
        f"{p.path.name} is of the {p.split} split, the published row {p.row} of {rows[p.row][0]}"
        for p in loaded
        if p.row in rows and p.split != rows[p.row][0]
    ]
    return notes


def _number(value: float | None, digits: int = 6, signed: bool = False) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("+", "").replace("-", "") if float(text) == 0 and signed else text
