"""The task contract: how a clip is asked about, what the answer should be, how text is read.

A task is scored in one of two ways. Tasks with ``choices`` (crash, multiple choice) are scored
from logits, a probability for each choice that a sample has. The others write text, and what is
scored is read from it.
"""

from __future__ import annotations

import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jinja2.sandbox
import pandas as pd

from dashvlm.config.imports import construct, resolve
from dashvlm.config.rules import Rule
from dashvlm.data.clip import Clip, Messages, Observation, Sample
from dashvlm.errors import ConfigError
from dashvlm.tasks.evaluation import Evaluation
from dashvlm.tasks.reading import Reading
from dashvlm.text.parsing import Status

# A character that no question or template contains: user text cannot fake an image.
IMAGE = "\x00"


class Task(ABC):
    """One kind of question about clips.

    Subclasses are final and set the class attributes.

    Attributes:
        name: the name in the configuration.
        evaluation: what is measured, and how it is shown.
        reading: how predictions stand in the files of other tools; None where ``score`` cannot read them.
        choices: all answers that can be scored against each other; empty for tasks that write text.
        answer_prefix: what an answer begins with before the choice; not empty where reasoning may come first.
        default_max_new_tokens: tokens that an answer may need (``objective.max_new_tokens``).
        rewards: reward -> weight, for objectives that draw completions; see :mod:`dashvlm.objectives.rewards`.
        rules: key of the configuration -> what the task allows there.
        labelled: what a teacher's label file gives its clips: rationales, annotations or nothing.
        over_time: whether it can be asked at any moment of a video, so that ``predict`` scores each.
        schema: JSON schema that ``objective.constrained`` keeps texts to.
    """

    name: str
    evaluation: Evaluation
    reading: Reading | None = None
    choices: tuple[str, ...] = ()
    answer_prefix: str = ""
    default_max_new_tokens: int = 8
    rewards: ClassVar[Mapping[str, float]] = {}
    rules: ClassVar[Mapping[str, Rule]] = {}
    labelled: ClassVar[Literal["rationale", "annotation"] | None] = None
    over_time: ClassVar[bool] = False
    schema: ClassVar[Mapping[str, Any] | None] = None
    own_template: str | None = None  # text of task.prompt_file

    def __init__(self, prompt: str, print_times: bool = True, question: str | None = None) -> None:
        self.prompt, self.print_times, self.question = prompt, print_times, question
        for name in self.templates():
            _template(self.prompts(), name)  # an unknown prompt is an error now, not at the first batch

    @classmethod
    def errors(cls, flat: Mapping[str, Any]) -> list[str]:
        """What a configuration (dotted keys) asks of the task that it cannot do."""
        return []

    # -- the prompt ----------------------------------------------------------------------------

    @classmethod
    def prompts(cls) -> Path:
        """Folder of the prompt templates: beside the file that defines the task."""
        return Path(inspect.getfile(cls)).parent / "prompts"

    def templates(self) -> tuple[str, ...]:
        """Names of the prompt templates that :meth:`template_of` may choose."""
        return (self.prompt,)

    def template_of(self, observation: Observation) -> str:
        """The prompt template for an observation."""
        return self.prompt

    def messages(self, observation: Observation) -> Messages:
        """Build the chat from what a model may know; the target is out of its reach.

        Args:
            observation: times of the frames, the clip's question and its choices.

        Returns:
            One user turn whose i-th image part stands for the i-th frame, oldest first.
        """
        newest = observation.frame_times_s[-1]
        own = self.own_template
        template = _compiled(own) if own is not None else _template(self.prompts(), self.template_of(observation))
        text = template.render(
            ages_s=[newest - t for t in observation.frame_times_s],
            print_times=self.print_times,
            question=(observation.question or self.question or self.default_question()).replace(IMAGE, ""),
            choices=[choice.replace(IMAGE, "") for choice in observation.choices],
            image=IMAGE,
        )
        if text.count(IMAGE) != len(observation.frame_times_s):
            raise ConfigError(
                f"{'task.prompt_file' if own is not None else f'task.prompt={self.prompt}'} shows {text.count(IMAGE)} "
                f"images for {len(observation.frame_times_s)} frames",
                do="print {{ image }} once for each of ages_s in the template",
            )
        content: list[dict[str, Any]] = []
        for number, part in enumerate(text.strip().split(IMAGE)):
            if number:
                # The age is for models that take the frames as one video and print the times themselves.
                content.append({"type": "image", "age_s": newest - observation.frame_times_s[number - 1]})
            if part:
                content.append({"type": "text", "text": part})
        return [{"role": "user", "content": content}]

    @abstractmethod
    def default_question(self) -> str:
        """The question for clips that bring none."""

    # -- choices -------------------------------------------------------------------------------

    def num_choices(self, observation: Observation) -> int:
        """How many of ``choices`` exist for an observation: the first so many."""
        return len(self.choices)

    def reorderings(self, observation: Observation) -> list[tuple[int, ...]]:
        """Other orders that the choices are to be shown in, to average over; empty for none.

        An order names for each place shown the original number of the choice shown there.
        """
        return []

    def option_texts(self, observation: Observation) -> tuple[str, ...] | None:
        """Texts to score as whole answers, one a choice; None scores the choices' first tokens at once."""
        return None

    # -- the answer ----------------------------------------------------------------------------

    @abstractmethod
    def target(self, sample: Sample) -> Any:
        """What the answer is compared with (the number of a choice, or a mapping); None if unknown."""

    @abstractmethod
    def answer(self, sample: Sample) -> str:
        """The text that training teaches, for a sample whose target is known."""

    def training_answer(self, sample: Sample, epoch: int) -> str:
        """The text taught in one pass over the data; a task may vary it from pass to pass."""
        return self.answer(sample)

    def variants(self, sample: Sample) -> list[str] | None:
        """The taught text with each choice in turn, where reasoning stands before the choice; else None."""
        return None

    def prefix_after_reasoning(self, text: str) -> str:
        """What comes before the choice, after the reasoning of a text that was written."""
        return self.answer_prefix

    def pair(self, sample: Sample) -> tuple[str, str] | None:
        """A better and a worse answer for preference training; None if there is none."""
        extra = sample.clip.extra
        return (str(extra["chosen"]), str(extra["rejected"])) if "chosen" in extra and "rejected" in extra else None

    def kind_of(self, sample: Sample) -> Any:
        """The part of the target that a probe for shortcuts tries to tell."""
        return self.target(sample)

    def partial_credit(self, value: Any, target: Any) -> float:
        """How right a parsed value is, between 0 and 1."""
        return float(value == target)

    def is_ambiguous(self, text: str) -> bool:
        """Whether a text gives several answers to one question, of which :meth:`parse` would take one."""
        return False

    @abstractmethod
    def parse(self, text: str | None, observation: Observation) -> tuple[Any, Status]:
        """Read a generated text: (a value like the target's or None, status). Never guesses."""

    def prepared(self, clips: Sequence[Clip]) -> Sequence[Clip]:
        """The clips of a dataset with what the task needs of other clips."""
        return clips

    # -- what a dataset and a run show ---------------------------------------------------------

    def problem(self, clip: Clip) -> str | None:
        """Why a labelled clip cannot be taught or compared, or None; such training clips are quarantined."""
        return None

    def columns(self, sample: Sample) -> dict[str, Any]:
        """More columns of the predictions table, for the evaluation."""
        return {}

    def baseline(self, train: Sequence[Sample], scored: Sequence[Sample]) -> dict[str, list[Any]]:
        """Columns with answers that need no pixels, learned from the training samples."""
        return {}

    def dataset_tables(self, clips: Sequence[Clip]) -> dict[str, list[dict[str, Any]]]:
        """Tables for the dataset card: title -> rows."""
        return {}

    def write(self, rows: pd.DataFrame, folder: Path) -> list[str]:
        """Write files of the task's own from a run's rows; return notes for the reader."""
        return []


