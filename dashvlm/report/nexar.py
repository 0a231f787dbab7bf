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
from dashvlm.metrics.intervals import RESAMPLES, Estimate, group_weights, mean_estimate
from dashvlm.tasks.parsing import parse_yes_no

YES = re.compile(r"<answer>\s*Yes\s*</answer>")
ANY = re.compile(r"<answer>\s*(Yes|No)\s*</answer>", re.IGNORECASE)
PHRASES = ("immediate threat", "potential risk", "threat of collision")
COLUMNS = ("accuracy", "precision", "recall", "f1", "roc_auc")


@dataclass(frozen=True)
class Responses:
    """A file of published responses.

    Attributes:
        path: the file.
        target: labels.
        whole: texts with the prompt.
        written: what the model wrote, behind the last assistant turn.
        notes: what was odd about the file.
    """

    path: Path
    target: np.ndarray[Any, np.dtype[np.int_]]
    whole: list[str]
    written: list[str]
    notes: list[str]


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
    written = [re.split(r"assistant\s*\n", text)[-1] for text in whole]
    return Responses(path, digits[~bad].astype(int).to_numpy(), whole, written, notes)


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
    read = [parse_yes_no(text)[0] for text in found.written]
    parsed, yes = np.array([r is not None for r in read]), np.array([r == 1 for r in read])
    right = np.array([r == y for r, y in zip(read, found.target.tolist(), strict=True)])
    positive = found.target == 1
    asked = {  # number -> which answers it is a mean of, over which clips
        "accuracy": (right, np.ones_like(parsed)),
        "precision": (right, yes),
        "recall": (right & yes, positive),
        "parse_rate": (parsed, np.ones_like(parsed)),
        "accuracy_of_parsed": (right, parsed),
    }
    counts = {name: int(among.sum()) for name, (_, among) in asked.items()}
    values = {name: _mean(of[among]) for name, (of, among) in asked.items() if counts[name]}
    constant = {}
    for name in ("accuracy", "accuracy_of_parsed"):
        among = found.target[asked[name][1]]
        if len(among):
            constant[name] = _mean(among == int(among.mean() > 0.5))
    return values, constant, {name: n for name, n in counts.items() if n < len(read)}


def _mean(values: Any) -> Estimate:
    """A mean with its interval; a video a row, so a row is its own group."""
    groups = [str(i) for i in range(len(values))]
    return mean_estimate(np.asarray(values, dtype=np.float64), group_weights(groups, RESAMPLES, 0))


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
    unread = sum(parse_yes_no(text)[0] is None for text in found.written)
    said.append(
        f"no answer counted as No: {unread} of {total} answers hold none (generation stopped at 128 tokens, "
        "temperature 1.5); half of the clips are negative, which makes half of these right"
    )
    return said
