"""Checkpoints of the open_flamingo package to native keys.

Accepts the released ``checkpoint.pt`` (resampler, cross attention and token table only), a full
state dict with open_flamingo's aliased copies, MosaicGPT and open_clip names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dashvlm.errors import CheckpointError

_RENAMES = [
    (r"^module\.", ""),
    (r"\.decoder_layer\.", "."),
    (r"\.ln_1\.", ".norm_1."),
    (r"\.ln_2\.", ".norm_2."),
    (r"\.ln_f\.", ".norm_f."),
    (r"\.mlp\.mlp_up\.", ".ffn.up_proj."),
    (r"\.mlp\.mlp_down\.", ".ffn.down_proj."),
    (r"^vision_encoder\.conv1\.", "vision_encoder.embeddings.patch_embedding."),
    (r"^vision_encoder\.class_embedding$", "vision_encoder.embeddings.class_embedding"),
    (r"^vision_encoder\.positional_embedding$", "vision_encoder.embeddings.position_embedding.weight"),
    (r"^vision_encoder\.ln_pre\.", "vision_encoder.pre_layrnorm."),
    (r"^vision_encoder\.ln_post\.", "vision_encoder.post_layernorm."),
    (r"^vision_encoder\.transformer\.resblocks\.(\d+)\.", r"vision_encoder.encoder.layers.\1."),
    (r"(encoder\.layers\.\d+)\.norm_([12])\.", r"\1.layer_norm\2."),
    (r"(encoder\.layers\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
    (r"(encoder\.layers\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
    (r"(encoder\.layers\.\d+)\.attn\.out_proj\.", r"\1.self_attn.out_proj."),
    (r"\.(attn_gate|ff_gate)$", r".\1.weight"),
    (r"^lang_encoder\.transformer\.", ""),
]
# open_flamingo keeps every decoder tensor under several names; one of them is enough.
_COPIES = re.compile(r"^(module\.)?lang_encoder\.(old_decoder_blocks|gated_cross_attn_layers|layers|lm_head)\.")


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of an open_flamingo state dict to those of the native model."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if _COPIES.match(key) or key.endswith("vision_encoder.proj"):
            continue
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        fused = re.match(r"(vision_encoder\.encoder\.layers\.\d+)\.attn\.in_proj_(weight|bias)$", key)
        if fused:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                out[f"model.{fused[1]}.self_attn.{name}_proj.{fused[2]}"] = part
        else:
            out[key if key.startswith("lm_head") else f"model.{key}"] = value
    return out


def read_pt(path: Path) -> dict[str, Tensor]:
    """Read a ``.pt`` file, weights only.

    Raises:
        CheckpointError: if it is missing, damaged or holds anything but tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as weights",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do="a checkpoint with code in it is refused; use one that holds tensors only",
        ) from error
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} is not a state dict of tensors", do="name another file")
    return dict(state)


def load_pt(net: torch.nn.Module, path: Path) -> list[str]:
    """Load an open_flamingo checkpoint into a native model.

    Returns:
        The parts that the file did not bring (for the released file: vision tower and MPT).

    Raises:
        CheckpointError: if a key is foreign or a shape differs, or nothing fits.
    """
    state = convert_state(read_pt(path))
    own = net.state_dict()
    foreign = sorted(set(state) - set(own))
    wrong = [k for k, v in state.items() if k in own and v.shape != own[k].shape]
    if foreign or wrong or not state:
        shown = [f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}" for k in wrong[:2]] + foreign[:2]
        raise CheckpointError(
            f"{path}: not a checkpoint of this OpenFlamingo",
            got=f"{len(foreign)} foreign keys, {len(wrong)} wrong shapes: {', '.join(shown)}",
            do="use the checkpoint that belongs to model.base, or set the dimensions in model.twin",
        )
    net.load_state_dict(state, strict=False)
    return sorted({k.removeprefix("model.").split(".")[0] for k in set(own) - set(state) if k != "lm_head.weight"})
