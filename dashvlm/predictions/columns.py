"""Which column of a file of predictions is what: as the user named it, or by usual names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashvlm.errors import DataError
from dashvlm.predictions.cells import are_shares, label_of, numbers_of
from dashvlm.predictions.records import Records, common_key, text_of
from dashvlm.predictions.truth import IDS
from dashvlm.text.scene_schema import FIELDS

TEXTS = ("prediction", "response", "text", "output", "generated_text", "generated", "completion", "model_output",
         "pred", "predicted")  # fmt: skip
SCORES = ("score", "scores", "probability", "probabilities", "prob", "probs", "proba", "p_yes", "pred_score", "y_score",
          "y_prob", "prob_1", "proba_1", "p1")  # fmt: skip
ANSWERS = ("predicted_label", "predicted", "pred", "y_pred", "extracted_label", "answer")
HORIZONS = ("horizon_s", "horizon")
FEW = 3


@dataclass(frozen=True)
class Columns:
    """Which column of the predictions is what; None where there is none."""

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


def find_columns(
    task: str, records: Records, named: Mapping[str, Any], clips: Iterable[str] = (), own_truth: bool = False
) -> Columns:
    """Find the columns by what the user named, then by usual names.

    Args:
        task: ``crash``, ``mcq``, ``scene`` or ``caption``.
        records: the predictions.
        named: ``columns`` of the configuration.
        clips: names of the clips that are scored; among several columns of names the one that meets most is taken.
        own_truth: whether the file holds the right answers, too; ``label`` and ``caption`` are then theirs.

    Raises:
        DataError: if there is no id, or nothing to score.
    """

    def column(key: str, names: Sequence[str], what: str) -> str | None:
        return records.column(named.get(key), names, f"columns.{key}", what)

    name = column("id", IDS, "the clip's name")
    known = list(clips)
    if known and named.get("id") is None:
        name = _most_met(records, known) or name
    text, score = column("text", TEXTS, "what was written"), column("score", SCORES, "the score")
    answers = ANSWERS if own_truth or task != "crash" else (*ANSWERS, "label")
    answer = column("answer", answers, "the answer")
    if named.get("answer") is None and answer is not None and (answer == text or (text and answer.lower() == "answer")):
        answer = None  # beside what a model wrote, `answer` is what is right
    if answer is None and task in ("crash", "mcq") and text is not None and named.get("text") is None:
        text, answer, score = _short_texts(task, records, text, score)
    letters = _letters(records, bool(text or answer)) if task == "mcq" else ()
    if task in ("scene", "caption"):
        score = answer = None
        more = ANSWERS if own_truth else (*ANSWERS, "caption")
        text = text or column("answer", more, "the answer")
    if name is None:
        raise DataError(
            f"{records.path} has no column with the clip's name", got=", ".join(records.columns)[:300],
            do="name it with columns.id=NAME",
        )  # fmt: skip
    fields = task == "scene" and sum(f in records.columns for f in FIELDS) >= FEW
    if not (text or score or answer or fields or letters):
        raise DataError(
            f"{records.path} has nothing to score for task={task}", got=", ".join(records.columns)[:300],
            do="name the column with columns.text=NAME, columns.answer=NAME or columns.score=NAME",
        )  # fmt: skip
    horizon = column("horizon", HORIZONS, "seconds before the event") if task == "crash" else None
    return Columns(name, text, score, answer, horizon, letters)


def _most_met(records: Records, clips: Sequence[str]) -> str | None:
    there = {c.strip().lower(): c for c in reversed(records.columns)}
    best, most = None, 0
    for candidate in (there[n] for n in IDS if n in there):
        names = [row[candidate] for row in records.rows if text_of(row.get(candidate)) is not None]
        key = common_key(names, clips)
        met = len({key(n) for n in names} & {key(c) for c in clips})
        if met > most:
            best, most = candidate, met
    return best


def _short_texts(
    task: str, records: Records, text: str, score: str | None
) -> tuple[str | None, str | None, str | None]:
    """A column of bare numbers, letters or labels is no text: (text, answer, score)."""
    cells = [v for row in records.rows if (v := text_of(row.get(text))) is not None]
    if task == "mcq":
        return (None, text, score) if all(re.fullmatch(r"[A-Ha-h]", c) for c in cells) else (text, None, score)
    if all(label_of(c) is not None for c in cells):
        return None, text, score
    if score is None and all(numbers_of(c) is not None for c in cells):
        return None, None, text
    return text, None, score


def _letters(records: Records, answered: bool) -> tuple[str, ...]:
    """Columns with a probability for each letter. Options may stand in columns of the same names."""
    for form in ("{}", "prob_{}", "p_{}", "score_{}"):
        wanted = {form.format(x).lower(): x for x in "ABCD"}
        found = tuple(c for c in records.columns if c.strip().lower() in wanted)
        if len(found) < 2:
            continue
        rows = [[n[0] for c in found if (n := numbers_of(row.get(c)))] for row in records.rows]
        filled = [r for r in rows if r]
        if filled and (not answered or all(map(are_shares, filled))):
            return found
    return ()
