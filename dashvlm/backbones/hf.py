"""Any Hugging Face image-text-to-text model, described by a YAML file in ``conf/model``: how it is loaded.

What it does is in ``hf_backbone``, its weightless half in ``encoder``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from dashvlm.backbones.encoder import HFEncoder
from dashvlm.backbones.hf_backbone import HFBackbone
from dashvlm.backbones.published_adapter import base_and_adapter, merged
from dashvlm.config.imports import configurable
from dashvlm.errors import CheckpointError


def check_family(checkpoint: str, expected: str, revision: str | None = None) -> None:
    """Refuse a checkpoint of another family before any weights are read.

    Args:
        checkpoint: hub id or folder.
        expected: ``model_type`` of the family's configuration; its mixture-of-experts variant passes too.
        revision: branch, tag or commit of a hub id.

    Raises:
        CheckpointError: if the checkpoint says another one. One that cannot be read is left to :func:`load`.
    """
    try:
        found = transformers.PretrainedConfig.get_config_dict(checkpoint, revision=revision)[0].get("model_type")
    except (OSError, ValueError):
        return
    if found in (None, expected, f"{expected}_moe"):
        return
    more = {"internvl_chat": "use the checkpoint of the same name with -hf behind it (OpenGVLab/InternVL3-1B-hf)"}
    raise CheckpointError(
        f"model.checkpoint={checkpoint} belongs to another family",
        got=f"model_type {found}, this model= group is for {expected}",
        do=more.get(str(found), "choose the model= group that fits the checkpoint"),
    )


LOADING = (OSError, ValueError, TypeError, LookupError, AttributeError, SafetensorError)
"""What files of a checkpoint lead to that are damaged, missing or not what they say."""


@configurable("backbone")
def load(
    checkpoint: str,
    image_kwargs: Mapping[str, Any],
    roles: Mapping[str, str],
    dtype: str = "auto",
    quantization: str | None = None,
    attn_implementation: str | None = None,
    unquantized: Sequence[str] = ("lm_head",),
    frames: str = "images",
    revision: str | None = None,
    base: str | None = None,
) -> HFBackbone:
    """Load a checkpoint by hub id or folder, without running any of its code.

    Args:
        checkpoint: hub id or folder with safetensors weights, or a folder with an adapter in PEFT's format.
        image_kwargs: see :class:`HFEncoder`.
        roles: see :class:`HFBackbone`.
        dtype: ``auto`` (the checkpoint's), ``float32``, ``bfloat16`` or ``float16``.
        quantization: ``nf4`` for 4-bit weights with double quantisation, or None.
        attn_implementation: passed on; None lets transformers choose.
        unquantized: patterns of module names that stay unquantised.
        frames: see :class:`HFEncoder`.
        revision: branch, tag or commit of a hub id.
        base: of an adapter, instead of the one that it names.

    Raises:
        CheckpointError: if the checkpoint is missing, gated, or not of a supported kind, or a package is missing.
    """
    kwargs: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype), "revision": revision}
    if attn_implementation:
        kwargs["attn_implementation"] = attn_implementation
    if quantization == "nf4":
        kwargs |= {"quantization_config": _nf4(unquantized), "dtype": four_bit_dtype()}
    checkpoint, adapter = base_and_adapter(checkpoint, base)
    try:
        net = transformers.AutoModelForImageTextToText.from_pretrained(
            checkpoint, use_safetensors=True, trust_remote_code=False, **kwargs
        )
        encoder = HFEncoder(checkpoint, image_kwargs, frames, revision)
    except ImportError as error:
        if not attn_implementation:
            raise
        raise CheckpointError(
            f"model.attn_implementation={attn_implementation}: its package is not installed or does not run here",
            got=str(error).strip().splitlines()[0],
            do="install it (flash_attention_2 is in the package flash-attn), or use sdpa, which needs none",
        ) from error
    except torch.OutOfMemoryError:
        raise
    except LOADING as error:
        raise _cannot_load(checkpoint, error) from error
    if adapter is not None:
        net = merged(net, adapter, quantization)
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


def _cannot_load(checkpoint: str, error: Exception) -> CheckpointError:
    """Say why a checkpoint cannot be loaded, with the address of a hub id."""
    text, place = str(error).strip(), f"https://huggingface.co/{checkpoint}"
    otherwise = "give a local folder, or use model.checkpoint=tiny, which needs no download"
    if Path(checkpoint).exists():
        do = f"look at the files in the folder; {otherwise}"
    elif "gated repo" in text:
        do = f"ask for access at {place}, then log in (hf auth login) or set HF_TOKEN"
    elif "not a valid model identifier" in text or "404" in text:
        do = f"look at {place}: the name may be wrong, or the repository private (hf auth login, HF_TOKEN); {otherwise}"
    elif "couldn't connect" in text or "offline" in text.lower():
        do = f"where there is a network: hf download {checkpoint}; then run it again; or {otherwise}"
    else:
        do = f"look at {place}, your network and HF_TOKEN; {otherwise}"
    return CheckpointError(
        f"model.checkpoint={checkpoint} cannot be loaded", got=(text.splitlines() or [type(error).__name__])[0], do=do
    )


def four_bit_dtype() -> torch.dtype:
    """What 4-bit layers compute in: float16 on cards without bfloat16, such as the T4; bfloat16 elsewhere."""
    old = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if old else torch.bfloat16


def _nf4(unquantized: Sequence[str]) -> Any:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=four_bit_dtype(),
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
