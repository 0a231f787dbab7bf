"""Published Nexar responses, scored as their project did and as the models deserve.

``id,target,response,timestamp`` of frankafan/dashcam-collisions: the response repeats the prompt, the prompt
holds an assistant turn with GPT-4o's rationale of that very clip and an answer, and the score is a phrase that
the system prompt contains.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dashvlm.errors import DataError
from dashvlm.metrics import functional as F
from dashvlm.metrics.captions import clean
from dashvlm.metrics.intervals import Estimate
from dashvlm.reproductions.published import digest_of
from dashvlm.tables.records import same_name
from dashvlm.tasks.binary.answers import evaluate_answers
from dashvlm.text.parsing import parse_yes_no

YES = re.compile(r"<answer>\s*Yes\s*</answer>")
ANY = re.compile(r"<answer>\s*(Yes|No)\s*</answer>", re.IGNORECASE)
PHRASES = ("immediate threat", "potential risk", "threat of collision")
CORRECTED = ("accuracy", "precision", "recall", "parse_rate", "accuracy_of_parsed")
COLUMNS = ("accuracy", "precision", "recall", "f1", "roc_auc")


@dataclass(frozen=True)
class Responses:
    """A file of published responses.

    Attributes:
        path: the file.
        ids: of the clips.
        target: labels.
        whole: texts with the prompt.
        written: what the model wrote, behind the last assistant turn.
        notes: what was odd about the file.
        digest: of its ids and texts.
    """

    path: Path
    ids: list[str]
    target: np.ndarray[Any, np.dtype[np.int_]]
    whole: list[str]
    written: list[str]
    notes: list[str]
    digest: str


def read_responses(path: Path) -> Responses:
    """Read a file of responses.

    Raises:
        DataError: if it is missing or has other columns.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", do="name a CSV of id,target,response with predictions=FILE")
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is no CSV in UTF-8", got=str(error).splitlines()[0],
            do="a CSV of id,target,response is wanted; for a teacher's labels use inspect labels=FILE",
        ) from error  # fmt: skip
    lacking = {"id", "target", "response"} - set(table)
    if lacking:
        raise DataError(f"{path}: columns are missing: {', '.join(sorted(lacking))}", got=", ".join(map(str, table)))
    digits = table["target"].astype(str).str.extract(r"^(?:tensor\()?([01])(?:\.0*)?(?:,.*)?\)?$", expand=False)
    bad = digits.isna() | table["id"].duplicated()
    notes = (
        [f"{int(bad.sum())} rows without a target of 0 or 1, or with an id seen before, are left out"]
        if bad.any()
        else []
    )
    if table["target"].astype(str).str.startswith("tensor").any():
        notes.append("targets are printed tensors; the digit in them is the label")
    kept = table[~bad]
    if kept.empty:
        raise DataError(f"{path} has no usable row", got=f"{len(table)} rows")
    whole = kept["response"].fillna("").astype(str).tolist()
    written = [clean(text, "echo") for text in whole]
    digest = digest_of({same_name(i): text for i, text in zip(kept["id"], whole, strict=True)})
    return Responses(
        path, kept["id"].astype(str).tolist(), digits[~bad].astype(int).to_numpy(), whole, written, notes, digest
    )


def published_scores(found: Responses) -> dict[str, float]:
    """The project's own numbers: a tag anywhere in prompt and answer, a phrase anywhere as the score."""
    said = np.array([float(bool(YES.search(text))) for text in found.whole])
    score = np.array([float(any(p in text.lower() for p in PHRASES)) for text in found.whole])
    truth, ones = found.target.astype(np.float64), np.ones(len(said))
    out = {name: float(F.METRICS[name](truth, said, ones)) for name in COLUMNS[:4]}
    if not said.any():
        out["precision"] = 0.0
    return out | {"roc_auc": float(F.roc_auc(truth, score, ones))}


def corrected_scores(found: Responses) -> tuple[dict[str, Estimate], dict[str, Estimate], dict[str, int]]:
    """What the model wrote, parsed strictly; a text without an answer is wrong, not a no. No score, so no AUC.

    Returns:
        The numbers, what one answer for every clip would reach (always the commoner one), and how many clips a
        number rests on where these are not all.
    """
    read = [parse_yes_no(text) for text in found.written]
    table = pd.DataFrame(
        {
            "group": found.ids,  # a video a row
            "primary": True,
            "target": pd.array(found.target, "Int64"),
            "answer": pd.array([answer for answer, _ in read], "Int64"),
            "status": [status for _, status in read],
        }
    )
    made = evaluate_answers(table)
    values = {name: Estimate(**v) for name, v in made["metrics"].items() if name in CORRECTED}
    constant = {n.removeprefix("majority_"): Estimate(**v) for n, v in made["baselines"].items()}
    return values, constant, {n: k for n, k in made["numbers"].items() if n in CORRECTED}


def reasons(found: Responses) -> list[str]:
    """Why the published numbers do not measure the model, each counted in the file."""
    total, said = len(found.whole), []
    prompts = [w[: len(w) - len(x)] for w, x in zip(found.whole, found.written, strict=True)]
    echoed = sum(bool(p.strip()) for p in prompts)
    if echoed:
        said.append(
            f"echoed prompt: {echoed} of {total} responses begin with the prompt, and the whole text was scored"
        )
    planted = [ANY.findall(p) for p in prompts]
    given = Counter(tags[-1].capitalize() for tags in planted if tags)
    if given:
        shown = ", ".join(f"{word} {count}" for word, count in given.most_common())
        said.append(
            f"answer in the prompt: {sum(given.values())} of {total} prompts hold a finished assistant turn with a "
            f"rationale written for that very clip and an answer ({shown}); the rationale's writer was told the label"
        )
    constant = sum(any(phrase in p.lower() for phrase in PHRASES) for p in prompts)
    if constant:
        said.append(
            f"constant score: the phrases that make the score of the ROC AUC stand in {constant} of {total} prompts, "
            "so the score is 1 whatever the model writes and the AUC is 0.5"
        )
    unread = [parse_yes_no(text)[0] is None for text in found.written]
    if any(unread):
        lucky = sum(u and y == 0 for u, y in zip(unread, found.target.tolist(), strict=True))
        said.append(
            f"no answer counted as No: {sum(unread)} of {total} answers hold none, which makes the {lucky} of them "
            "right whose clip is negative"
        )
    return said
