"""Configuration of OpenFlamingo (Awadalla et al., arXiv 2308.01390)."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, MptConfig, PreTrainedConfig

from dashvlm.config.imports import configurable


@configurable("backbone")
@strict
class OpenFlamingoConfig(PreTrainedConfig):
    """CLIP vision tower, perceiver resampler, MPT with gated cross attention.

    Attributes:
        vision_config: a ``CLIPVisionConfig``; OpenAI's weights need ``hidden_act="quick_gelu"``.
        text_config: an ``MptConfig``; MPT-1B (MosaicGPT) needs ``attn_config.qk_ln=True``, which
            Hugging Face's own MPT accepts and ignores.
        image_token_id: of ``<image>``.
        eoc_token_id: of ``<|endofchunk|>``.
        cross_attn_every_n_layers: a gated cross attention before every n-th decoder layer.
        resampler_depth: layers of the resampler.
        num_latents: visual tokens an image.
        num_heads: heads of resampler and cross attention.
        head_dim: width of a head.
        ff_mult: width factor of the feed-forward parts.
        vision_post_layernorm: normalise the patch tokens. False for the released checkpoint; True
            for one trained through open_clip 2.23 or later.
    """

    model_type = "open_flamingo"
    sub_configs_defaults = {"vision_config": CLIPVisionConfig, "text_config": MptConfig}  # noqa: RUF012
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 50278
    eoc_token_id: int = 50277
    cross_attn_every_n_layers: int = 1
    resampler_depth: int = 6
    num_latents: int = 64
    num_heads: int = 8
    head_dim: int = 64
    ff_mult: int = 4
    vision_post_layernorm: bool = False
    tie_word_embeddings: bool = True
