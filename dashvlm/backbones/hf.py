"""Any Hugging Face image-text-to-text model, described by a YAML file in ``conf/model``.

Frames go in as images, in the place and order the chat says; the processor's own frame sampling,
image splitting and time printing are switched off by the YAML.
"""

from __future__ import annotations

import logging
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import numpy as np
import peft
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from dashvlm.backbones.base import IGNORED, Backbone, Batch, Encoder
from dashvlm.backbones.constrained import keep_to_schema
from dashvlm.backbones.processors import load_processor
from dashvlm.backbones.sheet import as_video, contact_sheet, number_frames
from dashvlm.data.clip import FrameArray, Messages
from dashvlm.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)


@final
class HFEncoder(Encoder):
    """Chat template, tokenizer and image processor of a checkpoint.

    Args:
        checkpoint: hub id or folder.
        image_kwargs: fixed arguments of the image processor (pixel budget, no splitting).
        frames: ``images``; ``contact_sheet`` for models made for one image; ``video`` for the
            Qwen and InternVL families, which then print the times and share tokens between frames.

    Raises:
        ConfigError: if the family has no usable video input, or torchvision is missing.
    """

    def __init__(self, checkpoint: str, image_kwargs: Mapping[str, Any], frames: str = "images") -> None:
        self.checkpoint, self.processor, self.frames = checkpoint, load_processor(checkpoint), frames
        self.tokenizer = self.processor.tokenizer
        if frames == "video":
            self._check_video()
        self.image_kwargs = dict(image_kwargs)
        self._suffixes: dict[str, list[int]] = {}

    def __reduce__(self) -> tuple[type[HFEncoder], tuple[str, dict[str, Any], str]]:
        """Loader workers load their own; an image-only processor cannot be pickled."""
        return HFEncoder, (self.checkpoint, self.image_kwargs, self.frames)

    def encode(
        self,
        chats: Sequence[Messages],
        frames: Sequence[FrameArray],
        answers: Sequence[str] | None = None,
        prefix: str = "",
    ) -> Batch:
        """See :meth:`Encoder.encode`."""
        pictures: dict[str, Any] = {"images": [[Image.fromarray(f) for f in clip] for clip in frames]}
        if self.frames == "video":
            shown = [as_video(chat) for chat in chats]
            chats = [chat for chat, _ in shown]
            pictures = {
                "videos": [np.ascontiguousarray(clip) for clip in frames],
                "video_metadata": [metadata for _, metadata in shown],
                "do_sample_frames": False,
                **self._video_budget(max(len(clip) for clip in frames)),
            }
        elif self.frames == "contact_sheet":
            chats = [number_frames(chat) for chat in chats]
            pictures = {"images": [[Image.fromarray(contact_sheet(clip)[0])] for clip in frames]}
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
                padding_side="left" if answers is None else "right",
                **({"images_kwargs": self.image_kwargs} if "images" in pictures else {}),
                **pictures,
            )
        )
        if answers is not None:
            batch["labels"] = self._labels(batch["input_ids"], batch["attention_mask"], answers)
        return batch

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

    def choice_tokens(self, choices: Sequence[str]) -> list[int]:
        """See :meth:`Encoder.choice_tokens`."""
        first = [self._suffix(choice)[0] for choice in choices]
        if len(set(first)) != len(first):
            raise ConfigError(
                "choices cannot be told apart by their first token",
                got=", ".join(f"{c!r} -> {self.tokenizer.decode([t])!r}" for c, t in zip(choices, first, strict=True)),
                do="use answers that begin differently, such as letters",
            )
        return first

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

    def _suffix(self, answer: str) -> list[int]:
        """Token ids from the end of the prompt to the end token, inclusive."""
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
            self._suffixes[answer] = ids[: ids.index(end) + 1] if end in ids else ids
            self._suffixes[answer + "\x00tail"] = ids
        return self._suffixes[answer]

    def _labels(self, ids: Tensor, mask: Tensor, answers: Sequence[str]) -> Tensor:
        labels = torch.full_like(ids, IGNORED)
        for row, answer in enumerate(answers):
            suffix = self._suffix(answer)
            tail = len(self._suffixes[answer + "\x00tail"])
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


