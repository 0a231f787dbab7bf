"""Which column of a file of predictions is what: as the user named it, or by usual names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dashvlm.errors import DataError
from dashvlm.predictions.truth import IDS
from dashvlm.tables.cells import are_shares, numbers_of
from dashvlm.tables.records import Records, common_key, text_of
from dashvlm.tasks.reading import Columns, Reading

TEXTS = ("prediction", "response", "text", "output", "generated_text", "generated", "completion", "model_output",
         "pred", "predicted", "risk")  # fmt: skip
SCORES = ("score", "scores", "probability", "probabilities", "prob", "probs", "proba", "p_yes", "pred_score", "y_score",
          "y_prob", "prob_1", "proba_1", "p1")  # fmt: skip
ANSWERS = ("predicted_label", "predicted", "pred", "y_pred", "extracted_label", "answer")
HORIZONS = ("horizon_s", "horizon")
FEW = 3


def find_columns(
    reading: Reading, records: Records, named: Mapping[str, Any], clips: Iterable[str] = (), own_truth: bool = False
) -> Columns:
    """Find the columns by what the user named, then by usual names.

    Args:
        reading: of the task.
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
    answers = ANSWERS if own_truth else (*ANSWERS, *reading.answers)
    answer = column("answer", answers, "the answer")
    if named.get("answer") is None and answer is not None and (answer == text or (text and answer.lower() == "answer")):
        answer = None  # beside what a model wrote, `answer` is what is right
    if answer is None and text is not None and named.get("text") is None:  # bare numbers, letters or labels are no text
        kind = reading.short([v for row in records.rows if (v := text_of(row.get(text))) is not None])
        if kind == "answer":
            text, answer = None, text
        elif kind == "score" and score is None:
            text, score = None, text
    letters = _letters(records, bool(text or answer)) if reading.letters else ()
    if reading.written:
        score = answer = None
        text = text or column("answer", answers, "the answer")
    if name is None:
        raise DataError(
            f"{records.path} has no column with the clip's name", got=", ".join(records.columns)[:300],
            do="name it with columns.id=NAME",
        )  # fmt: skip
    fields = sum(f in records.columns for f in reading.fields) >= FEW
    if not (text or score or answer or fields or letters):
        raise DataError(
            f"{records.path} has nothing to score", got=", ".join(records.columns)[:300],
            do="name the column with columns.text=NAME, columns.answer=NAME or columns.score=NAME",
        )  # fmt: skip
    horizon = column("horizon", HORIZONS, "seconds before the event") if reading.horizons else None
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
