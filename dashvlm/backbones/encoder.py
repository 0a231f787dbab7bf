"""The weightless half of a Hugging Face backbone: chats and frames to tensors, with proven answer masks.

Frames go in as images, in the place and order the chat says; the processor's own frame sampling,
image splitting and time printing are switched off by the model's YAML.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dashvlm.backbones.base import IGNORED, Batch, Encoder
from dashvlm.backbones.frame_encoder import PIXELS, FrameEncoder
from dashvlm.backbones.processors import load_processor
from dashvlm.backbones.shared_prefix import BY_TOKEN, common_prefix
from dashvlm.backbones.sheet import as_video, contact_sheet, number_frames
from dashvlm.data.clip import FrameArray, Messages
from dashvlm.data.encoded import EncodedFrames
from dashvlm.errors import CheckpointError, ConfigError


@final
class HFEncoder(Encoder):
    """Chat template, tokenizer and image processor of a checkpoint.

    Args:
        checkpoint: hub id or folder.
        image_kwargs: fixed arguments of the image processor (pixel budget, no splitting).
        frames: ``images``; ``contact_sheet`` for models made for one image; ``video`` for the
            Qwen and InternVL families, which then print the times and share tokens between frames.
        revision: branch, tag or commit of a hub id.

    Raises:
        ConfigError: if the family has no usable video input, or torchvision is missing.
    """

    def __init__(
        self, checkpoint: str, image_kwargs: Mapping[str, Any], frames: str = "images", revision: str | None = None
    ) -> None:
        self.checkpoint, self.frames, self.revision = checkpoint, frames, revision
        self.processor = load_processor(checkpoint, revision)
        self.tokenizer = self.processor.tokenizer
        self.end_token = int(self.tokenizer.eos_token_id)
        if frames == "video":
            self._check_video()
        self.image_kwargs = _resized_once(dict(image_kwargs), self.processor)
        self.frames_apart = frames == "images" and not type(self.processor).__name__.startswith("Mllama")
        self._suffixes: dict[str, tuple[list[int], int]] = {}
        self.apart = FrameEncoder(self.processor, self._show) if frames == "images" else None

    def __reduce__(self) -> tuple[type[HFEncoder], tuple[str, dict[str, Any], str, str | None]]:
        """Loader workers load their own; an image-only processor cannot be pickled."""
        return HFEncoder, (self.checkpoint, self.image_kwargs, self.frames, self.revision)

    def encode(
        self,
        chats: Sequence[Messages],
        frames: Sequence[FrameArray | EncodedFrames],
        answers: Sequence[str] | None = None,
        prefix: str = "",
    ) -> Batch:
        """See :meth:`Encoder.encode`; clips may all have been encoded before."""
        kept = [clip for clip in frames if isinstance(clip, EncodedFrames)]
        if kept:
            return self._encode_kept(chats, kept, answers, prefix)
        plain = [clip for clip in frames if not isinstance(clip, EncodedFrames)]
        pictures: dict[str, Any] = {"images": [[Image.fromarray(f) for f in clip] for clip in plain]}
        if self.frames == "video":
            shown = [as_video(chat) for chat in chats]
            chats = [chat for chat, _ in shown]
            pictures = {
                "videos": [np.ascontiguousarray(clip) for clip in plain],
                "video_metadata": [metadata for _, metadata in shown],
                "do_sample_frames": False,
                **self._video_budget(max(len(clip) for clip in plain)),
            }
        elif self.frames == "contact_sheet":
            chats = [number_frames(chat) for chat in chats]
            pictures = {"images": [[Image.fromarray(contact_sheet(clip)[0])] for clip in plain]}
        return self._process(chats, pictures, answers, prefix)

    def _encode_kept(
        self, chats: Sequence[Messages], clips: Sequence[EncodedFrames], answers: Sequence[str] | None, prefix: str
    ) -> Batch:
        """:meth:`encode` of clips that were encoded before."""
        assert self.apart is not None
        with self.apart.replaying(clips):
            batch = self._process(chats, {"images": self.apart.pictures(clips)}, answers, prefix)
        return {k: v for k, v in batch.items() if k not in PIXELS} | self.apart.tensors(clips)

    def encode_shared(
        self,
        chats: Sequence[Messages],
        clips: Sequence[FrameArray | EncodedFrames],
        clip_of: Sequence[int],
        answers: Sequence[str] | None = None,
        prefix: str = "",
    ) -> Batch:
        """Encode questions whose frames are encoded once; see ``shared_prefix``.

        Args:
            chats: one for each row.
            clips: the distinct ones.
            clip_of: whose question a row is.
            answers: see :meth:`Encoder.encode`.
            prefix: likewise.
        """
        assert self.apart is not None
        kept = [c if isinstance(c, EncodedFrames) else self.apart.encode(c) for c in clips]
        rows = [kept[i] for i in clip_of]
        with self.apart.replaying(rows):
            batch = self._process(chats, {"images": self.apart.pictures(rows)}, answers, prefix)
        known = self.apart.about(kept)  # grids of pictures: of each clip once
        batch = {k: v if k in BY_TOKEN else known[k] for k, v in batch.items() if k not in PIXELS}
        belongs = torch.tensor(clip_of)
        length = common_prefix(batch, belongs, len(kept))
        if not self._pictures_first(batch, length[belongs]):  # a template of the user's own may ask before it shows
            return self.encode(chats, rows, answers, prefix)
        return batch | self.apart.tensors(kept) | {"clip_of": belongs, "prefix": length}

    def _pictures_first(self, batch: Batch, length: Tensor) -> bool:
        """Whether all pictures of each row lie within so many of its first tokens, [B]."""
        image = getattr(self.processor, "image_token_id", None)
        if image is None:
            image = self.tokenizer.convert_tokens_to_ids(getattr(self.processor, "image_token", "<image>"))
        shown = batch["input_ids"] == image
        place = batch["attention_mask"].cumsum(1) - 1
        return bool(shown.any(1).all()) and not bool((shown & (place >= length[:, None])).any())

    def _show(self, frames: Sequence[FrameArray]) -> Batch:
        """Encode pictures with no more text than a chat needs."""
        return self.encode([[{"role": "user", "content": [*({"type": "image"} for _ in clip),
                                                          {"type": "text", "text": "?"}]}] for clip in frames],
                           frames)  # fmt: skip

    def _process(
        self, chats: Sequence[Messages], pictures: Mapping[str, Any], answers: Sequence[str] | None, prefix: str
    ) -> Batch:
        """Texts and pictures through the processor; the labels of answers."""
        if answers is None:
            texts = [self._render(chat, generation=True) + self._begun(prefix) for chat in chats]
        else:
            full = [[*c, _assistant(a)] for c, a in zip(chats, answers, strict=True)]
            texts = [self._render(chat, generation=False) for chat in full]
        batch: Batch = dict(
            self.processor(
                text=texts,
                return_tensors="pt",
                padding=True,
                **self._special_tokens(texts),
                padding_side="left" if answers is None else "right",
                **({"images_kwargs": self.image_kwargs} if "images" in pictures else {}),
                **pictures,
            )
        )
        if answers is not None:
            batch["labels"] = self._labels(batch["input_ids"], batch["attention_mask"], answers)
        return batch

    def _special_tokens(self, texts: Sequence[str]) -> dict[str, bool]:
        """Keep the tokenizer's post-processor from adding what the chat template has written.

        As transformers does itself: a template that writes the begin token must not get a second one. A token
        added at the end would stand behind the generation prompt, so that is never wanted.
        """
        added, plain = (list(self.tokenizer("a", add_special_tokens=s).input_ids) for s in (True, False))
        begin = self.tokenizer.bos_token
        twice = begin is not None and any(text.startswith(begin) for text in texts)
        ends = added != plain and added[-len(plain) :] != plain
        return {"add_special_tokens": False} if added != plain and (twice or ends) else {}

    def _video_budget(self, num_frames: int) -> dict[str, Any]:
        """The pixel budget of a frame, for the video processor; Qwen3-VL counts the whole clip's."""
        size = self.image_kwargs.get("size")
        if not size:
            return {}
        times = num_frames if type(self.processor).__name__.startswith("Qwen3") else 1
        return {"size": {edge: pixels * times for edge, pixels in size.items()}}

    def _check_video(self) -> None:
        name = type(self.processor).__name__
        if not name.startswith(("Qwen", "InternVL")):
            raise ConfigError(
                "model.loader_options.frames=video is not possible with this family",
                got=f"{name}: it prints whole seconds only, or has no video input",
                do="use frames=images",
            )
        if isinstance(self.processor.video_processor, types.SimpleNamespace):
            raise ConfigError(
                "model.loader_options.frames=video needs torchvision",
                do="pip install 'dashvlm[video]' (beside a CUDA build of torch), or use frames=images",
            )

    def first_divergence(self, answers: Sequence[str]) -> tuple[list[int], list[int]]:
        """See :meth:`Encoder.first_divergence`."""
        ids = [self._suffix(answer)[0] for answer in answers]
        same = next((i for i, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1), 0)
        after = [i[same] for i in ids]
        if len(set(after)) != len(after):
            raise ConfigError(
                "choices cannot be told apart by their first token",
                got=", ".join(f"{c!r} -> {self.tokenizer.decode([t])!r}" for c, t in zip(answers, after, strict=True)),
                do="use answers that begin differently, such as letters",
            )
        return ids[0][:same], after

    @property
    def leads_with_blank(self) -> bool:
        """Whether the template puts a blank between the prompt and an answer, so that ``{"`` follows one."""
        return self._begun("x").startswith(" ")

    def decode(self, ids: Tensor) -> list[str]:
        """See :meth:`Encoder.decode`."""
        return [t.strip() for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _render(self, chat: Messages, generation: bool) -> str:
        return str(self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation))

    def _begun(self, prefix: str) -> str:
        """What the template puts between the prompt and an answer's first words, and those words."""
        if not prefix:
            return ""
        chat: Messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        prompt = self._render(chat, generation=True)
        rest = self._render([*chat, _assistant(prefix)], generation=False)[len(prompt) :]
        return rest[: rest.index(prefix) + len(prefix)]

    def _suffix(self, answer: str) -> tuple[list[int], int]:
        """Token ids from the end of the prompt to the end token, inclusive; and how many the template writes in all."""
        if answer not in self._suffixes:
            chat: Messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
            prompt = self._render(chat, generation=True)
            full = self._render([*chat, _assistant(answer)], generation=False)
            if not full.startswith(prompt):
                raise CheckpointError(
                    "the chat template does not put the answer behind the generation prompt",
                    got=f"{prompt!r} / {full!r}",
                    do="set a chat template that does",
                )
            ids = self.tokenizer(full[len(prompt) :], add_special_tokens=False).input_ids
            end = self.tokenizer.eos_token_id
            # Templates write a newline after the end token; it is not part of the answer.
            if len(self._suffixes) >= 4096:  # long texts that vary from pass to pass would pile up
                self._suffixes.clear()
            self._suffixes[answer] = ids[: ids.index(end) + 1] if end in ids else ids, len(ids)
        return self._suffixes[answer]

    def _labels(self, ids: Tensor, mask: Tensor, answers: Sequence[str]) -> Tensor:
        labels = torch.full_like(ids, IGNORED)
        for row, answer in enumerate(answers):
            suffix, tail = self._suffix(answer)
            start = int(mask[row].sum()) - tail
            span = slice(start, start + len(suffix))
            if ids[row, span].tolist() != suffix:
                raise CheckpointError(
                    "the answer's tokens are not where the loss mask expects them",
                    got=f"{self.tokenizer.decode(ids[row, span])!r}, expected {answer!r}",
                    do="report this with the name of the checkpoint: its template merges tokens",
                )
            labels[row, span] = ids[row, span]
        return labels


def _resized_once(image_kwargs: dict[str, Any], processor: Any) -> dict[str, Any]:
    """SmolVLM's processor resizes to ``size``, then to the tower's square: go straight there where that is smaller."""
    square = (getattr(getattr(processor, "image_processor", None), "max_image_size", None) or {}).get("longest_edge")
    wanted = (image_kwargs.get("size") or {}).get("longest_edge")
    if square and wanted and wanted > square and not image_kwargs.get("do_image_splitting"):
        image_kwargs["size"] = {"height": square, "width": square}
    return image_kwargs


def _assistant(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}
