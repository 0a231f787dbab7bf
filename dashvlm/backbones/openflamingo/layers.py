"""The layers of OpenFlamingo: resampler, gated cross attention, MPT blocks with LayerNorm of queries and keys.

Shapes: B batch, T images, N patches, L text tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


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


def bias_free_norm(dim: int, eps: float) -> nn.LayerNorm:
    """LayerNorm with a weight only, as in MPT."""
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
            self.q_ln = bias_free_norm(width, text.layer_norm_epsilon)
            self.k_ln = bias_free_norm(width, text.layer_norm_epsilon)

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
        self.norm_1, self.norm_2 = bias_free_norm(width, eps), bias_free_norm(width, eps)
        self.attn, self.ffn = MptSelfAttention(text, layer_idx), MptMLP(text)

    def forward(self, x: Tensor, media: Tensor, text_time: Tensor, bias: Tensor, cache: Any) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        if self.gated_cross_attn_layer is not None:
            x = self.gated_cross_attn_layer(x, media, text_time)
        x = x + self.attn(self.norm_1(x), bias, cache)
        return x + self.ffn(self.norm_2(x))
