"""Questions about one clip: its frames are read once, each question goes on from there.

Prompts show frames first, so what the prompts about a clip have in common is nearly all of their tokens. A batch of
this form has a row for each question, and pixels or features of each clip once; ``clip_of`` [B] says whose question a
row is, and ``prefix`` [G] how many tokens the rows of a clip begin with together. Losses, gradients and scores equal
those of a pass for each row (``tests/test_shared_prefix.py``, every family that keeps keys and values).

Shapes: B rows, G clips, P prefix tokens, S suffix tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dashvlm.backbones.base import IGNORED, Batch
from dashvlm.backbones.continuation import Prefix, prefill

OWN = ("clip_of", "prefix")
BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "labels")
"""Inputs with a value for each token of each row."""


def is_shared(batch: Batch) -> bool:
    """Whether a batch is of this form."""
    return "clip_of" in batch


def common_prefix(batch: Batch, clip_of: Tensor, clips: int) -> Tensor:
    """How many tokens the rows of each clip begin with together, [G]; each row keeps at least one of its own.

    Args:
        batch: whole rows, padded on either side.
        clip_of: whose row it is, [B].
        clips: how many there are.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    rows = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
    taught = batch.get("labels")
    found = []
    for clip in range(clips):
        mine = [i for i, c in enumerate(clip_of.tolist()) if c == clip]
        most = min(len(rows[i]) for i in mine) - 1
        if taught is not None:  # the token before the answer is the row's own
            most = min([most, *(int((taught[i][mask[i]] != IGNORED).nonzero()[0]) - 1 for i in mine)])
        first = rows[mine[0]]
        same = next((k for k in range(most) if any(rows[i][k] != first[k] for i in mine)), most)
        found.append(same)
    return torch.tensor(found)


def split(base: Any, batch: Batch) -> tuple[Prefix, dict[str, Tensor]]:
    """Read the clips, and hand out the rows' own tokens.

    Args:
        base: the network without the PEFT wrapper.
        batch: of this form.

    Returns:
        The clips' prefix, a row for each of the batch's; and ``ids``, ``mask`` [B, S] of the rows' own tokens,
        ``whole`` [B, P + S], the mask of both, and with answers ``labels`` [B, S].
    """
    clip_of, length = batch["clip_of"], batch["prefix"]
    device, clips = clip_of.device, len(length)
    begins = batch["attention_mask"].argmax(1)  # of left-padded rows
    counts = batch["attention_mask"].sum(1)
    widest = int(length.max())
    first = torch.tensor([int((clip_of == c).nonzero()[0]) for c in range(clips)], device=device)
    place = torch.arange(widest, device=device) - (widest - length)[:, None]  # left-padded
    real = place >= 0
    at = (begins[first][:, None] + place.clamp(min=0)).clamp(max=batch["input_ids"].shape[1] - 1)
    inputs = {k: v for k, v in batch.items() if k not in (*OWN, *BY_TOKEN)}
    inputs |= {k: batch[k][first].gather(1, at) for k in BY_TOKEN[:3] if k in batch}
    inputs["attention_mask"] = inputs["attention_mask"] * real
    prefix = prefill(base, inputs, 1)
    own = counts - length[clip_of]
    step = torch.arange(int(own.max()), device=device)
    mask = step < own[:, None]
    at = (begins + length[clip_of])[:, None] + step
    at = at.clamp(max=batch["input_ids"].shape[1] - 1)
    made = {"ids": batch["input_ids"].gather(1, at), "mask": mask}
    if "labels" in batch:
        made["labels"] = batch["labels"].gather(1, at).masked_fill(~mask, IGNORED)
    prefix.cache.batch_select_indices(clip_of)
    prefix = Prefix(prefix.cache, prefix.last[clip_of], prefix.mask[clip_of],
                    {k: v[clip_of] for k, v in prefix.carried.items()})  # fmt: skip
    made["whole"] = torch.cat([prefix.mask, mask.to(prefix.mask.dtype)], 1)
    return prefix, made


def answer_states(base: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [K, H] before each of the K answer tokens, these tokens [K], and where they are [B, S]."""
    prefix, own = split(base, batch)
    hidden = prefix.advance(base, own["ids"], own["whole"])
    hidden = torch.cat([prefix.last[:, None], hidden[:, :-1]], 1)
    kept = own["labels"] != IGNORED
    return hidden[kept], own["labels"][kept], kept


def last_states(base: Any, batch: Batch) -> tuple[Tensor, Prefix, dict[str, Tensor]]:
    """Hidden states [B, H] of each row's last token, and what it takes to go on."""
    prefix, own = split(base, batch)
    hidden = prefix.advance(base, own["ids"], own["whole"])
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, own["mask"].sum(1) - 1], prefix, own


@torch.no_grad()
def write(
    base: Any, hidden: Tensor, prefix: Prefix, own: dict[str, Tensor], max_new_tokens: int, ends: list[int], fill: int
) -> Tensor:
    """The likeliest token after each, [B, N], from where :func:`last_states` stopped; ``fill`` behind an end."""
    head, banned = base.get_output_embeddings(), getattr(base.config, "image_token_id", None)
    stops, drawn = torch.tensor(ends, device=hidden.device), []
    alive = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    mask, free = own["whole"], (~own["mask"]).sum(1)
    # What is written follows each row's last token: places that shorter rows left free go to the front.
    width = mask.shape[1]
    turned = (torch.arange(width, device=mask.device) - free[:, None]) % width
    mask = mask.gather(1, turned)
    for layer in prefix.cache.layers:
        at = turned[:, None, :, None]
        layer.keys, layer.values = (t.gather(2, at.expand(-1, t.shape[1], -1, t.shape[3]))
                                    for t in (layer.keys, layer.values))  # fmt: skip
    positions = (width - free)[:, None]
    for _ in range(max_new_tokens):
        logits = head(hidden).float()
        if banned is not None and banned < logits.shape[-1] and base.config.model_type == "open_flamingo":
            logits[:, banned] = -torch.inf  # as its own generate does
        token = torch.where(alive, logits.argmax(-1), fill)
        drawn.append(token)
        alive = alive & ~torch.isin(token, stops)
        if not alive.any():
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        hidden = prefix.advance(base, token[:, None], mask, positions)[:, -1]
        positions = positions + 1
    return torch.stack(drawn, 1)
