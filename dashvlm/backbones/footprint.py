"""What a model weighs and what a step costs, from its dimensions alone (no weights are loaded).

The network is built on torch's meta device from the ``published`` dimensions in the model's YAML, or
from a twin's or a folder's config. Formulas: 2 FLOPs a parameter and token forward, twice that
backward (Kaplan et al., arXiv 2001.08361); stored activations of a transformer layer about 34 bytes a
token and hidden unit in 16 bit with fused attention, or one layer input with checkpointing (Korthikanti
et al., arXiv 2205.05198).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from dashvlm.backbones.published_adapter import base_and_adapter
from dashvlm.backbones.tiny import config_of_twin, model_class, twin_folder
from dashvlm.backbones.twin_files import published_of, twin_of
from dashvlm.backbones.vision import side_of
from dashvlm.errors import CheckpointError, ConfigError

TEXT_TOKENS_A_FRAME, TEXT_TOKENS = 12, 60  # what the prompts print around a frame, and once
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "auto": 2.0}
OVERHEAD_GB = 0.8  # context of the framework and workspaces; not derived from the model


@dataclass(frozen=True)
class Footprint:
    """The size of a model.

    Attributes:
        parameters: role -> number of parameters.
        matrices: role -> (last name, inputs, outputs) of its linear layers.
        layers: role -> (number of transformer layers, hidden width).
        tokens_a_frame: visual tokens that the language model sees for a frame.
        patches_a_frame: patch tokens that the vision tower computes for a frame.
        source: where the dimensions come from.
        dtype: what the checkpoint's weights are stored in; None if that is not known.
        context: tokens that the language model takes; None if that is not known.
    """

    parameters: dict[str, int]
    matrices: dict[str, list[tuple[str, int, int]]]
    layers: dict[str, tuple[int, int]]
    tokens_a_frame: int
    patches_a_frame: int
    source: str
    dtype: str | None = None
    context: int | None = None

    def linear(self, role: str) -> int:
        """Parameters of a role's linear layers: what 4-bit loading shrinks and what tokens multiply."""
        return sum(i * o for _, i, o in self.matrices.get(role, ()))


def meta_network(model: Mapping[str, Any], cache: Path) -> tuple[nn.Module, Any, str]:
    """Build a model's network on the meta device.

    Returns:
        The network, its config, and where its dimensions come from.

    Raises:
        ConfigError: if neither a twin, a folder nor published dimensions are known.
    """
    published = published_of(model)
    base = (model.get("loader_options") or {}).get("base") if model["name"] != "openflamingo" else None
    checkpoint = base_and_adapter(str(model["checkpoint"]), base)[0]
    known = {str(hub_id): size for size, hub_id in (model.get("sizes") or {}).items()}
    checkpoint = known.get(checkpoint, checkpoint)  # an adapter names its base by the hub's id
    if checkpoint == "tiny":
        reads = "tokenizer" in twin_of(model)
        config = config_of_twin(twin_of(model), twin_folder(twin_of(model), cache) if reads else None)
        source = "the tiny twin"
    elif checkpoint in published:
        config = config_of_twin({**twin_of(model), "config": published[checkpoint]["config"]}, None)
        source = f"published dimensions ({published['source']})"
    elif Path(checkpoint).is_dir():
        try:
            config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(
                f"{checkpoint}/config.json cannot be used", got=str(error).strip().splitlines()[0],
                do="choose the model= group of this checkpoint; what needs code of its own is not loaded",
            ) from error  # fmt: skip
        source = f"{checkpoint}/config.json"
    else:
        raise ConfigError(
            f"the dimensions of model.checkpoint={checkpoint} are not known here",
            do=f"use one of {', '.join(k for k in published if k != 'source')}, tiny, or a folder",
        )
    with torch.device("meta"):
        net = model_class(twin_of(model))(config)
    net.tie_weights()
    return net, config, source


