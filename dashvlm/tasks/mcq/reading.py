"""Letters and questions in the files of other tools."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dashvlm.data.clip import Clip, Observation
from dashvlm.data.formats import roadbuddy
from dashvlm.data.rows import Row
from dashvlm.data.textfiles import json_file
from dashvlm.tables.cells import as_probabilities, choice_scores, numbers_of, said_in
from dashvlm.tables.records import Record, text_of
from dashvlm.tasks.reading import Asked, Columns, Reading


def truth(row: Row, target: Any, record: Record) -> Row:
    """A question; its letters and number of choices as far as the table has them."""
    choices = record.get("choices")
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except ValueError:
            with contextlib.suppress(ValueError, SyntaxError):
                choices = ast.literal_eval(choices)  # a list as Python prints it
    if isinstance(choices, Mapping):
        choices = [f"{k}. {v}" for k, v in choices.items()]
    if isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices):
        texts, letters = roadbuddy.options_of(choices)
        row |= {"choices": texts, "question": text_of(record.get("question"))}
    else:
        texts, letters = [], []
        found = numbers_of(record.get("num_choices"))
        row["extra"] |= {"num_choices": int(found[0])} if found else {}
    said = text_of(target)
    if said is None:
        return row
    if {"sample_id", "num_choices"} <= set(record) and said.isdigit():  # a run's own table counts choices from 0
        answer = [int(said)]
    elif texts:
        answer = roadbuddy.choice_of(said, texts, letters)
    else:
        answer = [roadbuddy.LETTERS.index(said.strip("().: ").upper())] if _letter(said) else []
    if len(answer) != 1 or not 0 <= answer[0] < (len(texts) or roadbuddy.MAX_CHOICES):
        return {**row, "problem": f"the answer {said!r} is none of the choices"}
    return {**row, "extra": {**row["extra"], "answer": answer[0]}}


def _letter(text: str) -> bool:
    return re.fullmatch(r"[(\[]?[A-Da-d][.):\]]*", text) is not None


def prediction(
    task: Asked, given: Record, columns: Columns, text: str | None, clip: Clip, observation: Observation
) -> dict[str, Any]:
    """A probability for each letter, or an answer."""
    count = len(observation.choices) or int(clip.extra.get("num_choices") or 0)
    most = count or roadbuddy.MAX_CHOICES
    made: dict[str, Any] = {"text": text, "scores": None}
    value = given.get(columns.score) if columns.score else None
    if columns.letters:
        cells = [numbers_of(given.get(letter)) for letter in columns.letters]
        value = [c[0] for c in cells if c] if all(cells[: sum(map(bool, cells))]) else None
    scores = choice_scores(value)
    if scores is not None and len(scores) > max(most, roadbuddy.MAX_CHOICES):
        made["problem"], scores = f"{len(scores)} scores for {most} choices", None
    if scores is not None:
        made["scores"] = as_probabilities(scores[:most], most)
    said = text_of(given.get(columns.answer)) if columns.answer else None
    said = said if said is not None else text
    if said is not None:
        said = said_in(said)
        letters = clip.extra.get("letters") or list(roadbuddy.LETTERS[:most])
        bare = observation.choices or re.fullmatch(r"[(\[]?[A-Da-d][.):\]]*", said)
        exact = roadbuddy.choice_of(said, list(observation.choices), list(letters)) if bare else []
        if len(exact) == 1 and exact[0] < most:
            answer, status = exact[0], "parsed"
        else:
            answer, status = task.parse(said, Observation((0.0,), None, observation.choices or ("",) * most))
        made |= {"answer": answer, "status": status}
    if made["scores"] is None and made.get("answer") is not None:
        made["scores"] = [float(i == made["answer"]) for i in range(most)]
    if scores and said is None:
        made["status"] = None
    return made


def dataset(path: Path, options: Mapping[str, Any]) -> Iterable[Row] | None:
    """Questions of RoadBuddy's own files."""
    encoding = options.get("encoding")
    if path.suffix.lower() == ".json":
        content = json_file(path, encoding)
        items = content.get("data") if isinstance(content, Mapping) else content
        if isinstance(items, list) and items and isinstance(items[0], Mapping) and "choices" in items[0]:
            return roadbuddy.questions(path, path.parent, False, {"encoding": encoding})
    return None


def about(clip: Clip) -> dict[str, Any]:
    """How many choices a question has; 0 where that is not known."""
    return {"num_choices": len(clip.extra.get("choices") or ()) or int(clip.extra.get("num_choices") or 0)}


def short(cells: Sequence[str]) -> str | None:
    """Bare letters are answers."""
    return "answer" if all(re.fullmatch(r"[A-Ha-h]", c) for c in cells) else None


LETTERS_ELSEWHERE = Reading(
    targets=("answer", "target", "correct_answer", "correct", "ground_truth", "gt", "label"),
    truth=truth,
    prediction=prediction,
    dataset=dataset,
    about=about,
    short=short,
    letters=True,
)
