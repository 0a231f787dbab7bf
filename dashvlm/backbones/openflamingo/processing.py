"""Text with ``<image>`` and ``<|endofchunk|>``, and CLIP pixels, for OpenFlamingo."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import cached_file

from dashvlm.config.imports import configurable
from dashvlm.errors import DataError

IMAGE, END_OF_CHUNK = "<image>", "<|endofchunk|>"
MAX_IMAGES = 33  # 32 demonstrations and the question


@configurable("backbone")
class OpenFlamingoProcessor:
    """A tokenizer and an image processor with the calls that ``HFEncoder`` makes.

    Args:
        image_processor: CLIP's.
        tokenizer: with ``<image>`` and ``<|endofchunk|>``, which is its end token.
        chat_template: Jinja; the tokenizer's own if None.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        template = chat_template if chat_template is not None else tokenizer.chat_template
        if template is not None:
            # transformers renders with trim_blocks, which takes the line end behind a block away.
            tokenizer.chat_template = re.sub(r"%\}\n(?=\S)", "%}{{ '\\\\n' }}", template)

    def apply_chat_template(
        self, chat: Sequence[Mapping[str, Any]], tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """Render a chat; demonstrations are earlier user and assistant turns."""
        return str(
            self.tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=add_generation_prompt)
        )

    def __call__(
        self,
        text: Sequence[str],
        images: Sequence[Sequence[Any]],
        padding: bool = True,
        padding_side: str = "right",
        return_tensors: str = "pt",
        images_kwargs: Mapping[str, Any] | None = None,
        add_special_tokens: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Encode a batch.

        Returns:
            ``input_ids`` and ``attention_mask`` [B, L], ``pixel_values`` [B, T, 3, H, W]; samples with
            fewer images are filled with zeros that no token attends to.

        Raises:
            DataError: if a text has another number of ``<image>`` than there are images.
        """
        for sample, pictures in zip(text, images, strict=True):
            if sample.count(IMAGE) != len(pictures) or not pictures:
                raise DataError(
                    "OpenFlamingo needs one <image> in the text for each image",
                    got=f"{sample.count(IMAGE)} <image> for {len(pictures)} images",
                    do="write {{ image }} once a frame in the prompt",
                )
            if len(pictures) > MAX_IMAGES:
                raise DataError(
                    f"OpenFlamingo was trained with at most {MAX_IMAGES - 1} demonstrations",
                    got=f"{len(pictures)} images",
                    do="lower data.num_frames or the number of demonstrations",
                )
        tokens = self.tokenizer(
            list(text), padding=padding, padding_side=padding_side, return_tensors=return_tensors,
            add_special_tokens=add_special_tokens,
        )  # fmt: skip
        pixels = [
            self.image_processor(list(p), return_tensors="pt", **dict(images_kwargs or {}))["pixel_values"]
            for p in images
        ]
        most = max(len(p) for p in pixels)
        padded = [torch.cat([p, p.new_zeros(most - len(p), *p.shape[1:])]) for p in pixels]
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "pixel_values": torch.stack(padded),
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer, image processor and the name of this class."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        config = {"processor_class": type(self).__name__}
        (Path(folder) / "processor_config.json").write_text(json.dumps(config), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, checkpoint: str, revision: str | None = None) -> OpenFlamingoProcessor:
        """Load from a folder or hub id."""
        images = transformers.AutoImageProcessor.from_pretrained(
            checkpoint, trust_remote_code=False, revision=revision, backend="pil"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, revision=revision)
        path = cached_file(
            checkpoint, "chat_template.jinja", revision=revision, _raise_exceptions_for_missing_entries=False
        )
        return cls(images, tokenizer, Path(path).read_text(encoding="utf-8") if path else None)