def footprint(model: Mapping[str, Any], cache: Path, frame_size: tuple[int, int] | None) -> Footprint:
    """Count a model's parameters by role and its tokens a frame.

    Args:
        model: the ``model`` group.
        cache: folder of the twins.
        frame_size: (height, width) of the frames handed over; 720p if None.
    """
    net, config, source = meta_network(model, cache)
    parameters: dict[str, int] = dict.fromkeys(model["roles"], 0)
    matrices: dict[str, list[tuple[str, int, int]]] = {}
    layers: dict[str, tuple[int, int]] = {}

    def role_of(name: str) -> str:
        return next((r for r, pattern in model["roles"].items() if re.search(pattern, name)), "other")

    for name, parameter in net.named_parameters():
        role = role_of(name) if role_of(name) != "other" else role_of(name.rsplit(".", 1)[0])
        parameters[role] = parameters.get(role, 0) + parameter.numel()
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            shape = (name.rsplit(".", 1)[-1], module.in_features, module.out_features)
            matrices.setdefault(role_of(name), []).append(shape)
    if "tokenizer" not in twin_of(model):
        return _of_encoder(model, config, source, parameters, matrices)
    text = config.get_text_config()
    vision = config.vision_config
    layers["language"] = (int(text.num_hidden_layers), int(text.hidden_size))
    depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    width = getattr(vision, "embed_dim", None) if config.model_type == "qwen2_vl" else vision.hidden_size
    layers["vision"] = (int(depth), int(width or vision.hidden_size))
    kwargs = twin_of(model)["image_kwargs"] if str(model["checkpoint"]) == "tiny" else model["image_kwargs"]
    tokens, patches = visual_tokens(config, kwargs, frame_size or (720, 1280))
    known = published_of(model).get(str(model["checkpoint"])) or {}
    dtype, context = known.get("dtype"), known.get("context")
    if not known:  # a twin or a folder says it itself
        stored = getattr(config, "dtype", None) or getattr(text, "dtype", None)
        dtype = "float32" if str(model["checkpoint"]) == "tiny" else stored and str(stored).removeprefix("torch.")
        context = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    return Footprint(parameters, matrices, layers, tokens, patches, source, dtype, context and int(context))


