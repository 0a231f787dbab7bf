"""Video and image encoders of transformers, as rivals of VLMs on the same frames; they read no text.

Frames are resized whole to the network's square: the edges of a road scene matter, and the centre crop of these
checkpoints' own processors would cut them off. VideoMAE and V-JEPA 2 see pairs of frames; of an odd number the oldest
is shown twice. VideoMAE's fixed positions are those of the first so many frames.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import peft
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from dashvlm.backbones.base import Answers, Backbone, Batch, Encoder
from dashvlm.config.imports import configurable
from dashvlm.data.clip import FrameArray, Messages
from dashvlm.errors import CheckpointError, ConfigError

VIDEO = ("videomae", "vjepa2")
"""Families that look at frames together; any other is asked frame by frame."""
SETTINGS = ("video_preprocessor_config.json", "preprocessor_config.json")
TEXTLESS = "use objective=pooled, which puts a classifier on what the encoder makes of the frames"


@final
class VisionEncoder(Encoder):
    """Frames to normalised pixels.

    Args:
        checkpoint: hub id or folder, whose processor settings have ``image_mean`` and ``image_std``.
        side: of the network's square input, in pixels.
        paired: whether the network looks at pairs of frames.
        revision: branch, tag or commit of a hub id.
    """

    end_token = -1

    def __init__(self, checkpoint: str, side: int, paired: bool, revision: str | None = None) -> None:
        self.checkpoint, self.side, self.paired, self.revision = checkpoint, side, paired, revision
        self.frames_apart = not paired
        self.settings = settings_of(checkpoint, revision)
        self.mean, self.std = (np.array(self.settings[k], np.float32) for k in ("image_mean", "image_std"))

    def encode(
        self,
        chats: Sequence[Messages],
        frames: Sequence[FrameArray],
        answers: Sequence[str] | None = None,
        prefix: str = "",
    ) -> Batch:
        """``pixel_values`` [B, T, 3, S, S]; ``input_ids`` and ``attention_mask`` [B, 1] stand for the text.

        Raises:
            ConfigError: if answers are to be taught.
        """
        if answers is not None:
            raise _textless()
        rows = []
        for clip in frames:
            shown = [
                np.asarray(Image.fromarray(f).resize((self.side, self.side), Image.Resampling.BILINEAR)) for f in clip
            ]
            pixels = (np.stack(shown).astype(np.float32) / 255 - self.mean) / self.std
            pixels = pixels[[0, *range(len(pixels))]] if self.paired and len(pixels) % 2 else pixels
            rows.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
        ones = torch.ones(len(rows), 1, dtype=torch.long)
        return {"pixel_values": torch.stack(rows), "input_ids": torch.zeros_like(ones), "attention_mask": ones}

    def first_divergence(self, answers: Sequence[str]) -> tuple[list[int], list[int]]:
        """See :meth:`Encoder.first_divergence`."""
        raise _textless()

    def decode(self, ids: Tensor) -> list[str]:
        """See :meth:`Encoder.decode`."""
        raise _textless()


@final
class VisionBackbone(Backbone):
    """A network that turns frames into tokens; only :meth:`pooled` is there.

    Args:
        net: of transformers.
        encoder: makes its pixels.
        roles: role -> regular expression of module names.
    """

    auto_class = "AutoModel"

    def __init__(self, net: nn.Module, encoder: VisionEncoder, roles: Mapping[str, str]) -> None:
        super().__init__()
        self.net, self.encoder, self._roles = net, encoder, dict(roles)
        self.paired = encoder.paired
        config: Any = net.config
        self.hidden_size = int(config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1])

    @property
    def roles(self) -> Mapping[str, str]:
        """See :attr:`Backbone.roles`."""
        return self._roles

    def train(self, mode: bool = True) -> VisionBackbone:
        """Training mode but for batch statistics: they are no parameters, and checkpoints hold what is trained."""
        super().train(mode)
        for part in self.net.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    def base(self) -> Any:
        """The network without the PEFT wrapper."""
        return self.net.get_base_model() if isinstance(self.net, peft.PeftModel) else self.net

    def raw(self, net: Any, batch: Batch) -> Tensor:
        """Tokens [B, N, H]: of a video encoder its patches, normalised; else one a frame, oldest first."""
        if "features" in batch:
            return batch["features"]
        pixels = batch["pixel_values"]
        kind = net.config.model_type if hasattr(net, "config") else ""
        if kind == "videomae":
            # Without a normalisation of its own: its published classifier has it behind the mean.
            hidden = net(pixel_values=pixels).last_hidden_state
            return nn.functional.layer_norm(hidden, hidden.shape[-1:])
        if kind == "vjepa2":
            return net(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        found = net(pixel_values=pixels.flatten(0, 1)).pooler_output
        return found.flatten(1).unflatten(0, pixels.shape[:2])

    def encode_frames(self, parts: Sequence[Batch]) -> Mapping[str, Tensor]:
        """See :meth:`Backbone.encode_frames`."""
        return {"image": torch.cat([self.raw(self.base(), part)[0] for part in parts])}

    def with_features(self, prompt: Batch, features: Mapping[str, Tensor], picks: Tensor) -> Batch:
        """See :meth:`Backbone.with_features`."""
        ones = picks.new_ones(len(picks), 1)
        return {"features": features["image"][picks], "input_ids": 0 * ones, "attention_mask": ones}

    def pooled(self, batch: Batch, how: Literal["last", "mean"] | nn.Module) -> Tensor:
        """See :meth:`Backbone.pooled`; ``last`` is the newest frame.

        Raises:
            ConfigError: if the last token of a video encoder is asked for, which is a corner of the newest frames.
        """
        tokens = self.raw(self.base(), batch)
        if how == "mean":
            return tokens.mean(1)
        if how == "last":
            if self.paired:
                raise ConfigError(
                    "objective.pooling=last: the last token of a video encoder is a corner of the picture",
                    do="use objective.pooling=mean or attention",
                )
            return tokens[:, -1]
        return how(tokens, tokens.new_ones(tokens.shape[:2]))

    def loss(self, batch: Batch) -> Tensor:
        """See :meth:`Backbone.loss`."""
        raise _textless()

    def score(self, batch: Batch, choices: Sequence[str], before: Sequence[str] | None = None) -> Tensor:
        """See :meth:`Backbone.score`."""
        raise _textless()

    def answers(self, batch: Batch, at: Tensor | None = None, tokens: Tensor | None = None) -> Answers:
        """See :meth:`Backbone.answers`."""
        raise _textless()

    def generate(
        self,
        batch: Batch,
        max_new_tokens: int,
        options: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """See :meth:`Backbone.generate`."""
        raise _textless()


@configurable("backbone")
def load(
    checkpoint: str,
    image_kwargs: Mapping[str, Any],
    roles: Mapping[str, str],
    dtype: str = "auto",
    quantization: str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    num_frames: int = 16,
) -> VisionBackbone:
    """Load an encoder by hub id or folder, without running any of its code.

    Args:
        checkpoint: hub id or folder with safetensors weights.
        image_kwargs: unused; the network's own size decides.
        roles: see :class:`VisionBackbone`.
        dtype: ``auto`` (the checkpoint's), ``float32``, ``bfloat16`` or ``float16``.
        quantization: must be None.
        attn_implementation: passed on; None lets transformers choose.
        revision: branch, tag or commit of a hub id.
        num_frames: that each sample has.

    Raises:
        CheckpointError: if the checkpoint is missing or not of a supported kind.
        ConfigError: for 4-bit weights.
    """
    if quantization:
        raise ConfigError(
            "peft.quantization is for language models", got=f"{quantization} of {checkpoint}", do="use peft=lora"
        )
    try:
        config: Any = transformers.AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
        if config.model_type in VIDEO:
            even = num_frames + num_frames % 2
            setattr(config, "num_frames" if config.model_type == "videomae" else "frames_per_clip", even)
        kwargs: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
        net = transformers.AutoModel.from_pretrained(
            checkpoint, config=config, use_safetensors=True, trust_remote_code=False, revision=revision,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype), **kwargs,
        )  # fmt: skip
        side = side_of(config, settings_of(checkpoint, revision))
        encoder = VisionEncoder(checkpoint, side, config.model_type in VIDEO, revision)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"model.checkpoint={checkpoint} cannot be loaded", got=str(error).strip().splitlines()[0],
            do="name a hub id or a folder of a vision encoder, or use model.checkpoint=tiny, which needs no download",
        ) from error  # fmt: skip
    if hasattr(net, "predictor"):
        net.predictor = nn.Identity()  # of V-JEPA 2's pre-training; nothing here asks it
    return VisionBackbone(net, encoder, roles)


def settings_of(checkpoint: str, revision: str | None = None) -> dict[str, Any]:
    """The processor settings of a checkpoint.

    Raises:
        CheckpointError: if it has none, or they lack mean and deviation.
    """
    for name in SETTINGS:
        path = cached_file(checkpoint, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if isinstance(found, dict) and len(found.get("image_mean") or ()) == len(found.get("image_std") or ()) == 3:
                return found
    raise CheckpointError(
        f"model.checkpoint={checkpoint} has no image_mean and image_std", got=f"looked for {', '.join(SETTINGS)}",
        do="add the processor's settings to the folder",
    )  # fmt: skip


def side_of(config: Any, settings: Mapping[str, Any]) -> int:
    """The side of the network's square input in pixels."""
    own = getattr(config, "image_size", None) or getattr(config, "crop_size", None)
    found = own or settings.get("crop_size") or settings.get("size") or 224
    if isinstance(found, Mapping):
        found = found.get("height") or found.get("shortest_edge") or 224
    return int(found[0] if isinstance(found, list | tuple) else found)


def _textless() -> ConfigError:
    return ConfigError("a vision encoder reads and writes no text", do=TEXTLESS)
