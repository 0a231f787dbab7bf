"""Cells of predictions as programs write them: numbers, lists, labels, answers in a text. Nothing is guessed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dashvlm.data.rows import parse_label
from dashvlm.tables.records import text_of

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_LABELS = {
    "positive": 1, "negative": 0, "crash": 1, "collision": 1, "normal": 0, "safe": 0, "no crash": 0, "no collision": 0,
}  # fmt: skip
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_ANSWER = re.compile(r"^\W*(?:the\s+)?(?:final\s+)?answer\b\s*(?:is\b|:|=)?\s*", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-H])\)?\s*\}?\s*\}")
SUM = 0.02
"""How far probabilities of the choices may be from 1 together."""


def numbers_of(value: Any) -> list[float] | None:
    """Read one number or several; None if a cell is anything else.

    Example:
        >>> numbers_of("0.5"), numbers_of("0,731"), numbers_of("73.1%"), numbers_of("tensor(0.7, device='cuda:0')")
        ([0.5], [0.731], [0.731], [0.7])
        >>> numbers_of("[0.2 0.8]"), numbers_of([[0.1, 0.9]]), numbers_of({"No": 0.2, "Yes": 0.8}), numbers_of("yes")
        ([0.2, 0.8], [0.1, 0.9], None, None)
    """
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, list | tuple):
        found = [numbers_of(v) for v in value]
        single = [f[0] for f in found if f is not None and len(f) == 1]
        return single if found and len(single) == len(found) else None
    if isinstance(value, bool | Mapping):
        return None
    text = text_of(value)
    if text is None:
        return None
    inner = re.fullmatch(r"tensor\((.*?)(?:,\s*(?:device|dtype|grad_fn|requires_grad)=.*)?\)", text, re.DOTALL)
    text = inner.group(1).strip() if inner else text
    if text[:1] in "[(" and text[-1:] in ")]":
        parts = re.split(r"[\s,;]+", text.strip("[]() "))
        return [float(p) for p in parts] if parts and all(_NUMBER.fullmatch(p) for p in parts) else None
    share = text.endswith("%")
    text = text.rstrip("% ")
    if re.fullmatch(r"[+-]?\d+,\d+", text):  # a spreadsheet's decimal comma
        text = text.replace(",", ".")
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return [number / 100 if share else number] if math.isfinite(number) else None


def chance_of_yes(value: Any) -> tuple[float | None, str | None]:
    """Read a score: a number, the pair of no and yes, or a mapping that names yes; (None, why) otherwise."""
    if isinstance(value, Mapping):
        named = {str(k).strip().lower(): v for k, v in value.items()}
        value = next((named[k] for k in ("yes", "1", "true", "positive", "crash", "collision") if k in named), None)
    found = numbers_of(value)
    if found is None or len(found) not in (1, 2):
        what = "is no number" if found is None else f"is a list of {len(found)} numbers; one, or no and yes, are wanted"
        return None, f"the score {str(value)[:40]!r} {what}"
    number = found[-1]
    return (min(max(number, 0.0), 1.0) if -1e-5 < number < 1 + 1e-5 else number), None  # float32 ends at 1.0000001


def label_of(value: Any) -> int | None:
    """Read a label in digits or words; None if it is none.

    Example:
        >>> label_of("POSITIVE"), label_of("no"), label_of("tensor([1])"), label_of("LABEL_0"), label_of("maybe")
        (1, 0, 1, 0, None)
    """
    text = (text_of(value) or "").lower()
    text = text.removeprefix("label_")
    if text.startswith("tensor("):
        found = numbers_of(text.replace("tensor([", "tensor(").replace("])", ")"))
        text = str(int(found[0])) if found and found[0] in (0, 1) else text
    label, wrong = parse_label(text)
    if wrong and re.fullmatch(r"[01]\.0+", text):
        label = int(float(text))
    return label if label is not None else _LABELS.get(text.replace("_", " "))


def said_in(text: str, plain: bool = False) -> str:
    r"""A written answer without the thoughts before it; with ``plain`` also without the word answer.

    Example:
        >>> said_in("<think>No car.</think> Yes"), said_in("Answer: Yes", plain=True), said_in(r"So \boxed{B}.")
        ('Yes', 'Yes', 'B')
    """
    rest = _THOUGHT.sub("", text).strip()
    boxed = _BOXED.findall(rest)
    if boxed and len(set(boxed)) == 1:
        return str(boxed[0])
    return _ANSWER.sub("", rest) if plain else rest


def choice_scores(value: Any) -> list[float] | None:
    """Read scores of the choices: a list, a printed list, or a mapping of letters; None if they are none."""
    if isinstance(value, Mapping):
        named = {str(k).strip().upper(): v for k, v in value.items()}
        value = [named[letter] for letter in "ABCDEFGH" if letter in named]
    found = numbers_of(value)
    return found if found is not None and len(found) > 1 else None


def are_shares(scores: Sequence[float]) -> bool:
    """Whether scores are probabilities of all choices together."""
    return all(0 <= s <= 1 for s in scores) and abs(sum(scores) - 1) <= SUM


def as_probabilities(scores: Sequence[float], count: int) -> list[float]:
    """Probabilities of ``count`` choices; of scores that are none, such as logits, the choice that they make."""
    if not are_shares(scores):
        best = max(range(len(scores)), key=lambda i: scores[i])
        scores = [float(i == best) for i in range(len(scores))]
    return [*scores, *[0.0] * (count - len(scores))]