@final
class HFBackbone(Backbone):
    """A Hugging Face ``*ForConditionalGeneration`` network and its encoder.

    Args:
        net: the network.
        encoder: its encoder.
        roles: role -> regular expression of module names.
    """

    def __init__(self, net: nn.Module, encoder: HFEncoder, roles: Mapping[str, str]) -> None:
        super().__init__()
        self.net, self.encoder, self._roles = net, encoder, dict(roles)
        self.hidden_size = int(self.base().config.get_text_config().hidden_size)

    @property
    def roles(self) -> Mapping[str, str]:
        """See :attr:`Backbone.roles`."""
        return self._roles

    def base(self) -> Any:
        """The network without the PEFT wrapper (adapters stay injected)."""
        return self.net.get_base_model() if isinstance(self.net, peft.PeftModel) else self.net

    def loss(self, batch: Batch) -> Tensor:
        """See :meth:`Backbone.loss`. The vocabulary is projected at answer positions only."""
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        hidden = self.base().model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        labels = batch["labels"][:, 1:]
        kept = labels != IGNORED
        logits = self.base().get_output_embeddings()(hidden[kept])
        return nn.functional.cross_entropy(logits.float(), labels[kept])

    def score(self, batch: Batch, choices: Sequence[str]) -> Tensor:
        """See :meth:`Backbone.score`. One forward pass whatever the number of choices."""
        hidden = self.base().model(**batch, use_cache=False).last_hidden_state[:, -1]
        ids, head = self.encoder.choice_tokens(choices), self.base().get_output_embeddings()
        if type(head) is not nn.Linear:  # it carries an adapter
            return head(hidden).float()[:, ids].log_softmax(-1)
        # In fp32 whatever the network runs in: 16-bit logits take few values, and ties distort rankings.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = hidden.float() @ head.weight[ids].float().T
            if head.bias is not None:
                logits = logits + head.bias[ids].float()
        return logits.log_softmax(-1)

    def answer_logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See :meth:`Backbone.answer_logprobs`. The vocabulary is projected at answer positions only."""
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        hidden = self.base().model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        labels = batch["labels"][:, 1:]
        kept = labels != IGNORED
        logits = self.base().get_output_embeddings()(hidden[kept]).float()
        chosen = logits.log_softmax(-1).gather(1, labels[kept][:, None]).squeeze(1)
        lengths = kept.sum(1)
        mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        return chosen.new_zeros(mask.shape).masked_scatter(mask, chosen), mask

    def pooled(self, batch: Batch, how: Literal["last", "mean"] | nn.Module) -> Tensor:
        """See :meth:`Backbone.pooled`."""
        hidden = self.base().model(**batch, use_cache=False).last_hidden_state
        mask = batch["attention_mask"]
        if how == "last":
            # The position of the last real token, whatever the padding side.
            last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        if how == "mean":
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weight).sum(1) / weight.sum(1)
        return how(hidden, mask)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        max_new_tokens: int,
        options: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """See :meth:`Backbone.generate`."""
        kwargs: dict[str, Any] = {"do_sample": False, **(options or {})}
        if schema is not None:
            assert isinstance(self.encoder, HFEncoder)
            width = int(self.base().get_output_embeddings().weight.shape[0])
            kwargs["num_beams"] = 1  # the grammar follows one text a sample
            kwargs["logits_processor"] = [keep_to_schema(schema, self.encoder.tokenizer, width)]
        ids = self.base().generate(**batch, max_new_tokens=max_new_tokens, **kwargs)
        return self.encoder.decode(ids[:, batch["input_ids"].shape[1] :])


def load(
    checkpoint: str,
    image_kwargs: Mapping[str, Any],
    roles: Mapping[str, str],
    dtype: str = "auto",
    quantization: str | None = None,
    attn_implementation: str | None = None,
    unquantized: Sequence[str] = ("lm_head",),
    frames: str = "images",
) -> HFBackbone:
    """Load a checkpoint by hub id or folder, without running any of its code.

    Args:
        checkpoint: hub id or folder with safetensors weights.
        image_kwargs: see :class:`HFEncoder`.
        roles: see :class:`HFBackbone`.
        dtype: ``auto`` (the checkpoint's), ``float32``, ``bfloat16`` or ``float16``.
        quantization: ``nf4`` for 4-bit weights with double quantisation, or None.
        attn_implementation: passed on; None lets transformers choose.
        unquantized: patterns of module names that stay unquantised.
        frames: see :class:`HFEncoder`.

    Raises:
        CheckpointError: if the checkpoint is missing, gated, or not of a supported kind.
    """
    kwargs: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if attn_implementation:
        kwargs["attn_implementation"] = attn_implementation
    if quantization == "nf4":
        kwargs |= {"quantization_config": _nf4(unquantized), "dtype": torch.bfloat16}
    try:
        net = transformers.AutoModelForImageTextToText.from_pretrained(
            checkpoint, use_safetensors=True, trust_remote_code=False, **kwargs
        )
        encoder = HFEncoder(checkpoint, image_kwargs, frames)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"model.checkpoint={checkpoint} cannot be loaded",
            got=str(error).strip().splitlines()[0],
            do="check the name and your network or HF_TOKEN, give a local folder, or use "
            "model.checkpoint=tiny, which needs no download",
        ) from error
    names = [n for n, _ in net.named_modules()]
    absent = [role for role, pattern in roles.items() if not any(re.search(pattern, n) for n in names)]
    if absent:
        raise CheckpointError(
            f"model.checkpoint={checkpoint} belongs to another family",
            got=f"{type(net).__name__}, which has no {', '.join(absent)} as model.roles describes it",
            do="choose the model= group that fits the checkpoint",
        )
    if quantization == "nf4":
        _guard_cpu_4bit(net)
    return HFBackbone(net, encoder, roles)


def _nf4(unquantized: Sequence[str]) -> Any:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(unquantized),
    )


def _guard_cpu_4bit(net: nn.Module) -> None:
    """Keep 4-bit layers trainable on CPUs with AVX512-BF16.

    bitsandbytes repacks such layers at the first evaluation into a layout without autograd:
    training then loses gradients, some of them silently.
    """
    import bitsandbytes

    for module in net.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _assistant(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}
