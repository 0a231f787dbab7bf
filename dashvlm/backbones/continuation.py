"""Completions of a prompt, with the prompt (frames and text) encoded once for all of them.

A group of completions shares its clip and question, which are most of the tokens. The shared pass
keeps the prompt's keys and values and lets each completion go on from there; loss and gradients
equal those of a pass a completion (``tests/test_preference.py``, every family). Under gradient
checkpointing transformers keeps no keys and values in training: there completions share a row (``packed``).

Shapes: B prompts, G completions a prompt, L prompt tokens, N completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from dashvlm.backbones.base import IGNORED, Batch


@dataclass
class Prefix:
    """Encoded prompts, each repeated for its group.

    Attributes:
        cache: keys and values, batch B * G.
        last: hidden state of the last prompt token, [B * G, H].
        mask: attention mask of the prompts, [B * G, L].
        carried: further inputs that the family's network needs with each token.
    """

    cache: Any
    last: Tensor
    mask: Tensor
    carried: dict[str, Tensor]

    def advance(self, base: Any, ids: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """Feed tokens [B * G, n] that end the mask [B * G, L + m]; return their hidden states.

        ``positions`` [B * G, n] of the tokens, where they are not the places in the mask and the family takes them.
        """
        inputs = dict(self.carried)
        if positions is not None and "delta" not in inputs and base.config.model_type != "open_flamingo":
            inputs["position_ids"] = positions
        if "cross_attention_mask" in inputs:
            inputs["cross_attention_mask"] = inputs["cross_attention_mask"].expand(-1, ids.shape[1], -1, -1)
        if "text_time" in inputs:
            inputs["text_time"] = inputs["text_time"].expand(-1, ids.shape[1])
        if "delta" in inputs:  # three equal axes of position for text, counted on from the frames
            place = mask.long().cumsum(-1)[:, -ids.shape[1] :] - 1 + inputs.pop("delta")
            inputs["position_ids"] = place.clamp(min=0)[None].expand(3, -1, -1)
        out = base.model(input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **inputs)
        self.cache = out.past_key_values
        return out.last_hidden_state


def prefill(base: Any, batch: Batch, group: int) -> Prefix:
    """Encode prompts once and repeat what they leave behind ``group`` times."""
    inputs, carried = dict(batch), {}
    if base.config.model_type == "open_flamingo":
        if "pixel_values" in inputs:
            inputs["image_hidden_states"] = base.model.get_image_features(inputs.pop("pixel_values"))
        carried["image_hidden_states"] = inputs["image_hidden_states"]
        carried["text_time"] = (batch["input_ids"] == base.config.image_token_id).sum(1, keepdim=True)
    if "cross_attention_mask" in batch:
        carried["cross_attention_mask"] = batch["cross_attention_mask"][:, -1:]
    out = base.model(**inputs, use_cache=True)
    if getattr(base.model, "rope_deltas", None) is not None:
        carried["delta"] = base.model.rope_deltas.to(batch["input_ids"].device)
    cache = out.past_key_values
    if group > 1:
        cache.batch_repeat_interleave(group)
    repeated = {k: v.repeat_interleave(group, 0) for k, v in carried.items()}
    last = out.last_hidden_state[:, -1].repeat_interleave(group, 0)
    return Prefix(cache, last, batch["attention_mask"].repeat_interleave(group, 0), repeated)


def extend(batch: Batch, ids: Tensor, mask: Tensor) -> Batch:
    """Put tokens [B, N] behind left-padded prompts, as answers whose log-probabilities are wanted.

    Args:
        batch: encoded without answers.
        ids: tokens.
        mask: 1 for those that count; a row's are the first ones.
    """
    out = dict(batch)
    labels = torch.where(mask.bool(), ids, IGNORED)
    out["labels"] = torch.cat([torch.full_like(batch["input_ids"], IGNORED), labels], 1)
    out["input_ids"] = torch.cat([batch["input_ids"], ids], 1)
    out["attention_mask"] = torch.cat([batch["attention_mask"], mask.to(batch["attention_mask"].dtype)], 1)
    if "mm_token_type_ids" in batch:
        kinds = batch["mm_token_type_ids"]
        out["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(ids.shape)], 1)
    if "cross_attention_mask" in batch:
        seen = batch["cross_attention_mask"]
        out["cross_attention_mask"] = torch.cat([seen, seen[:, -1:].expand(-1, ids.shape[1], -1, -1)], 1)
    return out


def shared_logprobs(base: Any, batch: Batch, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [B * G, N] of completions, with each prompt encoded once.

    Args:
        base: the network without the PEFT wrapper.
        batch: B prompts, encoded without answers.
        ids: [B * G, N], the G completions of a prompt one after the other.
        mask: likewise, 1 for real tokens.
        temperature: divides the logits.
    """
    prefix = prefill(base, batch, len(ids) // len(batch["input_ids"]))
    whole = torch.cat([prefix.mask, mask.to(prefix.mask.dtype)], 1)
    hidden = torch.cat([prefix.last[:, None], prefix.advance(base, ids, whole)[:, :-1]], 1)
    kept = mask.bool()
    chosen = token_logprobs(base.get_output_embeddings(), hidden[kept], ids[kept], temperature)
    return chosen.new_zeros(ids.shape).masked_scatter(kept, chosen)


def token_logprobs(head: nn.Module, hidden: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [K] of tokens [K] from hidden states [K, H]."""
    logits = head(hidden).float() / temperature
    return logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)


@torch.no_grad()
def sample(
    base: Any,
    batch: Batch,
    group: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    ends: Sequence[int],
    fill: int,
) -> tuple[Tensor, Tensor]:
    """Draw completions.

    Args:
        base: the network without the PEFT wrapper, in evaluation mode.
        batch: B prompts, encoded without answers.
        group: completions a prompt.
        max_new_tokens: length limit.
        temperature: of the draw.
        top_p: nucleus; 1 draws from the whole distribution.
        ends: tokens that end a completion; the first drawn belongs to it.
        fill: token behind the end.

    Returns:
        Tokens [B * G, N] and a mask [B * G, N]; a completion without its end token was cut off.
    """
    prefix = prefill(base, batch, group)
    warp = LogitsProcessorList()
    if temperature != 1.0:
        warp.append(TemperatureLogitsWarper(temperature))
    if top_p < 1.0:
        warp.append(TopPLogitsWarper(top_p))
    head, banned = base.get_output_embeddings(), getattr(base.config, "image_token_id", None)
    hidden, mask = prefix.last, prefix.mask
    alive = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    stops = torch.tensor(list(ends), device=hidden.device)
    drawn, real = [], []
    for _ in range(max_new_tokens):
        logits = head(hidden).float()
        if banned is not None and banned < logits.shape[-1]:
            logits[:, banned] = -torch.inf  # a picture cannot be written
        scores = warp(torch.empty(len(logits), 0, dtype=torch.long, device=logits.device), logits)
        token = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
        token = torch.where(alive, token, fill)
        drawn.append(token)
        real.append(alive)
        mask = torch.cat([mask, alive[:, None].to(mask.dtype)], 1)
        alive = alive & ~torch.isin(token, stops)
        if not alive.any():
            break
        hidden = prefix.advance(base, token[:, None], mask)[:, -1]
    return torch.stack(drawn, 1), torch.stack(real, 1).long()
