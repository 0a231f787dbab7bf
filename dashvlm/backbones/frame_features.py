"""What the vision half makes of frames, once a frame, for prompts that share them.

Anchors half a second apart look at nearly the same frames. Where a family encodes each picture by itself, the
language half gets the features of the frames it asks for and the vision half runs once a frame
(``tests/test_stream.py`` compares scores with those of whole passes, for every family).

Shapes: U distinct frames, B prompts, T frames a prompt, P tokens a frame, H width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dashvlm.backbones.base import Batch
from dashvlm.backbones.frame_encoder import CONSTANT, FEATURES, PIXELS, FrameEncoder

A_FRAME = ("image_grid_thw",)
"""Inputs with a row a frame that the language half needs too."""


def encode_frames(base: Any, parts: Sequence[Batch]) -> dict[str, Tensor]:
    """Run the vision half and the connector.

    Args:
        base: the network without the PEFT wrapper.
        parts: inputs with the pixels of some frames each and ``num_frames``.

    Returns:
        ``image`` [U, P, H], and where the family feeds deeper layers too, ``deep0`` and so on.
    """
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        count = int(part["num_frames"])
        inputs = {k: part[k] for k in (*PIXELS, *A_FRAME) if k in part}
        out = base.model.get_image_features(**inputs, return_dict=True)
        made = {"image": out.pooler_output}
        made |= {f"deep{i}": layer for i, layer in enumerate(getattr(out, "deepstack_features", None) or ())}
        for name, value in made.items():
            whole = value if torch.is_tensor(value) else torch.cat(list(value))
            found.setdefault(name, []).append(whole.reshape(count, -1, whole.shape[-1]))
    return {name: torch.cat(values) for name, values in found.items()}


def with_features(base: Any, prompt: Batch, features: Mapping[str, Tensor], picks: Tensor) -> Batch:
    """Inputs of B samples with one prompt that look at different frames.

    Args:
        base: the network without the PEFT wrapper.
        prompt: one encoded sample; its own pixels are not used.
        features: of the distinct frames, see :func:`encode_frames`.
        picks: numbers of the frames that each sample looks at, oldest first, [B, T].
    """
    count, inputs = len(picks), {}
    for name, value in prompt.items():
        if name not in PIXELS:  # rows of frames follow each other, sample by sample
            inputs[name] = value.repeat(count, *[1] * (value.dim() - 1))
    own, shown = base.config.model_type == "open_flamingo", {n: v[picks] for n, v in features.items()}
    return inputs | _as_input(base, {n: v if own else v.flatten(0, 2) for n, v in shown.items()})


def ready(base: Any, encoder: FrameEncoder | None, batch: Batch) -> Batch:
    """Inputs as the network takes them, from those put together of encoded frames; others are as they were.

    Args:
        base: the network without the PEFT wrapper.
        encoder: normalises pixels.
        batch: on the network's device.
    """
    pixels = batch.get("pixel_values")
    if encoder is not None and pixels is not None and pixels.dtype == torch.uint8:
        batch = {**batch, "pixel_values": encoder.normalised(pixels)}
    for name in [n for n in batch if n.startswith(CONSTANT)]:
        value, *shape = batch[name].tolist()
        whole = torch.full((1,), value, device=batch[name].device).expand(shape)
        batch = {n: v for n, v in batch.items() if n != name} | {name.removeprefix(CONSTANT): whole}
    features = {n.removeprefix(FEATURES): v for n, v in batch.items() if n.startswith(FEATURES)}
    if not features:
        return batch
    return {n: v for n, v in batch.items() if not n.startswith(FEATURES)} | _as_input(base, features)


def for_generation(base: Any, batch: Batch) -> Batch:
    """Features cut up sample by sample, so that ``generate`` can repeat them for beams; it changes what it is given.

    Args:
        base: the network without the PEFT wrapper.
        batch: inputs; without features they are as they were.
    """
    given: Any = batch.get("mm_encoder_outputs")
    if given is None:
        return batch
    counts = (batch["input_ids"] == base.config.image_token_id).sum(1).tolist()
    output = copy.copy(given["image"])
    (image,) = [output.pooler_output] if torch.is_tensor(output.pooler_output) else output.pooler_output
    if base.config.model_type == "internvl":  # takes one tensor [pictures, P, H]
        output.pooler_output = image.reshape(-1, int(base.config.image_seq_length), image.shape[-1])
    else:
        output.pooler_output = list(image.split(counts))
    if hasattr(output, "deepstack_features"):
        output.deepstack_features = [list(layer[0].split(counts)) for layer in output.deepstack_features]
    return {**batch, "mm_encoder_outputs": {"image": output}}  # type: ignore[dict-item]


def _as_input(base: Any, features: Mapping[str, Tensor]) -> Batch:
    """Features [frames * P, H] in the place of pixels; OpenFlamingo's are [B, T, P, H]."""
    image, kind = features["image"], base.config.model_type
    if kind == "open_flamingo":
        return {"image_hidden_states": image}
    deep = [features[f"deep{i}"] for i in range(len(features) - 1)]
    output: Any = BaseModelOutputWithPooling(pooler_output=image if kind == "internvl" else [image])
    if deep:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        output = BaseModelOutputWithDeepstackFeatures(pooler_output=[image], deepstack_features=[[d] for d in deep])
    return {"mm_encoder_outputs": {"image": output}}  # type: ignore[dict-item]