def _of_encoder(
    model: Mapping[str, Any], config: Any, source: str, parameters: dict[str, int], matrices: dict[str, Any]
) -> Footprint:
    """The footprint of a vision encoder: no language half; two frames may share a token, convolutions have none."""
    width = int(getattr(config, "hidden_size", 0) or config.hidden_sizes[-1])
    depth = int(getattr(config, "num_hidden_layers", 0) or sum(config.depths))
    tokens, patch = 0, getattr(config, "patch_size", None)
    if patch:
        tokens = (side_of(config, {}) // int(patch)) ** 2 // int(getattr(config, "tubelet_size", 1))
    known = published_of(model).get(str(model["checkpoint"])) or {}
    layers = {"language": (0, 0), "vision": (depth, width)}
    return Footprint(parameters, matrices, layers, tokens, tokens, source, known.get("dtype", "float32"), None)


def visual_tokens(config: Any, image_kwargs: Mapping[str, Any], frame_size: tuple[int, int]) -> tuple[int, int]:
    """Return the tokens and the patches of one frame.

    Args:
        config: the model's config.
        image_kwargs: arguments of the image processor.
        frame_size: (height, width) in pixels.

    Raises:
        ConfigError: if the family's arithmetic is not known.
    """
    kind, vision = config.model_type, config.vision_config
    if kind in ("smolvlm", "idefics3"):
        side = vision.image_size // vision.patch_size
        tiles = 1
        if image_kwargs.get("do_image_splitting"):
            # The frame is enlarged to 4 tiles along its longer side, cut up, and shown whole once more.
            height, width = frame_size
            tiles = 4 * math.ceil(4 * min(height, width) / max(height, width)) + 1
        return tiles * side**2 // config.scale_factor**2, tiles * side**2
    if kind.startswith("qwen"):
        factor = vision.patch_size * vision.spatial_merge_size
        budget = image_kwargs.get("size") or {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
        height, width = (max(round(v / factor), 1) * factor for v in frame_size)
        area = frame_size[0] * frame_size[1]
        most, least = budget["longest_edge"], budget["shortest_edge"]
        if height * width > most:
            height, width = (max(math.floor(v * math.sqrt(most / area) / factor), 1) * factor for v in frame_size)
        elif height * width < least:
            height, width = (math.ceil(v * math.sqrt(least / area) / factor) * factor for v in frame_size)
        tokens = height * width // factor**2
        return tokens, tokens * vision.spatial_merge_size**2
    if kind == "internvl":
        side = (vision.image_size[0] // vision.patch_size[0]) ** 2
        tiles = int(image_kwargs["max_patches"]) + 1 if image_kwargs.get("crop_to_patches") else 1
        return tiles * int(config.image_seq_length), tiles * side
    if kind == "mllama":
        side = (vision.image_size // vision.patch_size) ** 2 + 1
        return 1, vision.max_num_tiles * side  # keys of the cross attention, not tokens of the text
    if kind == "open_flamingo":
        return 1, (vision.image_size // vision.patch_size) ** 2 + 1
    raise ConfigError(f"visual tokens of a {kind} model are not known", do="add its arithmetic to visual_tokens")


def flops_a_frame(size: Footprint) -> dict[str, float]:
    """FLOPs of one frame, forward: the vision tower on its patches, the language model on its tokens."""
    vision_layers, vision_width = size.layers["vision"]
    attention = 4 * size.patches_a_frame**2 * vision_width * vision_layers
    return {
        "vision": 2.0 * size.linear("vision") * size.patches_a_frame + attention,
        "language": 2.0 * size.linear("language") * size.tokens_a_frame,
    }


def memory_gb(size: Footprint, cfg: Mapping[str, Any], num_frames: int, training: bool) -> dict[str, float]:
    """Predict the peak memory of a step, in 10^9 bytes, by what it goes to.

    Args:
        size: of the model.
        cfg: the whole configuration (data.batch_size, peft, optim, trainer.precision, model).
        num_frames: frames a sample.
        training: a training step, or a forward pass for scores.

    Returns:
        ``weights, gradients, optimizer, activations, overhead`` and ``total``.
    """
    peft, model = cfg["peft"], cfg["model"]
    precision = str(cfg["trainer"]["precision"])
    full = peft["method"] == "full" and precision != "bf16-true"
    stored = "float32" if full else size.dtype or "bfloat16"
    a_weight = BYTES[stored if model["dtype"] == "auto" and not peft.get("quantization") else str(model["dtype"])]
    if precision in ("bf16-true", "64-true"):
        a_weight = 2.0 if precision == "bf16-true" else 8.0
    quantised = [r for r in size.matrices if r != "lm_head"] if peft.get("quantization") else []
    four_bit = sum(size.linear(r) for r in quantised)
    weights = (sum(size.parameters.values()) - four_bit) * a_weight + four_bit * 0.53
    trainable = trainable_parameters(size, peft)
    state = 2 * (1.0 if "8bit" in str(cfg["optim"]["name"]) else 4.0)
    batch = int(cfg["data"]["batch_size" if training else "eval_batch_size"])
    images = 1 if (model.get("loader_options") or {}).get("frames") == "contact_sheet" else num_frames
    length = prompt_tokens(size, cfg, num_frames)
    a_value = 4.0 if precision == "32-true" and a_weight == 4.0 else 2.0
    activations = 0.0
    learns = training and trainable > 0
    for role, tokens in (("vision", images * size.patches_a_frame), ("language", length)):
        layers, width = size.layers[role]
        a_layer = 17 * a_value * width * tokens * batch
        through = learns and (role == "language" or _trains(peft, "vision"))
        if not through:
            activations = max(activations, 4 * a_value * width * tokens * batch)
        elif model["gradient_checkpointing"]:
            activations += layers * a_value * width * tokens * batch + a_layer
        else:
            activations += layers * a_layer
    parts = {
        "weights": weights,
        "gradients": trainable * 4.0 if learns else 0.0,
        "optimizer": trainable * state if learns else 0.0,
        "activations": activations,
        "overhead": OVERHEAD_GB * 1e9,
    }
    found = {k: v / 1e9 for k, v in parts.items()}
    return found | {"total": sum(found.values())}


def prompt_tokens(size: Footprint, cfg: Mapping[str, Any], num_frames: int) -> int:
    """Tokens of a prompt with so many frames."""
    sheet = (cfg["model"].get("loader_options") or {}).get("frames") == "contact_sheet"
    return TEXT_TOKENS + num_frames * TEXT_TOKENS_A_FRAME + (1 if sheet else num_frames) * size.tokens_a_frame


def spread_gb(parts: Mapping[str, float]) -> tuple[float, float]:
    """Least and most that a prediction of :func:`memory_gb` may stand for: activations are good to a factor of two."""
    return parts["total"] - parts["activations"] / 2, parts["total"] + parts["activations"]


def largest_num_frames(size: Footprint, cfg: Mapping[str, Any], limit_gb: float, training: bool = True) -> int:
    """The most frames a sample whose predicted peak and prompt stay within the limits; 0 if not even one fits."""

    def fits(frames: int) -> bool:
        within = size.context is None or prompt_tokens(size, cfg, frames) <= size.context
        return within and memory_gb(size, cfg, frames, training)["total"] <= limit_gb

    low, high = 0, 1
    while high <= 4096 and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def ways_to_fit(size: Footprint, cfg: Mapping[str, Any], num_frames: int, limit_gb: float) -> list[str]:
    """Settings that alone bring a training step within a limit; all of them together if none does; else nothing."""
    peft = {**cfg["peft"], "method": "lora", "quantization": "nf4", "train_roles": []}
    peft = {"roles": ["language"], "rank": 16, **peft}
    changes: dict[str, dict[str, Any]] = {
        "data.batch_size=1 with trainer.accumulate_grad_batches": {"data": {**cfg["data"], "batch_size": 1}},
        "model.gradient_checkpointing=true": {"model": {**cfg["model"], "gradient_checkpointing": True}},
        "peft=qlora": {"peft": peft},
    }
    found = [
        word
        for word, part in changes.items()
        if memory_gb(size, {**cfg, **part}, num_frames, True)["total"] <= limit_gb
    ]
    fewer = largest_num_frames(size, cfg, limit_gb)
    if fewer:
        found.append(f"data.num_frames={fewer}")
    whole = {**cfg, **{k: v for part in changes.values() for k, v in part.items()}}
    if not found and memory_gb(size, whole, num_frames, True)["total"] <= limit_gb:
        found.append(" and ".join(changes))
    return found


def trainable_parameters(size: Footprint, peft: Mapping[str, Any]) -> int:
    """Count what will train: an adapter of rank r has r (inputs + outputs) parameters a layer."""
    if peft["method"] == "full":
        roles = peft.get("train_roles") or list(size.parameters)
        return sum(size.parameters.get(r, 0) for r in roles)
    if peft["method"] != "lora":
        return 0
    total = sum(size.parameters.get(r, 0) for r in peft.get("train_roles") or ())
    wanted = peft.get("targets") or ()
    for role in peft["roles"]:
        rank = int((peft.get("rank_by_role") or {}).get(role, peft["rank"]))
        total += sum(rank * (i + o) for leaf, i, o in size.matrices.get(role, ()) if not wanted or leaf in wanted)
    return total


def _trains(peft: Mapping[str, Any], role: str) -> bool:
    if peft["method"] == "full":
        return not peft.get("train_roles") or role in peft["train_roles"]
    return peft["method"] == "lora" and role in [*peft["roles"], *(peft.get("train_roles") or ())]
