"""OpenFlamingo: its own network, processor and checkpoint formats, behind the common backbone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText

from dashvlm.backbones import hf
from dashvlm.backbones.hf_backbone import HFBackbone
from dashvlm.backbones.openflamingo.configuration import OpenFlamingoConfig
from dashvlm.backbones.openflamingo.convert import load_pt
from dashvlm.backbones.openflamingo.modeling import OpenFlamingoForConditionalGeneration
from dashvlm.config.imports import configurable
from dashvlm.errors import CheckpointError

log = logging.getLogger(__name__)

AutoConfig.register("open_flamingo", OpenFlamingoConfig)
AutoModelForImageTextToText.register(OpenFlamingoConfig, OpenFlamingoForConditionalGeneration)


@configurable("backbone")
def load(
    checkpoint: str,
    image_kwargs: Mapping[str, Any],
    roles: Mapping[str, str],
    dtype: str = "auto",
    quantization: str | None = None,
    attn_implementation: str | None = None,
    base: str | None = None,
    init_from: str | None = None,
    gate_init: float | None = None,
    revision: str | None = None,
) -> HFBackbone:
    """Load a native folder, and optionally an open_flamingo ``.pt`` file on top of it.

    Args:
        checkpoint: a folder of ``save_pretrained``, or a ``.pt`` file (then ``base`` is the folder).
        image_kwargs: see :func:`dashvlm.backbones.hf.load`.
        roles: likewise.
        dtype: likewise.
        quantization: likewise; the cross attention and the resampler stay unquantised.
        attn_implementation: likewise.
        base: folder with the language model and vision tower that a ``.pt`` file does not bring.
        init_from: a ``.pt`` file to start from, stated explicitly: the released ``checkpoint.pt`` or
            a fine-tuned one.
        revision: likewise.
        gate_init: raw value that all attention gates are set to (tanh follows); None leaves them.

    Raises:
        CheckpointError: if a file is missing, unsafe, or belongs to another model.
    """
    weights = init_from
    if checkpoint.endswith(".pt"):
        if base is None:
            raise CheckpointError(
                "a .pt file of open_flamingo holds no configuration or tokenizer",
                got=checkpoint,
                do="set model.loader_options.base to a native folder with MPT-1B and CLIP ViT-L/14",
            )
        checkpoint, weights = base, checkpoint
    skip = ["model.vision_encoder", "model.perceiver", r".*gated_cross_attn_layer", "lm_head"]
    backbone = hf.load(
        checkpoint, image_kwargs, roles, dtype, quantization, attn_implementation, skip, revision=revision
    )
    if weights is not None:
        missing = load_pt(backbone.net, Path(weights))
        log.info("%s loaded; from %s stay: %s", weights, checkpoint, ", ".join(missing) or "nothing")
    if gate_init is not None:
        for name, parameter in backbone.net.named_parameters():
            if name.endswith("attn_gate.weight"):
                parameter.data.fill_(gate_init)
    return backbone
