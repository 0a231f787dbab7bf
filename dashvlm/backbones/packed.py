"""Completions of a prompt in one row behind it, each blind to the others: the prompt is read once, and without a cache.

Under gradient checkpointing transformers keeps no keys and values in training, so completions cannot go on from a
cache (``continuation``). In one row they need none: a mask lets each see the prompt and itself, and its positions go
on from the prompt's. Equal to a pass a completion (``tests/test_preference.py``).

Shapes: B prompts of L tokens, G completions of N tokens each, T = L + G * N.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dashvlm.backbones.base import Batch
from dashvlm.backbones.continuation import token_logprobs

PLAIN = ("smolvlm", "internvl")
ROTARY_3D = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def can_pack(base: Any) -> bool:
    """Whether a network takes any mask [B, 1, T, T] and positions."""
    ways = {getattr(c, "_attn_implementation", None) for c in (base.config, base.config.get_text_config())}
    return base.config.model_type in (*PLAIN, *ROTARY_3D) and ways <= {"sdpa", "eager"}


def packed_logprobs(base: Any, batch: Batch, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [B * G, N] of completions, from one row for each prompt.

    Args:
        base: the network without the PEFT wrapper; see :func:`can_pack`.
        batch: B prompts, encoded without answers.
        ids: [B * G, N], the G completions of a prompt one after the other.
        mask: likewise, 1 for real tokens.
        temperature: divides the logits.
    """
    prompts, length = batch["input_ids"].shape
    group, width = len(ids) // prompts, ids.shape[1]
    inputs = dict(batch)
    inputs["input_ids"] = torch.cat([batch["input_ids"], ids.reshape(prompts, -1)], 1)
    inputs["position_ids"] = _positions(base, batch, group, width)
    inputs["attention_mask"] = _mask(base, batch["attention_mask"].bool(), mask.bool().reshape(prompts, group, width))
    if "mm_token_type_ids" in batch:
        kinds = batch["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(prompts, group * width)], 1)
    hidden = base.model(**inputs, use_cache=False).last_hidden_state
    last = hidden[:, length - 1].repeat_interleave(group, 0)[:, None]
    own = hidden[:, length:].reshape(prompts * group, width, -1)
    before, kept = torch.cat([last, own[:, :-1]], 1), mask.bool()
    chosen = token_logprobs(base.get_output_embeddings(), before[kept], ids[kept], temperature)
    return chosen.new_zeros(ids.shape).masked_scatter(kept, chosen)


def _positions(base: Any, batch: Batch, group: int, width: int) -> Tensor:
    """[B, T], or [3, B, T] where the family counts time, height and width apart."""
    mask = batch["attention_mask"]
    step = torch.arange(width, device=mask.device).repeat(group)
    if base.config.model_type in PLAIN:
        place = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return torch.cat([place, mask.sum(1, keepdim=True) + step], 1)
    known = {k: batch[k] for k in ("image_grid_thw", "mm_token_type_ids") if k in batch}
    place, delta = base.model.get_rope_index(batch["input_ids"], attention_mask=mask, **known)
    after = mask.sum(1, keepdim=True) + delta.to(mask.device) + step
    return torch.cat([place, after[None].expand(3, -1, -1)], 2)


def _mask(base: Any, prompt: Tensor, own: Tensor) -> Tensor:
    """What each token may look at, [B, 1, T, T]."""
    prompts, length = prompt.shape
    _, group, width = own.shape
    whole = length + group * width
    seen = torch.zeros(prompts, whole, whole, dtype=torch.bool, device=prompt.device)
    seen[:, :length, :length] = torch.ones_like(seen[0, :length, :length]).tril() & prompt[:, None]
    seen[:, length:, :length] = prompt[:, None]
    causal = torch.ones(width, width, dtype=torch.bool, device=prompt.device).tril()
    for number in range(group):
        part = slice(length + number * width, length + (number + 1) * width)
        seen[:, part, part] = causal & own[:, number, None]
    seen |= torch.eye(whole, dtype=torch.bool, device=prompt.device)  # a row without any would be nan
    if base.config.get_text_config()._attn_implementation == "sdpa":
        return seen[:, None]
    dtype = base.get_input_embeddings().weight.dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
