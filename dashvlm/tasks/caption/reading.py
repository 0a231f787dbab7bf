"""Descriptions for pedestrians and their references in the files of other tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dashvlm.data.formats import bvpi
from dashvlm.data.formats.bvpi_build import csv_files, joined
from dashvlm.data.rows import Row
from dashvlm.tables.records import Record, read_records, text_of
from dashvlm.tasks.reading import Reading, written_prediction
from dashvlm.text.navigation import parse_fields, segment


def truth(row: Row, target: Any, record: Record) -> Row:
    """A caption, a structured description, or a run's JSON of positions beside its reference."""
    text = text_of(target)
    if text is None:
        return {**row, "problem": "no reference"}
    if text.startswith("{"):
        row["extra"] |= {"navigation": json.loads(text)}
        text = text_of(record.get("reference")) or ""
    found = bvpi.truth_of_text(text)
    if found is not None:
        row["extra"].setdefault("navigation", found.to_dict())
        return {**row, "extra": {**row["extra"], "response": text, "caption": segment(text, "Context") or ""}}
    return {**row, "extra": {**row["extra"], "caption": text}}


def dataset(path: Path, options: Mapping[str, Any]) -> Iterable[Row] | None:
    """Rows of BVPI's own files."""
    encoding, kind = options.get("encoding"), path.suffix.lower()
    if kind == ".csv" and path.is_file():
        there = set(read_records(path, encoding).columns)
        return _captions(path, options) if {"image_path", "target", "split"} <= there else None
    if kind == ".jsonl":
        first = next((r for r in read_records(path, encoding).rows), {})
        if {"image", "response"} <= set(first) or {"image", "chosen"} <= set(first):
            return bvpi.rows(path.parent, {"file": path.name, "encoding": encoding})
    return None


def _captions(path: Path, options: Mapping[str, Any]) -> Iterator[Row]:
    annotations = Path(str(options["annotations"])) if options.get("annotations") else csv_files(path.parent)[1]
    for item in joined(path, annotations, options.get("encoding")):
        row = bvpi.caption_row(item)
        truth, extra = row.pop("truth", None), row.setdefault("extra", {})
        yield {**row, "extra": {**extra, **({"navigation": truth.to_dict()} if truth is not None else {})}}


def style(options: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Structured or free, as most texts are."""
    heads = [bool(parse_fields(text)) for text in texts]
    return {"style": "structured" if 2 * sum(heads) > len(heads) else "caption"}


TEXTS_ELSEWHERE = Reading(
    targets=("target", "reference", "caption", "ground_truth", "response"),
    truth=truth,
    prediction=written_prediction,
    dataset=dataset,
    answers=("caption",),
    written=True,
    options=style,
)
