"""Items to batches: the task asks, the encoder encodes. Runs in loader workers, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from dashvlm.backbones.base import IGNORED, Encoder
from dashvlm.data.clip import FrameArray, Messages, Observation
from dashvlm.data.datamodule import Stage
from dashvlm.data.encoded import EncodedFrames, joined
from dashvlm.data.items import Item
from dashvlm.data.video import resize
from dashvlm.errors import ConfigError, TrainingError
from dashvlm.tasks.base import Task, observe

Supervision = Literal["answer", "pair", "prompt"]


@dataclass(frozen=True)
class Collate:
    """Makes a batch of items.

    Attributes:
        task: builds prompts and answers.
        encoder: turns them into tensors.
        stage: an unreadable item is an error in ``train``, a failed row elsewhere; ``pairs`` judges test pairs,
            ``pixels_off`` predicts from grey frames.
        taught: encode the answers' text too, or a pair of answers. With ``prompt`` no target is within the
            encoder's reach.
        prefix: words that written answers are made to begin with (``objective.prefix``).
        max_tokens: longest training sample (``objective.max_tokens``).
        truncate: cut the answers of longer ones instead of refusing them.
        share: questions that look at the same frames of a clip share them (``backbones/shared_prefix.py``).
    """

    task: Task
    encoder: Encoder
    stage: Stage
    supervision: Supervision
    prefix: str = ""
    max_tokens: int | None = None
    truncate: bool = False
    share: bool = False

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Encode.

        Returns:
            Of the readable items: ``inputs`` for the backbone, ``labels`` [B] (number of the right choice, -1
            where there is none), ``choice_mask`` [B, C] of the choices that exist, ``reordered`` (the same
            questions with their options in other orders), ``options`` (each option's text as an answer),
            ``index`` [B], ``observation``, ``frame_times_s`` and ``clip_ids``; and ``failed``: indices of the others.
            In training and validation ``targets``; where answers are reasoned, ``answer_at`` [B] and
            ``answer_tokens`` [B, C] say where and with which tokens the choices part. In training ``tokens`` [2]
            counts the taught tokens of reasoning and answer. A batch of pairs has 2 B inputs, better answers first.
        """
        good, observation = [], []
        frames: list[Any] = []
        for item in items:
            if not item.readable or item.frame_times_s is None:
                if self.stage == "train":
                    raise TrainingError(
                        f"training clip {item.sample.clip.clip_id} became unreadable",
                        got=str(item.problem),
                        do="restore the file and run the same command again: the run resumes",
                    )
                continue
            if self.supervision == "answer" and self.task.target(item.sample) is None:
                continue  # a validation loss needs a reference; training samples all have one
            if self.supervision == "pair" and self.task.pair(item.sample) is None:
                continue
            good.append(item)
            frames.append(_all_frames(item))
            observation.append(observe(item.sample, item.frame_times_s.tolist()))
        before = [self._demos(i) for i in good]
        chats = [[*b, *self.task.messages(s)] for b, s in zip(before, observation, strict=True)]
        prefix = self.prefix if self.stage in ("predict", "pixels_off") and not self.task.choices else ""
        targets = [self.task.target(i.sample) for i in good]
        batch: dict[str, Any] = {
            "inputs": self._inputs(good, chats, frames, prefix) if good else {},
            "labels": torch.tensor([t if isinstance(t, int) else -1 for t in targets]),
            "index": torch.tensor([i.index for i in good], dtype=torch.long),
            "clip_ids": [i.sample.clip.clip_id for i in good],
            "observation": observation,
            "frame_times_s": [list(s.frame_times_s) for s in observation],
            "failed": [i.index for i in items if not i.readable],
            "pixels_off": self.stage == "pixels_off",
        }
        if self.stage == "train" and self.max_tokens and good:
            batch["inputs"], batch["truncated"] = self._within(batch["inputs"], batch["clip_ids"])
        if self.stage in ("train", "val"):
            batch["targets"] = targets
        if self.supervision == "pair":
            return {**batch, "pairs": True}
        if self.supervision == "answer" and self.task.answer_prefix and good:
            batch |= self._where_choices_part(good)
        if self.supervision == "answer" and self.stage == "train" and good:
            length = (batch["inputs"]["labels"][:, 1:] != IGNORED).sum(1)
            before = batch.get("answer_at", torch.zeros_like(length)).clamp(max=length)
            batch["tokens"] = torch.stack([before.sum(), (length - before).sum()]).double()
        if self.task.choices and self.stage != "train":
            batch["choice_mask"] = torch.stack([self._mask(s) for s in observation]) if good else torch.ones(0, 0)
            clips = [_looks_at(i) for i in good]
            batch["reordered"] = self._reordered(observation, frames, before, clips)
            batch["options"] = self._options(observation, frames, before, clips)
        return batch

    def _encode(
        self,
        clips: Sequence[Any],
        chats: Sequence[Messages],
        frames: Sequence[Any],
        answers: Sequence[str] | None = None,
        prefix: str = "",
    ) -> dict[str, torch.Tensor]:
        """Encode rows; ``clips`` says which of them look at the same frames."""
        numbers = {key: number for number, key in enumerate(dict.fromkeys(clips))}
        if not self.share or len(numbers) == len(clips):
            return self.encoder.encode(chats, frames, answers, prefix)
        first = [frames[clips.index(key)] for key in numbers]
        encoder: Any = self.encoder
        shared: dict[str, torch.Tensor] = encoder.encode_shared(
            chats, first, [numbers[key] for key in clips], answers, prefix
        )
        return shared

    def _inputs(
        self, good: Sequence[Item], chats: Sequence[Messages], frames: Sequence[Any], prefix: str
    ) -> dict[str, torch.Tensor]:
        if self.supervision == "pair":
            pairs = [p for i in good if (p := self.task.pair(i.sample)) is not None]
            answers = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
            clips = [_looks_at(i) for i in good] * 2
            return self._encode(clips, [*chats, *chats], [*frames, *frames], answers)
        answered = [self._answer(i) for i in good] if self.supervision == "answer" else None
        return self._encode([_looks_at(i) for i in good], chats, frames, answered, prefix)

    def _within(
        self, inputs: dict[str, torch.Tensor], clips: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Training inputs within ``max_tokens``, and the clips whose answers were cut.

        Raises:
            TrainingError: for a sample that is too long, or whose frames and question alone are.
        """
        assert self.max_tokens is not None
        length, shape = inputs["attention_mask"].sum(1), inputs["input_ids"].shape
        longest = int(length.max())
        if longest <= self.max_tokens:
            return inputs, []
        clip = clips[int(length.argmax()) % len(clips)]
        if not self.truncate or self.task.answer_prefix:  # the answer is the end of a reasoned text
            raise TrainingError(
                f"clip {clip} has {longest} tokens, more than objective.max_tokens={self.max_tokens}",
                do=f"objective.max_tokens={longest} or null, fewer or smaller frames, or objective.too_long=truncate",
            )
        taught = (inputs["labels"][:, : self.max_tokens] != IGNORED).any(1)
        if not taught.all():
            clip = clips[int((~taught).nonzero()[0]) % len(clips)]
            raise TrainingError(
                f"the frames and the question of clip {clip} alone have more than objective.max_tokens="
                f"{self.max_tokens} tokens",
                do="raise it, or use fewer or smaller frames: those are never cut",
            )
        cut = {k: v[:, : self.max_tokens] if v.shape == shape else v for k, v in inputs.items()}
        longer = (length > self.max_tokens).nonzero().flatten().tolist()
        return cut, sorted({clips[i % len(clips)] for i in longer})

    def _where_choices_part(self, good: Sequence[Item]) -> dict[str, torch.Tensor]:
        parted = [self.encoder.first_divergence(self.task.variants(i.sample) or ()) for i in good]
        return {
            "answer_at": torch.tensor([len(shared) for shared, _ in parted]),
            "answer_tokens": torch.tensor([tokens for _, tokens in parted]),
        }

    def _answer(self, item: Item) -> str:
        if self.stage == "train":
            return self.task.training_answer(item.sample, item.epoch)
        return self.task.answer(item.sample)

    def _mask(self, observation: Observation) -> torch.Tensor:
        return torch.arange(len(self.task.choices)) < self.task.num_choices(observation)

    def _demos(self, item: Item) -> Messages:
        """The turns of the solved examples: question and answer each."""
        chat: Messages = []
        if item.demos and getattr(self.encoder, "frames", "images") != "images":
            raise ConfigError(
                "demonstrations need frames as separate images", got=f"frames={getattr(self.encoder, 'frames', None)}",
                do="set model.loader_options.frames=images, or data.shots.share=0 and data.shots.eval=0",
            )  # fmt: skip
        for demo, (_, times) in zip(item.sample.demos, item.demos, strict=True):
            chat += self.task.messages(observe(demo, times.tolist()))
            chat.append({"role": "assistant", "content": [{"type": "text", "text": self.task.answer(demo)}]})
        return chat

    def _reordered(
        self,
        observation: Sequence[Observation],
        frames: Sequence[Any],
        before: Sequence[Messages],
        clips: Sequence[Any],
    ) -> list[dict[str, Any]]:
        """Batches with one other order for each sample that has so many."""
        orders = [self.task.reorderings(s) for s in observation]
        views = []
        for turn in range(max((len(o) for o in orders), default=0)):
            rows = [i for i, o in enumerate(orders) if turn < len(o)]
            shown = [
                replace(observation[i], choices=tuple(observation[i].choices[j] for j in orders[i][turn])) for i in rows
            ]
            places = torch.arange(len(self.task.choices)).repeat(len(rows), 1)
            for line, i in enumerate(rows):
                places[line, : len(orders[i][turn])] = torch.tensor(orders[i][turn])
            views.append(
                {
                    "inputs": self._encode(
                        [clips[i] for i in rows],
                        [[*before[i], *self.task.messages(s)] for i, s in zip(rows, shown, strict=True)],
                        [frames[i] for i in rows],
                    ),
                    "rows": torch.tensor(rows),
                    "choice_mask": torch.stack([self._mask(s) for s in shown]),
                    "places": places,
                }
            )
        return views

    def _options(
        self,
        observation: Sequence[Observation],
        frames: Sequence[Any],
        before: Sequence[Messages],
        clips: Sequence[Any],
    ) -> list[dict[str, Any]]:
        """For each choice the samples that have it, with its text as the answer. Knows no target."""
        texts = [self.task.option_texts(s) for s in observation]
        batches = []
        for number in range(max((len(t) for t in texts if t), default=0)):
            rows = [i for i, t in enumerate(texts) if t and number < len(t)]
            chats = [[*before[i], *self.task.messages(observation[i])] for i in rows]
            answers = [t[number] for i in rows if (t := texts[i])]
            inputs = self._encode([clips[i] for i in rows], chats, [frames[i] for i in rows], answers)
            batches.append({"inputs": inputs, "rows": torch.tensor(rows), "number": number})
        return batches


def _looks_at(item: Item) -> Any:
    """What tells the frames of an item from those of others; one with examples shares with none."""
    if item.demos or item.augmented or item.frame_times_s is None:
        return item.index, item.epoch
    return item.sample.clip.path, tuple(item.frame_times_s.tolist())


def _all_frames(item: Item) -> FrameArray | EncodedFrames:
    """The frames of the examples and of the sample itself, in the order of the chat, at the sample's size."""
    if item.encoded is not None:
        return joined([*(f for f, _ in item.demos if isinstance(f, EncodedFrames)), item.encoded])
    assert item.frames is not None
    size = item.frames.shape[1], item.frames.shape[2]
    shown = [resize(f, size) for f, _ in item.demos if not isinstance(f, EncodedFrames)]
    return np.concatenate([*shown, item.frames]) if shown else item.frames
