"""OpenFlamingo as a native transformers model: no remote code, no state kept in layers.

Parity with the reference implementation is tested on golden tensors (logits, loss, gradients,
greedy and beam search). Shapes: B batch, T images, N patches, L text tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from dashvlm.backbones.openflamingo.configuration import OpenFlamingoConfig


class Gate(nn.Module):
    """A scalar behind a tanh, as a module so that PEFT's ``modules_to_save`` can keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        return x * self.weight.tanh()


def _feed_forward(dim: int, mult: int) -> nn.Sequential:
    # Index layout 0..3 is that of the released checkpoint's keys ff.0, ff.1, ff.3.
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, dim * mult, bias=False),
        nn.GELU(),
        nn.Linear(dim * mult, dim, bias=False),
    )


def _norm(dim: int, eps: float) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=eps, bias=False)


class ProjectedAttention(nn.Module):
    """Multi-head attention with a query projection and a fused key-value projection, no biases."""

    def __init__(self, dim: int, kv_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(kv_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def attend(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from x [B, L, D] to context [B, S, kv_dim]."""
        key, value = self.to_kv(context).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(x), key, value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(out.transpose(1, 2).flatten(2))


class ResamplerAttention(ProjectedAttention):
    """Latents attend to patches and to themselves."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__(dim, dim, heads, head_dim)
        self.norm_media, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """[B, N, D], [B, latents, D] -> [B, latents, D]."""
        latents = self.norm_latents(latents)
        return self.attend(latents, torch.cat([self.norm_media(x), latents], dim=1))


class PerceiverResampler(nn.Module):
    """Any number of patches to a fixed number of latents."""

    def __init__(self, dim: int, config: Any) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(config.num_latents, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [ResamplerAttention(dim, config.num_heads, config.head_dim), _feed_forward(dim, config.ff_mult)]
            )
            for _ in range(config.resampler_depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B * T, N, D] -> [B * T, latents, D]."""
        latents = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            attend, feed = layer.children()
            latents = latents + attend(x, latents)
            latents = latents + feed(latents)
        return self.norm(latents)


class MediaCrossAttention(ProjectedAttention):
    """Text attends to the image right before it, and to no other."""

    def __init__(self, dim: int, vision_dim: int, heads: int, head_dim: int) -> None:
        super().__init__(dim, vision_dim, heads, head_dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, media: Tensor, text_time: Tensor) -> Tensor:
        """X [B, L, D], media [B, T, latents, Dv], text_time [B, L] (images so far) -> [B, L, D]."""
        images, latents = media.shape[1:3]
        times = torch.arange(1, images + 1, device=x.device).repeat_interleave(latents)
        seen = text_time[..., None] == times
        some = seen.any(-1, keepdim=True)  # text before the first image gets exactly 0
        return self.attend(self.norm(x), media.flatten(1, 2), (seen | ~some)[:, None]) * some


class GatedCrossAttentionBlock(nn.Module):
    """Cross attention and feed forward, each behind a gate that starts closed."""

    def __init__(self, dim: int, vision_dim: int, config: Any) -> None:
        super().__init__()
        self.attn = MediaCrossAttention(dim, vision_dim, config.num_heads, config.head_dim)
        self.attn_gate = Gate()
        self.ff = _feed_forward(dim, config.ff_mult)
        self.ff_gate = Gate()

    def forward(self, x: Tensor, media: Tensor, text_time: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = x + self.attn_gate(self.attn(x, media, text_time))
        return x + self.ff_gate(self.ff(x))


class MptSelfAttention(nn.Module):
    """MPT attention with ALiBi and, unlike Hugging Face's, LayerNorm of queries and keys."""

    def __init__(self, text: Any, layer_idx: int) -> None:
        super().__init__()
        self.heads, self.layer_idx, width = text.n_heads, layer_idx, text.d_model
        self.scale = text.attn_config.softmax_scale or 1 / math.sqrt(width / text.n_heads)
        self.Wqkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.qk_ln = bool(text.attn_config.qk_ln)
        if self.qk_ln:  # over the full width, before the heads are split
            self.q_ln = _norm(width, text.layer_norm_epsilon)
            self.k_ln = _norm(width, text.layer_norm_epsilon)

    def forward(self, x: Tensor, bias: Tensor, cache: Any) -> Tensor:
        """[B, L, D] -> [B, L, D]; bias [1 or B, heads, L, keys]."""
        q, k, v = self.Wqkv(x).chunk(3, -1)
        if self.qk_ln:
            q, k = self.q_ln(q).to(v.dtype), self.k_ln(k).to(v.dtype)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=self.scale)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MptMLP(nn.Module):
    """Two linear layers with an exact GELU."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.up_proj = nn.Linear(text.d_model, text.expansion_ratio * text.d_model, bias=False)
        self.down_proj = nn.Linear(text.expansion_ratio * text.d_model, text.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class FlamingoBlock(GradientCheckpointingLayer):
    """A decoder layer with a gated cross attention in front."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        text = config.text_config
        width, eps = text.d_model, text.layer_norm_epsilon
        here = (layer_idx + 1) % config.cross_attn_every_n_layers == 0
        vision = config.vision_config.hidden_size
        self.gated_cross_attn_layer = GatedCrossAttentionBlock(width, vision, config) if here else None
        self.norm_1, self.norm_2 = _norm(width, eps), _norm(width, eps)
        self.attn, self.ffn = MptSelfAttention(text, layer_idx), MptMLP(text)

    def forward(self, x: Tensor, media: Tensor, text_time: Tensor, bias: Tensor, cache: Any) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        if self.gated_cross_attn_layer is not None:
            x = self.gated_cross_attn_layer(x, media, text_time)
        x = x + self.attn(self.norm_1(x), bias, cache)
        return x + self.ffn(self.norm_2(x))


class OpenFlamingoPreTrainedModel(PreTrainedModel):
    """Weights and what transformers needs to know about them."""

    config_class = config = OpenFlamingoConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FlamingoBlock", "CLIPEncoderLayer", "PerceiverResampler"]  # noqa: RUF012
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Gate):
            init.zeros_(module.weight)
        elif isinstance(module, PerceiverResampler):
            init.normal_(module.latents)


class OpenFlamingoModel(OpenFlamingoPreTrainedModel):
    """Everything but the head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        text = config.text_config
        self.vision_encoder = CLIPVisionModel._from_config(config.vision_config)
        self.perceiver = PerceiverResampler(config.vision_config.hidden_size, config)
        self.wte = nn.Embedding(text.vocab_size, text.d_model)
        self.blocks = nn.ModuleList(FlamingoBlock(config, i) for i in range(text.n_layers))
        self.norm_f = _norm(text.d_model, text.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token table."""
        self.wte = value

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, T, latents, Dv]."""
        frozen = not any(p.requires_grad for p in self.vision_encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            tokens = self.vision_encoder(pixel_values=pixel_values.flatten(0, 1)).last_hidden_state
            if self.config.vision_post_layernorm:
                tokens = self.vision_encoder.post_layernorm(tokens)
        return self.perceiver(tokens[:, 1:]).unflatten(0, pixel_values.shape[:2])

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_time: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the network.

        Args:
            input_ids: [B, L].
            pixel_values: [B, T, 3, H, W], or None with ``image_hidden_states``.
            image_hidden_states: [B, T, latents, Dv], already encoded.
            attention_mask: [B, past + L].
            text_time: [B, L], number of images up to each token; from ``input_ids`` if None.
            past_key_values: a cache.
            use_cache: make a cache.
            kwargs: ignored.
        """
        media = image_hidden_states
        if media is None:
            assert pixel_values is not None, "give pixel_values or image_hidden_states"
            media = self.get_image_features(pixel_values)
        if text_time is None:
            text_time = (input_ids == self.config.image_token_id).cumsum(-1)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        x = self.wte(input_ids)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        bias = self._bias(x, past, attention_mask)
        for block in self.blocks:
            x = block(x, media, text_time, bias, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm_f(x), past_key_values=past_key_values)

    def _bias(self, x: Tensor, past: int, attention_mask: Tensor | None) -> Tensor:
        """ALiBi and the causal and padding masks, [1 or B, heads, L, past + L]."""
        queries, keys = x.shape[1], x.shape[1] + past
        allowed = torch.ones(queries, keys, dtype=torch.bool, device=x.device).tril(past)[None, None]
        if attention_mask is not None:
            allowed = allowed & attention_mask.bool()[:, None, None, :keys]
        text: Any = self.config.text_config
        alibi = build_mpt_alibi_tensor(text.n_heads, keys, text.attn_config.alibi_bias_max, device=x.device)
        # A value that 16-bit attention can still hold: -inf in a whole row would give nan.
        lowest = max(torch.finfo(x.dtype).min, torch.finfo(torch.bfloat16).min)
        return alibi[None].to(x.dtype).masked_fill(~allowed, lowest)


