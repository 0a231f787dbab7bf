"""Items to batches: the task asks, the encoder encodes. Runs in loader workers, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dashvlm.backbones.base import Encoder
from dashvlm.data.datamodule import Item
from dashvlm.errors import TrainingError
from dashvlm.tasks.base import Task, observe


@dataclass(frozen=True)
class Collate:
    """Makes a batch of items.

    Attributes:
        task: builds prompts and answers.
        encoder: turns them into tensors.
        training: an unreadable item is an error in training, a failed row in evaluation.
        with_answers: encode the answers' text too. Without it no target is within the encoder's reach.
    """

    task: Task
    encoder: Encoder
    training: bool
    with_answers: bool

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Encode.

        Returns:
            ``inputs`` for the backbone, ``labels`` [B] (-1 unknown), ``index`` [B], ``frame_times_s``
            and ``clip_ids``, all of the readable items; ``failed``: indices of the others.
        """
        good, chats, frames, times = [], [], [], []
        for item in items:
            if item.frames is None or item.frame_times_s is None:
                if self.training:
                    raise TrainingError(
                        f"training clip {item.sample.clip.clip_id} became unreadable",
                        got=str(item.problem),
                        do="restore the file and run the same command again: the run resumes",
                    )
                continue
            good.append(item)
            frames.append(item.frames)
            times.append(item.frame_times_s.tolist())
            chats.append(self.task.messages(observe(item.sample, times[-1])))
        answers = [self.task.answer(i.sample) for i in good] if self.with_answers else None
        targets = [self.task.target(i.sample) for i in good]
        return {
            "inputs": self.encoder.encode(chats, frames, answers) if good else {},
            "labels": torch.tensor([-1 if t is None else t for t in targets]),
            "index": torch.tensor([i.index for i in good], dtype=torch.long),
            "clip_ids": [i.sample.clip.clip_id for i in good],
            "frame_times_s": times,
            "failed": [i.index for i in items if i.frames is None],
        }
