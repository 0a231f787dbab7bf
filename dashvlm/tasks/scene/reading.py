"""Scene descriptions and annotations in the files of other tools."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dashvlm.data.clip import Clip, Observation
from dashvlm.data.formats import bdd100k
from dashvlm.data.rows import Row
from dashvlm.data.textfiles import json_file
from dashvlm.tables.records import Record, text_of
from dashvlm.tasks.reading import Asked, Columns, Reading, written_prediction
from dashvlm.text.scene_schema import FIELDS


def truth(row: Row, target: Any, record: Record) -> Row:
    """An annotation: text with JSON in it, JSON, or the parameters themselves."""
    if isinstance(target, Mapping | list):
        target = json.dumps(target, ensure_ascii=False)
    text = text_of(target)
    return {**row, "extra": {"annotation": text}} if text else {**row, "problem": "no annotation"}


def prediction(
    task: Asked, given: Record, columns: Columns, text: str | None, clip: Clip, observation: Observation
) -> dict[str, Any]:
    """A text, or the parameters as columns, as an object, or as JSON within JSON."""
    value = given.get(columns.text) if columns.text else None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value.lstrip().startswith('"'):
        with contextlib.suppress(ValueError):
            text = str(json.loads(value))
            answer, status = task.parse(text, observation)
            return {"text": text, "answer": answer, "status": status}
    return written_prediction(task, given, columns, text, clip, observation)


def dataset(path: Path, options: Mapping[str, Any]) -> Iterable[Row] | None:
    """Rows of the published BDD100K annotations."""
    encoding = options.get("encoding")
    if path.suffix.lower() == ".json":
        items = json_file(path, encoding)
        if isinstance(items, list) and items and isinstance(items[0], Mapping) and "QA" in items[0]:
            return bdd100k.rows(path.parent, {"file": path.name, "encoding": encoding})
    return None


SCENES_ELSEWHERE = Reading(
    targets=("annotation", "target", "reference", "ground_truth", "answer", "completion"),
    truth=truth,
    prediction=prediction,
    dataset=dataset,
    answers=("caption",),
    written=True,
    fields=tuple(FIELDS),
)
