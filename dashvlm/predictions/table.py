"""Records of predictions beside the truth: the table that a run of ours would have written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.data.clip import Clip, Observation, Sample
from dashvlm.data.formats import roadbuddy
from dashvlm.data.rows import parse_label
from dashvlm.errors import ConfigError, DataError
from dashvlm.metrics.captions import RULES, clean, rule_for
from dashvlm.predictions.records import Record, Records, common_key, text_of
from dashvlm.predictions.truth import IDS, Truth
from dashvlm.tasks.base import Task, observe
from dashvlm.tasks.scene_schema import FIELDS

TEXTS = ("prediction", "response", "text", "output", "generated_text", "generated", "completion", "model_output",
         "answer", "pred", "predicted")  # fmt: skip
SCORES = ("score", "scores", "probability", "prob", "p_yes", "pred_score", "y_score", "confidence")
ANSWERS = ("answer", "predicted_label", "predicted", "pred", "y_pred", "extracted_label")
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


def find_columns(task: str, records: Records, named: Mapping[str, Any]) -> Columns:
    """Find the columns by what the user named, then by usual names.

    Raises:
        DataError: if there is no id, or nothing to score.
    """

    def column(key: str, names: Sequence[str], what: str) -> str | None:
        return records.column(named.get(key), names, f"columns.{key}", what)

    name = column("id", IDS, "the clip's name")
    text, score = column("text", TEXTS, "what was written"), column("score", SCORES, "the score")
    answer = column("answer", ANSWERS, "the answer")
    if text is not None and named.get("text") is None and text == answer:
        text = None  # one column is one thing
    if answer is None and task in ("crash", "mcq") and text is not None and named.get("text") is None:
        bare = [text_of(row.get(text)) for row in records.rows]
        if all(v is None or re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?|[A-Da-d]|yes|no|true|false", v, re.I) for v in bare):
            numbers = {v for v in bare if v is not None}
            if task == "crash" and score is None and not all(parse_label(v)[1] is None for v in numbers):
                text, score = None, text  # a column of numbers between 0 and 1
            else:
                text, answer = None, text
    letters = tuple(c for c in ("A", "B", "C", "D") if c in records.columns)
    if task in ("scene", "caption"):
        score = answer = None
        text = text or column("answer", ANSWERS, "the answer")
    elif task == "mcq" and len(letters) < 2:
        letters = ()
    if name is None:
        raise DataError(
            f"{records.path} has no column with the clip's name", got=", ".join(records.columns)[:300],
            do="name it with columns.id=NAME",
        )  # fmt: skip
    fields = task == "scene" and sum(f in records.columns for f in FIELDS) >= FEW
    if not (text or score or answer or fields or (task == "mcq" and letters)):
        raise DataError(
            f"{records.path} has nothing to score for task={task}", got=", ".join(records.columns)[:300],
            do="name the column with columns.text=NAME, columns.answer=NAME or columns.score=NAME",
        )  # fmt: skip
    horizon = column("horizon", HORIZONS, "seconds before the event") if task == "crash" else None
    return Columns(name, text, score, answer, horizon, letters if task == "mcq" else ())


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
        The table for :func:`dashvlm.metrics.evaluate.evaluate`, and what was odd: clips without a prediction
        (they are failed rows), predictions without a clip, ids that occur twice.

    Raises:
        DataError: if no prediction is of a clip, or one clip has two different predictions.
    """
    names = [row[columns.id] for row in records.rows if text_of(row.get(columns.id))]
    key = common_key(names, [c.clip_id for c in truth.clips])
    found: dict[tuple[str, float], Record] = {}
    notes: list[str] = []
    twice: list[str] = []
    for row in records.rows:
        if not text_of(row.get(columns.id)):
            notes.append(f"a prediction without {columns.id} was left out")
            continue
        place = (key(row[columns.id]), _number(row.get(columns.horizon)) or 0.0 if columns.horizon else 0.0)
        if place in found:
            if found[place] != row:
                raise DataError(
                    f"{records.path} has two different predictions of {row[columns.id]}",
                    got=" | ".join(str(_given(r, columns))[:60] for r in (found[place], row)), do="keep one a clip",
                )  # fmt: skip
            twice.append(str(row[columns.id]))
        found.setdefault(place, row)
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
    return _ordered(_typed(task, table, truth)), notes


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Put ranks between 0 and 1 in the place of scores that are no probabilities, such as logits or per cent."""
    raw = table["score"]
    if not ((raw < 0) | (raw > 1)).any():
        return table
    # Strictly between 0 and 1, which stay the worst scores that a failed row gets.
    ranks = raw.rank(method="average") / (raw.notna().sum() + 1)
    return table.assign(raw_score=raw, score=ranks, score_is_rank=True)


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:FEW])) + (" ..." if len(names) > FEW else "")


def _given(row: Record, columns: Columns) -> Any:
    return next((row.get(c) for c in (columns.score, columns.answer, columns.text) if c), None)


def _number(value: Any) -> float | None:
    text = text_of(value)
    try:
        found = float(text) if text is not None else None
    except ValueError:
        return None
    return found if found is not None and np.isfinite(found) else None


def _row(task: Task, sample: Sample, given: Record | None, columns: Columns, rule: str) -> dict[str, Any]:
    """One row: what is known of the clip, and what was predicted."""
    clip, target = sample.clip, task.target(sample)
    row: dict[str, Any] = {
        "sample_id": sample.sample_id, "clip_id": clip.clip_id, "group": clip.group, "horizon_s": sample.horizon_s,
        "target": target, **task.columns(sample), "text": None, "answer": None, "status": "failed", "scores": None,
        "score": None, "latency_s": None, "problem": None,
    }  # fmt: skip
    if task.name == "crash":
        row |= {f"slice_{k}": str(v) for k, v in (clip.extra.get("slices") or {}).items()}
    elif task.name == "mcq":
        row["num_choices"] = len(clip.extra.get("choices") or ()) or int(clip.extra.get("num_choices") or 0)
    if given is None:
        return {**row, "problem": "no prediction"}
    text = text_of(given.get(columns.text)) if columns.text else None
    seen = observe(sample, (0.0,))
    read = {"crash": _crash, "mcq": _mcq}.get(task.name, _written)
    made = read(task, given, columns, clean(text, rule) if text else text, clip, seen)
    row |= made
    if row["status"] == "failed" and not row["problem"]:
        row["problem"] = "an empty prediction"
    return row


def _crash(
    task: Task, given: Record, columns: Columns, text: str | None, clip: Clip, seen: Observation
) -> dict[str, Any]:
    """A score, an answer, or both."""
    made: dict[str, Any] = {"text": text}
    if columns.score:
        score = given.get(columns.score)
        made["score"] = _number(score[-1] if isinstance(score, list) and score else score)
        made |= {"problem": f"the score {score!r} is no number"} if made["score"] is None else {"status": None}
    said = text_of(given.get(columns.answer)) if columns.answer else None
    label, wrong = parse_label(said)
    if label is not None and not wrong:
        made |= {"answer": label, "status": "parsed"}
    elif said is not None or text is not None:
        answer, status = task.parse(said if said is not None else text, seen)
        made |= {"answer": answer, "status": status}
    if columns.score and made["score"] is None:
        made["status"] = "failed"
    return made


def _mcq(
    task: Task, given: Record, columns: Columns, text: str | None, clip: Clip, seen: Observation
) -> dict[str, Any]:
    """A probability for each letter, or an answer."""
    count = len(seen.choices) or int(clip.extra.get("num_choices") or 0) or roadbuddy.MAX_CHOICES
    scores = given.get(columns.score) if columns.score else None
    if columns.letters:
        scores = [_number(given.get(letter)) for letter in columns.letters[:count]]
    scores = scores if isinstance(scores, list) and all(_number(s) is not None for s in scores) else None
    made: dict[str, Any] = {"text": text, "scores": None}
    if scores:
        made["scores"] = ([float(s) for s in scores] + [0.0] * count)[: max(count, len(scores))]
    said = text_of(given.get(columns.answer)) if columns.answer else None
    said = said if said is not None else text
    if said is not None:
        letters = clip.extra.get("letters") or list(roadbuddy.LETTERS[:count])
        bare = seen.choices or re.fullmatch(r"[(\[]?[A-Da-d][.):\]]*", said)
        exact = roadbuddy.choice_of(said, list(seen.choices), list(letters)) if bare else []
        if len(exact) == 1 and exact[0] < count:
            answer, status = exact[0], "parsed"
        else:
            answer, status = task.parse(said, Observation((0.0,), None, seen.choices or ("",) * count))
        made |= {"answer": answer, "status": status}
    if made["scores"] is None and made.get("answer") is not None:
        made["scores"] = [float(i == made["answer"]) for i in range(count)]
    if scores and said is None:
        made["status"] = None
    return made


def _written(
    task: Task, given: Record, columns: Columns, text: str | None, clip: Clip, seen: Observation
) -> dict[str, Any]:
    """A text, or the parameters of a scene as columns or an object."""
    value = given.get(columns.text) if columns.text else None
    if isinstance(value, Mapping | list):
        text = json.dumps(value, ensure_ascii=False)
    elif columns.text is None:
        text = json.dumps({f: given[f] for f in FIELDS if given.get(f) is not None}, ensure_ascii=False)
    answer, status = task.parse(text, seen)
    return {"text": text, "answer": answer, "status": status}


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
