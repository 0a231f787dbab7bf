"""Records of predictions beside the truth: the table that a run of ours would have written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dashvlm.data.clip import Sample
from dashvlm.errors import ConfigError, DataError
from dashvlm.metrics.captions import RULES, clean, rule_for
from dashvlm.predictions.truth import Truth
from dashvlm.tables.cells import numbers_of
from dashvlm.tables.records import Record, Records, common_key, text_of
from dashvlm.tasks.base import Task, observe
from dashvlm.tasks.reading import Columns

FEW = 3
"""Names that a message shows."""
CLASSES = 3
"""So few different whole numbers are classes, not scores."""
OF_YES = ("p_yes", "prob_1", "proba_1", "p1", "y_prob")
"""Columns whose name says which answer a score is of."""


def build_table(
    task: Task, records: Records, truth: Truth, columns: Columns, horizon_s: float | None = None, rule: str = "auto"
) -> tuple[pd.DataFrame, list[str]]:
    """Put each clip of the truth beside its prediction.

    Args:
        task: reads texts and targets.
        records: the predictions.
        truth: the clips that are scored.
        columns: of the predictions.
        horizon_s: the horizon of the primary rows, where the predictions have several; by default the smallest.
        rule: how texts are cleaned, see :func:`dashvlm.metrics.captions.clean`.

    Returns:
        The table for :func:`dashvlm.tasks.evaluation.evaluate`, and what was odd: clips without a prediction
        (they are failed rows), predictions without a clip, ids that occur twice.

    Raises:
        DataError: if no prediction is of a clip, or one clip has two different predictions.
    """
    names = [row[columns.id] for row in records.rows if text_of(row.get(columns.id))]
    key = common_key(names, [c.clip_id for c in truth.clips])
    found: dict[tuple[str, float], Record] = {}
    notes: list[str] = []
    twice: list[str] = []
    read = [c for what, c in columns.used().items() if what != "choices"] + list(columns.letters)
    nameless, several = 0, _at_several_horizons(records, columns)
    if columns.horizon and not several:
        notes.append("each clip is predicted at one horizon: all are scored together, without the challenge's mean")
    for row in records.rows:
        if not text_of(row.get(columns.id)):
            nameless += 1
            continue
        place = (key(row[columns.id]), _number(row.get(columns.horizon)) or 0.0 if columns.horizon and several else 0.0)
        if place in found:
            if any(found[place].get(c) != row.get(c) for c in read):
                raise DataError(
                    f"{records.path} has two different predictions of {row[columns.id]}",
                    got=" | ".join(str(_given(r, columns))[:60] for r in (found[place], row)), do="keep one a clip",
                )  # fmt: skip
            twice.append(str(row[columns.id]))
        found.setdefault(place, row)
    if nameless:
        notes.append(f"{nameless} predictions without {columns.id} were left out")
    known = {key(c.clip_id) for c in truth.clips}
    strange = sorted({name for name, _ in found} - known)
    if len(strange) == len({name for name, _ in found}):
        raise DataError(
            "no prediction is of a clip of the truth", got=f"predictions {', '.join(map(str, names[:FEW]))}; truth "
            f"{', '.join(c.clip_id for c in truth.clips[:FEW])}", do="name the ids' columns, or another file",
        )  # fmt: skip
    horizons = sorted({h for _, h in found})
    primary = horizons[0] if horizon_s is None else float(horizon_s)
    if primary not in horizons:
        shown = ", ".join(f"{h:g}" for h in horizons)
        raise DataError(f"no prediction has horizon_s={primary:g}", got=shown, do="name one of these")
    texts = [text_of(row.get(columns.text)) for row in found.values()] if columns.text else []
    rule = rule_for([t for t in texts if t]) if rule == "auto" else rule
    if rule not in RULES:
        raise ConfigError(f"clean={rule} is no cleaning rule", do=f"use auto or one of {', '.join(RULES)}")
    rows = []
    for horizon in horizons:
        for clip in truth.clips:
            sample = Sample(f"{clip.clip_id}@{horizon:g}", clip, horizon, 0.0, (0.0,), 0)
            rows.append({**_row(task, sample, found.get((key(clip.clip_id), horizon)), columns, rule),
                         "primary": horizon == primary})  # fmt: skip
    table = pd.DataFrame(rows)
    _refuse_unreadable(table, records)
    missing = table.loc[table["problem"] == "no prediction", "clip_id"].drop_duplicates().tolist()
    if missing:
        notes.append(f"{len(missing)} of {len(truth.clips)} clips have no prediction and count as failed: "
                     f"{_few(missing)}")  # fmt: skip
    if strange:
        notes.append(f"{len(strange)} predictions are of clips that the truth does not have: {_few(strange)}")
    if twice:
        notes.append(f"{len(twice)} predictions occur twice, word for word: {_few(twice)}")
    cleaned = sum(clean(t, rule) != t for t in texts if t)
    if cleaned:
        notes.append(f"{cleaned} of {len(texts)} texts were cleaned by the rule {rule!r} (clean=none keeps them)")
    return _ordered(_typed(task, _as_chance_of_yes(table, columns, notes), truth)), notes


def _refuse_unreadable(table: pd.DataFrame, records: Records) -> None:
    """A column of which nothing can be read is another column than it seems, not a model that is always wrong."""
    there = table[table["problem"] != "no prediction"]
    wrong = there[there["problem"].notna()]
    if len(there) and len(wrong) == len(there) and not there["answer"].notna().any():
        raise DataError(
            f"not one prediction of {records.path} can be read", got=str(wrong["problem"].iloc[0]),
            do="name the column with columns.score=NAME, columns.answer=NAME or columns.text=NAME; a score is a number",
        )  # fmt: skip


def _as_chance_of_yes(table: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """Turn scores that say how sure an answer is, whichever it is, into the probability of yes.

    They are such scores where all are between 0.5 and 1 and no threshold on them gives the answers.
    """
    if columns.score is None or columns.score.strip().lower() in OF_YES:
        return table
    both = table[table["score"].notna() & table["answer"].notna()]
    score, no = both["score"].astype(float), both["answer"] == 0
    no_threshold = no.any() and ((~no).sum() == 0 or score[no].max() > score[~no].min())
    if no_threshold and score.between(0.5, 1).all():
        flipped = both.index[no]
        table.loc[flipped, "score"] = 1.0 - table.loc[flipped, "score"].astype(float)
        notes.append(f"scores say how sure each answer is: those of the {len(flipped)} No answers were turned round")
    return table


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Put ranks between 0 and 1 in the place of scores that are no probabilities, such as logits or per cent."""
    raw = table["score"]
    if not ((raw < 0) | (raw > 1)).any():
        return table
    known = raw.dropna()
    if (known == known.round()).all() and known.nunique() <= CLASSES:
        raise DataError(
            "the scores are classes", got=", ".join(f"{v:g}" for v in sorted(set(known))),
            do="write 0 and 1, or yes and no, and name the column with columns.answer=NAME; a score is between 0 and 1",
        )  # fmt: skip
    # Strictly between 0 and 1, which stay the worst scores that a failed row gets.
    ranks = raw.rank(method="average") / (raw.notna().sum() + 1)
    return table.assign(raw_score=raw, score=ranks, score_is_rank=True)


