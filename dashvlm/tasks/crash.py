"""Crash anticipation: is a collision about to happen?

After frankafan/dashcam-collisions and yunzhong1105/crash-risk-detection-vlm.
"""

from __future__ import annotations

from typing import final

from dashvlm.data.clip import Observation, Sample
from dashvlm.tasks.base import Task, need_target
from dashvlm.tasks.parsing import Status, parse_yes_no

QUESTION = "Is a vehicle collision likely to happen within 1 to 2 seconds?"


@final
class CrashTask(Task):
    """Yes/no question about a clip; the score is P(Yes) against P(No)."""

    name = "crash"
    evaluation = "binary"
    choices = ("No", "Yes")  # the number of a choice is the label

    def default_question(self) -> str:
        """The question of the SmolVLM2 crash-risk classifier, without its answer key."""
        return QUESTION

    def target(self, sample: Sample) -> int | None:
        """The clip's label."""
        return sample.clip.label

    def answer(self, sample: Sample) -> str:
        """Yes or No."""
        return self.choices[need_target(self.target(sample), sample)]

    def parse(self, text: str | None, seen: Observation) -> tuple[int | None, Status]:
        """Read yes or no, strictly."""
        return parse_yes_no(text)