def observe(sample: Sample, frame_times_s: Sequence[float]) -> Observation:
    """Reduce a sample to what a prompt may be built from."""
    extra: Mapping[str, Any] = sample.clip.extra
    return Observation(
        tuple(float(t) for t in frame_times_s),
        extra.get("question"),
        tuple(extra.get("choices", ())),
    )


def need_target(target: Any, sample: Sample) -> Any:
    """Return a target that training needs.

    Raises:
        ConfigError: if it is None.
    """
    if target is None:
        raise ConfigError(
            f"clip {sample.clip.clip_id} has no label and cannot be trained on",
            do="move it out of the training split",
        )
    return target


def task_class(cfg: Mapping[str, Any]) -> type[Task]:
    """The class of the task that a configuration names.

    Raises:
        ConfigError: if it names none.
    """
    found: type[Task] = resolve("task", cfg["task"]["_target_"])
    return found


def make_task(cfg: Mapping[str, Any]) -> Task:
    """Build the task of a configuration; ``reasoning: auto`` means with a label file."""
    options = {k: v for k, v in cfg["task"].items() if k not in ("_target_", "name", "prompt_file")}
    if options.get("reasoning") == "auto":
        options["reasoning"] = bool(cfg["data"].get("labels"))
    made: Task = construct("task", cfg["task"]["_target_"], **options)
    own = cfg["task"].get("prompt_file")
    if own:
        made.own_template = str(own["text"])
        do = "a Jinja template prints {{ image }} once for each of ages_s, and may use question, choices and " \
            "print_times; dashvlm/tasks/*/prompts has the ones that come with dashvlm"  # fmt: skip
        name = f"task.prompt_file={own.get('file')}"
        try:
            asked = made.question or "?"  # rows bring their own
            for ages in ([0.0], [2.0, 1.0, 0.0]):
                text = _compiled(made.own_template).render(
                    ages_s=ages, print_times=made.print_times, question=asked, choices=list(made.choices), image=IMAGE
                )
                if text.count(IMAGE) != len(ages):
                    raise ConfigError(f"{name} shows {text.count(IMAGE)} frames of {len(ages)}", do=do)
        except jinja2.TemplateError as error:
            raise ConfigError(f"{name} cannot be used", got=str(error), do=do) from error
    return made


@functools.cache
def _template(folder: Path, name: str) -> jinja2.Template:
    path = folder / f"{name}.j2"
    if not re.fullmatch(r"\w+", name) or not path.is_file():  # a name, no path
        known = sorted(p.stem for p in folder.glob("*.j2"))
        raise ConfigError("unknown task.prompt", got=name, do=f"use one of {', '.join(known)}")
    return _compiled(path.read_text(encoding="utf-8"))


@functools.cache
def _compiled(text: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=False, autoescape=False
    )
    return environment.from_string(text)