def _at_several_horizons(records: Records, columns: Columns) -> bool:
    if columns.horizon is None:
        return False
    names = [str(row.get(columns.id)) for row in records.rows]
    return len(set(names)) < len(names) or len({_number(r.get(columns.horizon)) for r in records.rows}) == 1


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:FEW])) + (" ..." if len(names) > FEW else "")


def _given(row: Record, columns: Columns) -> Any:
    return next((row.get(c) for c in (columns.score, columns.answer, columns.text) if c), None)


def _number(value: Any) -> float | None:
    found = numbers_of(value)
    return found[0] if found is not None and len(found) == 1 else None


def _row(task: Task, sample: Sample, given: Record | None, columns: Columns, rule: str) -> dict[str, Any]:
    """One row: what is known of the clip, and what was predicted."""
    clip, target = sample.clip, task.target(sample)
    row: dict[str, Any] = {
        "sample_id": sample.sample_id, "clip_id": clip.clip_id, "group": clip.group, "horizon_s": sample.horizon_s,
        "target": target, **task.columns(sample), "text": None, "answer": None, "status": "failed", "scores": None,
        "score": None, "latency_s": None, "problem": None,
    }  # fmt: skip
    assert task.reading is not None
    row |= task.reading.about(clip)
    if given is None:
        return {**row, "problem": "no prediction"}
    text = text_of(given.get(columns.text)) if columns.text else None
    observation = observe(sample, (0.0,))
    made = task.reading.prediction(task, given, columns, clean(text, rule) if text else text, clip, observation)
    row |= made
    if row["status"] == "failed" and not row["problem"]:
        row["problem"] = "an empty prediction"
    return row


def _typed(task: Task, table: pd.DataFrame, truth: Truth) -> pd.DataFrame:
    """The types and columns that the evaluations expect."""

    def as_json(value: Any) -> str | None:
        return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, Mapping) else None

    whole = bool(task.choices)
    for name in ("target", "answer"):
        table[name] = table[name].astype("Int64") if whole else [as_json(v) for v in table[name]]
    table["score"] = table["score"].astype(float)
    train = [Sample(c.clip_id, c, 0.0, 0.0, (0.0,), 0) for c in truth.train]
    scored = [Sample(c.clip_id, c, 0.0, 0.0, (0.0,), 0) for c in truth.clips] * table["horizon_s"].nunique()
    if train:
        for name, values in task.baseline(train, scored).items():
            table[name] = pd.array(values, dtype="Int64") if whole else values
    return table
