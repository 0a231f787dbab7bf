"""Crash anticipation: is a collision about to happen?

After frankafan/dashcam-collisions and yunzhong1105/crash-risk-detection-vlm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import pandas as pd

from dashvlm.config.imports import configurable
from dashvlm.data.clip import SPLITS, Clip, Observation, Sample
from dashvlm.safety.plaintext import cells
from dashvlm.tasks.base import Task, need_target
from dashvlm.tasks.binary import SCORES
from dashvlm.tasks.binary.reading import YES_NO
from dashvlm.text.parsing import Status, parse_yes_no
from dashvlm.text.reasoning import ANSWER_PREFIX, prefix_after_reasoning, wrap

FALLBACK = 0.5
"""Score in a submission of a clip that could not be scored."""
QUESTION = "Is a vehicle collision likely to happen within 1 to 2 seconds?"
STREAM_QUESTION = "Is a vehicle collision likely to happen within the next {:g} seconds?"


@final
@configurable("task")
class CrashTask(Task):
    """Yes/no question about a clip; the score is P(Yes) against P(No).

    Args:
        prompt: template; with ``reasoning``, ``crash_yes_no`` becomes ``crash_reasoning``.
        print_times: print the frames' ages.
        question: ``published``, ``window`` (says the window that is taught and scored) or a text; None is the published
            wording for single anchors and the window for streams.
        reasoning: ask for, and teach, a rationale before the answer; ``data.labels`` brings the rationales.
        stream: whether test clips are scored over their whole length too.
        anchors: ``event`` asks with the published wording, ``stream`` with the window that is taught.
        window_s: length of that window, in seconds.
    """

    name = "crash"
    evaluation = SCORES
    reading = YES_NO
    choices = ("No", "Yes")  # the number of a choice is the label
    rewards: ClassVar = {"correctness": 2.0}
    rules: ClassVar = {"task.reasoning": (lambda v: isinstance(v, bool) or v == "auto", "one of auto, true, false")}
    labelled = "rationale"
    over_time = True

    def __init__(
        self,
        prompt: str,
        print_times: bool = True,
        question: str | None = None,
        reasoning: bool = False,
        stream: bool = False,
        anchors: str = "event",
        window_s: float = 2.0,
    ) -> None:
        self.reasoning, self.stream, self.anchors, self.window_s = reasoning, stream, anchors, window_s
        self.answer_prefix = ANSWER_PREFIX if reasoning else ""
        self.default_max_new_tokens = 256 if reasoning else 8
        asked = self._wording(question) if question in ("published", "window") else question
        super().__init__("crash_reasoning" if reasoning and prompt == "crash_yes_no" else prompt, print_times, asked)

    @classmethod
    def errors(cls, flat: Mapping[str, Any]) -> list[str]:
        """Reasoning needs rationales to teach, and an objective that writes."""
        if flat.get("task.reasoning") is not True:
            return []
        objective = flat.get("objective.name")
        taught = not flat.get("trainer.skip_fit") and flat.get("peft.method") != "frozen"
        labelled = flat.get("data.labels") or flat.get("data.name") == "synthetic"
        if objective == "sft" and taught and not labelled:
            return ["task.reasoning=true: sft needs rationales to teach; set data.labels=FILE"]
        if objective == "pooled":
            return ["task.reasoning=true: objective=pooled writes no text; use objective=sft or grpo"]
        return []

    def default_question(self) -> str:
        """The question of the SmolVLM2 crash-risk classifier, without its answer key; of a stream, its window."""
        return self._wording("published" if self.anchors == "event" else "window")

    def _wording(self, name: str) -> str:
        return QUESTION if name == "published" else STREAM_QUESTION.format(self.window_s)

    def target(self, sample: Sample) -> int | None:
        """The clip's label."""
        return sample.clip.label

    def answer(self, sample: Sample) -> str:
        """Yes or No as the dataset says, never as a teacher does; with ``reasoning`` behind the rationale."""
        word = self.choices[need_target(self.target(sample), sample)]
        return wrap(self._rationale(sample), word) if self.reasoning else word

    def variants(self, sample: Sample) -> list[str] | None:
        """The taught text with each of the choices in turn."""
        return [wrap(self._rationale(sample), word) for word in self.choices] if self.reasoning else None

    def prefix_after_reasoning(self, text: str) -> str:
        """What comes before the answer, after the reasoning of a text."""
        return prefix_after_reasoning(text)

    def parse(self, text: str | None, observation: Observation) -> tuple[int | None, Status]:
        """Read yes or no, strictly."""
        return parse_yes_no(text)

    def problem(self, clip: Clip) -> str | None:
        """A training clip without a usable rationale cannot be taught to reason."""
        if self.reasoning and clip.label is not None and not clip.extra.get("rationale"):
            return str(clip.extra.get("rationale_problem") or "data.labels has no rationale for it")
        return None

    def columns(self, sample: Sample) -> dict[str, Any]:
        """The name that a submission gives a clip, where the dataset has one."""
        name = sample.clip.extra.get("submission_id")
        return {} if name is None else {"submission_id": str(name)}

    def write(self, rows: pd.DataFrame, folder: Path) -> list[str]:
        """Write ``submission.csv`` (``id,score``) for clips of a challenge's test set, fallbacks counted."""
        if "submission_id" not in rows:
            return []
        asked = rows[rows["primary"] & rows["submission_id"].notna()]
        missing = asked["score"].isna()
        table = pd.DataFrame({"id": asked["submission_id"], "score": asked["score"].fillna(FALLBACK)})
        cells(table).to_csv(folder / "submission.csv", index=False)
        if not missing.any():
            return []
        names = ", ".join(asked.loc[missing, "clip_id"].astype(str).head(3))
        return [f"submission.csv: {int(missing.sum())} of {len(asked)} rows had no score and say {FALLBACK}: {names}"]

    def dataset_tables(self, clips: Sequence[Clip]) -> dict[str, list[dict[str, Any]]]:
        """Rationales a split, where there are any."""
        if not any("rationale" in c.extra or "rationale_problem" in c.extra for c in clips):
            return {}
        rows = []
        for split in SPLITS:
            mine = [c for c in clips if c.split == split]
            why = Counter(str(c.extra["rationale_problem"]) for c in mine if "rationale_problem" in c.extra)
            rows.append(
                {"split": split, "clips": len(mine), "rationales": sum("rationale" in c.extra for c in mine),
                 "problems": ", ".join(f"{n} {w}" for w, n in why.most_common()) or "none"}
            )  # fmt: skip
        return {"rationales (data.labels)": rows}

    def _rationale(self, sample: Sample) -> str:
        return str(sample.clip.extra.get("rationale") or "")