class OpenFlamingoForConditionalGeneration(OpenFlamingoPreTrainedModel, GenerationMixin):
    """The network with its tied language head."""

    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "model.wte.weight"}  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = OpenFlamingoModel(config)
        self.lm_head = nn.Linear(config.text_config.d_model, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.model.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token table."""
        self.model.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        """The language head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_time: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, L, vocabulary], and the mean loss over labels that are not -100."""
        # generate() looks its arguments up in this signature, so they are spelled out.
        out = self.model(
            input_ids,
            pixel_values=pixel_values,
            image_hidden_states=image_hidden_states,
            attention_mask=attention_mask,
            text_time=text_time,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        hidden = out.last_hidden_state
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, image_hidden_states: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Add the encoded images and the image count of each new token."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        # From the full prefix: right for cached steps and for reordered beams alike.
        time = (input_ids == self.config.image_token_id).cumsum(-1)
        inputs["image_hidden_states"] = image_hidden_states
        inputs["text_time"] = time[:, -inputs["input_ids"].shape[1] :]
        return inputs

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **kwargs: Any) -> Any:
        """Generate; images are encoded once, before beams are expanded. A new ``<image>`` is forbidden."""
        if pixel_values is not None:
            kwargs["image_hidden_states"] = self.model.get_image_features(pixel_values)
        kwargs.setdefault("bad_words_ids", [[self.config.image_token_id]])
        kwargs.setdefault("eos_token_id", self.config.eoc_token_id)
        return super().generate(input_ids=input_ids, **kwargs)
