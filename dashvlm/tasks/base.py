"""The task contract: how a clip is asked about, what the answer should be, how text is read."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from dashvlm.data.clip import Messages, Observation, Sample
from dashvlm.errors import ConfigError
from dashvlm.tasks.parsing import Status

PROMPTS = Path(__file__).parent / "prompts"
# A character that no question or template contains: user text cannot fake an image.
IMAGE = "\x00"


class Task(ABC):
    """One kind of question about clips.

    Subclasses are final and set ``name`` and ``choices``.

    Attributes:
        name: the name in the configuration.
        choices: the answers that are scored against each other.
    """

    name: str
    choices: tuple[str, ...]

    def __init__(self, prompt: str, print_times: bool = True, question: str | None = None) -> None:
        self.prompt, self.print_times, self.question = prompt, print_times, question
        _template(prompt)  # an unknown prompt is an error now, not at the first batch

    def messages(self, seen: Observation) -> Messages:
        """Build the chat from what a model may know; the target is out of its reach.

        Args:
            seen: times of the frames and the clip's question.

        Returns:
            One user turn whose i-th image part stands for the i-th frame, oldest first.
        """
        newest = seen.frame_times_s[-1]
        text = _template(self.prompt).render(
            ages_s=[newest - t for t in seen.frame_times_s],
            print_times=self.print_times,
            question=(seen.question or self.question or self.default_question()).replace(IMAGE, ""),
            choices=seen.choices,
            image=IMAGE,
        )
        if text.count(IMAGE) != len(seen.frame_times_s):
            raise ConfigError(
                f"task.prompt={self.prompt} shows {text.count(IMAGE)} images for {len(seen.frame_times_s)} frames",
                do="print {{ image }} once for each of ages_s in the template",
            )
        content: list[dict[str, Any]] = []
        for number, part in enumerate(text.strip().split(IMAGE)):
            if number:
                # The age is for models that take the frames as one video and print the times themselves.
                content.append({"type": "image", "age_s": newest - seen.frame_times_s[number - 1]})
            if part:
                content.append({"type": "text", "text": part})
        return [{"role": "user", "content": content}]

    @abstractmethod
    def default_question(self) -> str:
        """The question for clips that bring none."""

    @abstractmethod
    def target(self, sample: Sample) -> int | None:
        """The number of the right choice, or None if unknown."""

    @abstractmethod
    def parse(self, text: str | None) -> tuple[int | None, Status]:
        """Read a generated text: (number of the choice or None, status)."""

    def answer(self, sample: Sample) -> str:
        """The text that training teaches.

        Raises:
            ConfigError: if the clip has no label.
        """
        target = self.target(sample)
        if target is None:
            raise ConfigError(
                f"clip {sample.clip.clip_id} has no label and cannot be trained on",
                do="move it out of the training split",
            )
        return self.choices[target]


def observe(sample: Sample, frame_times_s: Sequence[float]) -> Observation:
    """Reduce a sample to what a prompt may be built from."""
    extra = sample.clip.extra
    return Observation(
        tuple(float(t) for t in frame_times_s),
        extra.get("question"),
        tuple(extra.get("choices", ())),
    )


@functools.cache
def _template(name: str) -> jinja2.Template:
    path = PROMPTS / f"{name}.j2"
    if not path.is_file():
        known = sorted(p.stem for p in PROMPTS.glob("*.j2"))
        raise ConfigError("unknown task.prompt", got=name, do=f"use one of {', '.join(known)}")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False, autoescape=False)
    return environment.from_string(path.read_text(encoding="utf-8"))
