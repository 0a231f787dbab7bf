"""How predictions and right answers of a task stand in the files of other tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dashvlm.data.clip import Clip, Observation
from dashvlm.data.rows import Row
from dashvlm.tables.records import Record


class Asked(Protocol):
    """A task, as far as texts of others are read by it."""

    @property
    def reading(self) -> Reading | None:
        """Where its predictions stand."""

    def parse(self, text: str | None, observation: Observation) -> tuple[Any, Any]:
        """See :meth:`dashvlm.tasks.base.Task.parse`."""


@dataclass(frozen=True)
class Columns:
    """Which column of a file of predictions is what; None where there is none."""

    id: str
    text: str | None
    score: str | None
    answer: str | None
    horizon: str | None
    letters: tuple[str, ...] = ()

    def used(self) -> dict[str, str]:
        """What each column that is read holds."""
        named = {"id": self.id, "text": self.text, "score": self.score, "answer": self.answer,
                 "horizon": self.horizon}  # fmt: skip
        found = {what: name for what, name in named.items() if name is not None}
        return found | ({"choices": ", ".join(self.letters)} if self.letters else {})


@dataclass(frozen=True)
class Reading:
    """What a task's predictions and truths look like elsewhere.

    Attributes:
        targets: usual names of the column with what is right.
        truth: row so far, cell and record -> the row with what is right.
        prediction: task, record, columns, cleaned text, clip and observation -> columns of the predictions table.
        dataset: file and options -> rows of a dataset's own file, or None if it is another table.
        about: clip -> further columns.
        answers: usual names of the column with answers, beside the general ones, where the truth is in another file.
        short: cells of a column of texts -> ``answer`` or ``score`` if these are no texts.
        letters: whether columns may hold a probability for each letter.
        written: whether only texts count.
        fields: columns that are an answer together.
        horizons: whether a clip may be predicted several times.
        options: options of the task and texts -> options that the texts decide.
    """

    targets: tuple[str, ...]
    truth: Callable[[Row, Any, Record], Row]
    prediction: Callable[[Asked, Record, Columns, str | None, Clip, Observation], dict[str, Any]]
    dataset: Callable[[Path, Mapping[str, Any]], Iterable[Row] | None] = lambda path, options: None
    about: Callable[[Clip], dict[str, Any]] = lambda clip: {}
    answers: tuple[str, ...] = ()
    short: Callable[[Sequence[str]], str | None] = lambda cells: None
    letters: bool = False
    written: bool = False
    fields: tuple[str, ...] = ()
    horizons: bool = False
    options: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]] = lambda options, texts: {}


def written_prediction(
    task: Asked, given: Record, columns: Columns, text: str | None, clip: Clip, observation: Observation
) -> dict[str, Any]:
    """A text, or an object or columns that are written as JSON and read as a text is."""
    fields = task.reading.fields if task.reading else ()
    value = given.get(columns.text) if columns.text else None
    if isinstance(value, list) and len(value) == 1:
        value, text = value[0], str(value[0])
    if isinstance(value, Mapping):  # {"driving_parameters": {...}} has them one level down
        inner = [v for v in value.values() if isinstance(v, Mapping)]
        value = inner[0] if len(inner) == 1 and not set(value) & set(fields) else value
    if isinstance(value, Mapping | list):
        text = json.dumps(value, ensure_ascii=False)
    elif columns.text is None:
        text = json.dumps({f: given[f] for f in fields if given.get(f) is not None}, ensure_ascii=False)
    answer, status = task.parse(text, observation)
    return {"text": text, "answer": answer, "status": status}
