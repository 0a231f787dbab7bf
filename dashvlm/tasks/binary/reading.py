"""Yes/no predictions and labels in the files of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dashvlm.data.clip import Clip, Observation
from dashvlm.data.rows import Row
from dashvlm.tables.cells import chance_of_yes, label_of, numbers_of, said_in
from dashvlm.tables.records import Record, text_of
from dashvlm.tasks.reading import Asked, Columns, Reading


def truth(row: Row, target: Any, record: Record) -> Row:
    """A label."""
    label = label_of(target)
    return {**row, "label": label if label is not None else text_of(target)}


def prediction(
    task: Asked, given: Record, columns: Columns, text: str | None, clip: Clip, observation: Observation
) -> dict[str, Any]:
    """A score, an answer, or both."""
    made: dict[str, Any] = {"text": text}
    if columns.score:
        made["score"], made["problem"] = chance_of_yes(given.get(columns.score))
        made["status"] = None
    said = text_of(given.get(columns.answer)) if columns.answer else None
    label = label_of(said)
    if label is not None:
        made |= {"answer": label, "status": "parsed"}
    elif said is not None or text is not None:
        answer, status = task.parse(said_in(str(said if said is not None else text), plain=True), observation)
        made |= {"answer": answer, "status": status}
    if columns.score and made["score"] is None:
        made["status"] = "failed"
    return made


def slices(clip: Clip) -> dict[str, Any]:
    """The slices that a clip belongs to."""
    return {f"slice_{k}": str(v) for k, v in (clip.extra.get("slices") or {}).items()}


def short(cells: Sequence[str]) -> str | None:
    """Bare labels are answers, bare numbers scores."""
    if all(label_of(c) is not None for c in cells):
        return "answer"
    return "score" if all(numbers_of(c) is not None for c in cells) else None


YES_NO = Reading(
    targets=("target", "label", "ground_truth", "gt", "y_true", "truth"),
    truth=truth,
    prediction=prediction,
    about=slices,
    answers=("label",),
    short=short,
    horizons=True,
    # A rationale before the answer is read all the same.
    options=lambda options, texts: {"reasoning": False} if options.get("reasoning") == "auto" else {},
)
