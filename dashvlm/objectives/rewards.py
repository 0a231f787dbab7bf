"""Rewards of completions: small pure functions between 0 and 1, and their weights by task.

After frankafan/dashcam-collisions, whose rewards were all zero on yes/no questions: case was not
normalised and the patterns did not cross lines. Here no empty, hedged or decorated completion earns
more than an honest wrong answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dashvlm.data.clip import Observation
from dashvlm.errors import ConfigError
from dashvlm.tasks.base import Task
from dashvlm.text.reasoning import TAGS, split


@dataclass(frozen=True)
class Completion:
    """A text, what a task reads in it, and what is right.

    Attributes:
        text: as written.
        value: what was parsed, or None.
        parsed: whether it is an answer at all.
        credit: how right it is, between 0 and 1 (:meth:`Task.partial_credit`); 0 for a text that hedges.
        strict: whether structured parts are valid as written.
    """

    text: str
    value: Any
    parsed: bool
    partial_credit: float
    strict: bool = False


def read(task: Task, text: str, observation: Observation, target: Any) -> Completion:
    """Let a task read a completion."""
    if task.answer_prefix:  # only what stands in the one pair of answer tags is an answer
        inner = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        single = len(inner) == 1 and text.count("<answer>") == 1 and text.count("</answer>") == 1
        value, status = task.parse(inner[0].strip(), observation) if single else (None, "unparsed")
    else:
        value, status = task.parse(text, observation)
    parsed = status == "parsed" and not task.is_ambiguous(text)
    strict = isinstance(value, Mapping) and bool(value.get("strict")) and parsed
    return Completion(text, value, parsed, task.partial_credit(value, target) if parsed else 0.0, strict)


def correctness(made: Completion) -> float:
    """How right the answer is."""
    return made.partial_credit


def strict_format(made: Completion) -> float:
    """Tags, once each, on lines of their own, around reasoning and an answer that can be read."""
    return float(made.parsed and _argued(split(made.text.strip(), strict=True)))


def soft_format(made: Completion) -> float:
    """The same with any white space between the tags."""
    return float(made.parsed and _argued(split(made.text)))


def _argued(parts: tuple[str, str] | None) -> bool:
    """Whether there is reasoning of at least three words."""
    return parts is not None and len(re.findall(r"\w+", parts[0])) >= 3


def xml_count(made: Completion) -> float:
    """A quarter for each tag that stands there once; text behind the last tag costs 0.002 a character.

    A pair of tags around nothing counts as absent, so that tags alone are not worth writing.
    """
    text, total = made.text, 0.0
    for opening, closing in (TAGS[:2], TAGS[2:]):
        inner = re.search(f"{re.escape(opening)}(.*?){re.escape(closing)}", text, re.DOTALL)
        if inner is None or inner.group(1).strip():
            total += 0.25 * (text.count(opening) == 1) + 0.25 * (text.count(closing) == 1)
    behind = text.rsplit(TAGS[3], 1)[1].strip() if TAGS[3] in text else ""
    return max(0.0, total - 0.002 * len(behind))


def integer(made: Completion) -> float:
    """The answer is a whole number; for tasks whose answers are numbers, off for all tasks here."""
    parts = split(made.text)
    return float(parts is not None and parts[1].isdigit())


def letter(made: Completion) -> float:
    """The right letter of a multiple-choice question."""
    return made.partial_credit


def schema(made: Completion) -> float:
    """The JSON is valid as written, with every parameter in its vocabulary."""
    return float(made.strict)


def fields(made: Completion) -> float:
    """Share of the parameters, or mandatory positions, that are right."""
    return made.partial_credit


REWARDS: dict[str, Callable[[Completion], float]] = {
    f.__name__: f
    for f in (correctness, strict_format, soft_format, xml_count, integer, letter, schema, fields)
}  # fmt: skip

FORM = {"strict_format": 0.5, "soft_format": 0.5, "xml_count": 0.5, "integer": 0.0}
"""Weights that are added where an answer is to be reasoned."""


def weights_of(task: Task, changed: Mapping[str, float]) -> dict[str, float]:
    """The weights of a task's rewards.

    Raises:
        ConfigError: if ``objective.rewards`` names a reward that does not exist, or nothing is rewarded.
    """
    unknown = sorted(set(changed) - set(REWARDS))
    found = {**task.rewards, **(FORM if task.answer_prefix else {}), **{k: float(v) for k, v in changed.items()}}
    if unknown or not any(found.values()):
        raise ConfigError(
            "objective.rewards", got=", ".join(unknown) or "no weight above 0", do=f"use of {', '.join(REWARDS)}"
        )
    return found


def grade(made: Completion, weights: Mapping[str, float]) -> dict[str, float]:
    """Each reward times its weight; what has no weight is left out."""
    return {name: weight * REWARDS[name](made) for name, weight in weights.items() if weight}


def in_form(task: Task, made: Completion) -> bool:
    """Whether a completion has the form the task asks for: tags where it reasons, an answer elsewhere."""
    return bool(soft_format(made)) if task.answer_prefix else made.parsed
