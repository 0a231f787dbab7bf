"""Batches of anchors that share frames: each frame is encoded once, and prompts that are equal once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dashvlm.backbones.base import Backbone, Encoder
from dashvlm.backbones.frame_encoder import PIXELS
from dashvlm.data.clip import FrameArray, Messages
from dashvlm.data.stretches import Stretch
from dashvlm.tasks.base import Task, observe
from dashvlm.training.collate import Collate

PICTURES = 32
"""Frames that the vision half encodes at a time."""


class CollateStretch:
    """Encodes a stretch.

    Args:
        task: builds the prompts.
        encoder: turns prompts and frames into tensors.
    """

    def __init__(self, task: Task, encoder: Encoder) -> None:
        self.task, self.encoder = task, encoder
        self.plain = Collate(task, encoder, "predict", "prompt")
        self._prompts: dict[Any, dict[str, torch.Tensor]] = {}

    def __call__(self, stretches: Sequence[Stretch]) -> dict[str, Any]:
        """Encode one stretch.

        Returns:
            ``parts``: batches as :class:`Collate` makes them. Where frames are pictures of their own these have
            ``picks`` [B, T] and one prompt as ``inputs``, and beside them are ``frames``: encoded pictures.
        """
        (stretch,) = stretches
        if stretch.frames is None or not self.encoder.frames_apart:
            items = stretch.items()
            plain = [self.plain(items[i : i + stretch.size]) for i in range(0, len(items), stretch.size)]
            return {"parts": [{**part, "picks": None} for part in plain]}
        frames, groups = stretch.frames, dict[str, list[int]]()
        picks = {i: mine for i, mine in enumerate(stretch.picks) if mine is not None}
        seen = {i: observe(stretch.samples[i], stretch.frame_times_s[mine].tolist()) for i, mine in picks.items()}
        chats = {i: self.task.messages(o) for i, o in seen.items()}
        for number, chat in chats.items():
            groups.setdefault(_text(chat), []).append(number)
        failed = [stretch.first + i for i in range(len(stretch.samples)) if i not in picks]
        parts: list[dict[str, Any]] = [{"failed": failed, "index": torch.zeros(0), "picks": None}] if failed else []
        for text, members in groups.items():
            first = members[0]
            prompt = self._prompt(text, chats[first], frames[picks[first]])
            for start in range(0, len(members), stretch.size):
                mine = members[start : start + stretch.size]
                parts.append(
                    {
                        "inputs": prompt, "picks": torch.from_numpy(np.stack([picks[i] for i in mine])),
                        "index": torch.tensor([stretch.first + i for i in mine]),
                        "labels": torch.full((len(mine),), -1),
                        "clip_ids": [stretch.samples[0].clip.clip_id] * len(mine),
                        "observation": [seen[i] for i in mine],
                        "frame_times_s": [list(seen[i].frame_times_s) for i in mine],
                        "choice_mask": torch.ones(len(mine), len(self.task.choices), dtype=torch.bool),
                        "failed": [], "pixels_off": False, "reordered": [], "options": [],
                    }
                )  # fmt: skip
        return {"parts": parts, "frames": [self._pictures(frames[i : i + PICTURES])
                                           for i in range(0, len(frames), PICTURES)]}  # fmt: skip

    def _prompt(self, text: str, chat: Messages, frames: FrameArray) -> dict[str, torch.Tensor]:
        """The encoded prompt of a text; the pictures' size decides how many places they take."""
        key = text, frames.shape
        if key not in self._prompts:
            if len(self._prompts) > 1000:
                self._prompts.clear()
            inputs = self.encoder.encode([chat], [frames])
            self._prompts[key] = {k: v for k, v in inputs.items() if k not in PIXELS}
        return self._prompts[key]

    def _pictures(self, frames: FrameArray) -> dict[str, Any]:
        content: list[dict[str, Any]] = [*({"type": "image"} for _ in frames), {"type": "text", "text": "?"}]
        inputs = self.encoder.encode([[{"role": "user", "content": content}]], [frames])
        kept = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        return {**kept, "num_frames": len(frames)}


def batches(backbone: Backbone, stretch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The batches of a stretch as :meth:`VLMModule.predict_step` takes them."""
    features = backbone.encode_frames(stretch["frames"]) if "frames" in stretch else None
    for part in stretch["parts"]:
        if features is None or part["picks"] is None:
            yield part
        else:
            yield {**part, "inputs": backbone.with_features(part["inputs"], features, part["picks"])}


def _text(chat: Messages) -> str:
    return "".join(part.get("text", "\x00") for turn in chat for part in turn["content"])
