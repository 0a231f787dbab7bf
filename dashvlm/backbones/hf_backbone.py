"""A Hugging Face ``*ForConditionalGeneration`` network as a backbone.

Loading it is in ``hf``, its weightless half in ``encoder``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import peft
import torch
from torch import Tensor, nn
from transformers.utils.hub import cached_file, extract_commit_hash

from dashvlm.backbones.base import IGNORED, Answers, Backbone, Batch
from dashvlm.backbones.constrained import keep_to_schema
from dashvlm.backbones.continuation import extend, sample, shared_logprobs, token_logprobs
from dashvlm.backbones.encoder import HFEncoder
from dashvlm.backbones.frame_features import encode_frames, for_generation, ready, with_features
from dashvlm.backbones.packed import can_pack, packed_logprobs
from dashvlm.backbones.shared_prefix import answer_states, is_shared, last_states, write


@final
class HFBackbone(Backbone):
    """A Hugging Face ``*ForConditionalGeneration`` network and its encoder.

    Args:
        net: the network.
        encoder: its encoder.
        roles: role -> regular expression of module names.
    """

    def __init__(self, net: nn.Module, encoder: HFEncoder, roles: Mapping[str, str]) -> None:
        super().__init__()
        self.net, self.encoder, self._roles = net, encoder, dict(roles)
        self.hidden_size = int(self.base().config.get_text_config().hidden_size)

    @property
    def roles(self) -> Mapping[str, str]:
        """See :attr:`Backbone.roles`."""
        return self._roles

    @property
    def commit(self) -> str | None:
        """The commit of the hub that the weights are of; None for a folder."""
        assert isinstance(self.encoder, HFEncoder)
        if Path(self.encoder.checkpoint).exists():
            return None
        path = cached_file(self.encoder.checkpoint, "config.json", revision=self.encoder.revision)
        found = extract_commit_hash(path, None)
        return None if found is None else str(found)

    def base(self) -> Any:
        """The network without the PEFT wrapper (adapters stay injected)."""
        return self.net.get_base_model() if isinstance(self.net, peft.PeftModel) else self.net

    def loss(self, batch: Batch) -> Tensor:
        """See :meth:`Backbone.loss`."""
        logits, labels, _ = self._answer_logits(batch)
        return nn.functional.cross_entropy(logits, labels)

    def _answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [K, V] and labels [K] of the K answer tokens, and where they are [B, L - 1].

        The vocabulary is projected at these positions only.
        """
        batch = self.ready(batch)
        if is_shared(batch):
            states, taught, places = answer_states(self.base(), batch)
            return self.base().get_output_embeddings()(states).float(), taught, places
        hidden = self._hidden(batch)[:, :-1]
        labels = batch["labels"][:, 1:]
        kept = labels != IGNORED
        return self.base().get_output_embeddings()(hidden[kept]).float(), labels[kept], kept

    def score(self, batch: Batch, choices: Sequence[str], before: Sequence[str] | None = None) -> Tensor:
        """See :meth:`Backbone.score`. One forward pass whatever the number of choices."""
        assert isinstance(self.encoder, HFEncoder)
        batch = self.ready(batch)
        if before is None:
            hidden = last_states(self.base(), batch)[0] if is_shared(batch) else self._hidden(batch)[:, -1]
            return self._choice_logprobs(hidden, self.encoder.choice_tokens(choices))
        parted = [self.encoder.first_divergence([text + choice for choice in choices]) for text in before]
        device, longest = batch["input_ids"].device, max(len(shared) for shared, _ in parted)
        ids = torch.full((len(parted), longest), self.encoder.tokenizer.pad_token_id, device=device)
        mask = torch.zeros_like(ids)
        for row, (shared, _) in enumerate(parted):
            ids[row, : len(shared)] = torch.tensor(shared, device=device)
            mask[row, : len(shared)] = 1
        last = self._hidden(extend(batch, ids, mask))[
            torch.arange(len(ids), device=device), batch["input_ids"].shape[1] - 1 + mask.sum(1)
        ]
        rows = [self._choice_logprobs(last[i : i + 1], tokens) for i, (_, tokens) in enumerate(parted)]
        return torch.cat(rows)

    def _choice_logprobs(self, hidden: Tensor, ids: Sequence[int]) -> Tensor:
        """Log-probabilities [B, C] of tokens from hidden states [B, H], normalised over them."""
        head = self.base().get_output_embeddings()
        if type(head) is not nn.Linear:  # it carries an adapter
            return head(hidden).float()[:, list(ids)].log_softmax(-1)
        # In fp32 whatever the network runs in: 16-bit logits take few values, and ties distort rankings.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = hidden.float() @ head.weight[list(ids)].float().T
            if head.bias is not None:
                logits = logits + head.bias[list(ids)].float()
        return logits.log_softmax(-1)

    def answers(self, batch: Batch, at: Tensor | None = None, tokens: Tensor | None = None) -> Answers:
        """See :meth:`Backbone.answers`."""
        logits, labels, kept = self._answer_logits(batch)
        chosen = logits.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
        lengths = kept.sum(1)
        mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        likeliest = labels.new_zeros(mask.shape).masked_scatter(mask, logits.detach().argmax(-1))
        choices = None
        if at is not None and tokens is not None:
            choices = logits[lengths.cumsum(0) - lengths + at].gather(1, tokens).log_softmax(-1)
        return Answers(chosen.new_zeros(mask.shape).masked_scatter(mask, chosen), mask, likeliest, choices)

    def sample(
        self, batch: Batch, group: int, max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Backbone.sample`."""
        assert isinstance(self.encoder, HFEncoder)
        fill, batch = self.encoder.tokenizer.pad_token_id, self.ready(batch)
        return sample(self.base(), batch, group, max_new_tokens, temperature, top_p, self.end_tokens(), fill)

    def end_tokens(self) -> list[int]:
        """Every token that ends a text: the tokenizer's, and those of the checkpoint's generation settings."""
        listed = self.base().generation_config.eos_token_id
        more = listed if isinstance(listed, list | tuple) else [] if listed is None else [listed]
        return list(dict.fromkeys([self.encoder.end_token, *map(int, more)]))

    def completion_logprobs(
        self, batch: Batch, ids: Tensor, mask: Tensor, temperature: float = 1.0, shared: bool = True
    ) -> Tensor:
        """See :meth:`Backbone.completion_logprobs`."""
        base, batch = self.base(), self.ready(batch)
        if shared and not (self.training and base.is_gradient_checkpointing):
            return shared_logprobs(base, batch, ids, mask, temperature)
        if shared and can_pack(base):
            return packed_logprobs(base, batch, ids, mask, temperature)
        group = len(ids) // len(batch["input_ids"])
        parts = []
        for g in range(group):
            mine, kept = ids[g::group], mask[g::group].bool()
            hidden = self._hidden(extend(batch, mine, mask[g::group]))[:, -mine.shape[1] - 1 : -1]
            chosen = token_logprobs(base.get_output_embeddings(), hidden[kept], mine[kept], temperature)
            parts.append(chosen.new_zeros(mine.shape).masked_scatter(kept, chosen))
        return torch.stack(parts, 1).flatten(0, 1)

    def encode_frames(self, parts: Sequence[Batch]) -> Mapping[str, Tensor]:
        """See :meth:`Backbone.encode_frames`."""
        return encode_frames(self.base(), parts)

    def with_features(self, prompt: Batch, features: Mapping[str, Tensor], picks: Tensor) -> Batch:
        """See :meth:`Backbone.with_features`."""
        return with_features(self.base(), prompt, features, picks)

    def ready(self, batch: Batch) -> Batch:
        """See :meth:`Backbone.ready`."""
        assert isinstance(self.encoder, HFEncoder)
        return ready(self.base(), self.encoder.apart, batch)

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states [B, L, H] of a whole batch."""
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return self.base().model(**inputs, use_cache=False).last_hidden_state

    def pooled(self, batch: Batch, how: Literal["last", "mean"] | nn.Module) -> Tensor:
        """See :meth:`Backbone.pooled`."""
        hidden, mask = self._hidden(self.ready(batch)), batch["attention_mask"]
        if how == "last":
            # The position of the last real token, whatever the padding side.
            last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        if how == "mean":
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weight).sum(1) / weight.sum(1)
        return how(hidden, mask)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        max_new_tokens: int,
        options: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """See :meth:`Backbone.generate`."""
        if is_shared(batch):  # loaders share where nothing but greedy writing is asked for
            return self.generate_and_score(batch, (), max_new_tokens)[0]
        # Greedy whatever the checkpoint's generation settings say, unless the run says otherwise.
        settings = self.base().generation_config
        neutral = {k: v for k, v in NEUTRAL.items() if getattr(settings, k, None) not in (None, v)}
        kwargs: dict[str, Any] = {**neutral, "do_sample": False, "eos_token_id": self.end_tokens(), **(options or {})}
        if schema is not None:
            assert isinstance(self.encoder, HFEncoder)
            width = int(self.base().get_output_embeddings().weight.shape[0])
            kwargs["num_beams"] = 1  # the grammar follows one text a sample
            kwargs["logits_processor"] = [
                keep_to_schema(schema, self.encoder.tokenizer, width, self.encoder.leads_with_blank)
            ]
        batch = for_generation(self.base(), self.ready(batch))
        ids = self.base().generate(**batch, max_new_tokens=max_new_tokens, **kwargs)
        return self.encoder.decode(ids[:, batch["input_ids"].shape[1] :])

    @torch.no_grad()
    def generate_and_score(
        self, batch: Batch, choices: Sequence[str], max_new_tokens: int, options: Mapping[str, Any] | None = None
    ) -> tuple[list[str], Tensor]:
        """See :meth:`Backbone.generate_and_score`; the pass that generation begins with holds what scores need."""
        found: list[Tensor] = []

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            if not found:
                found.append(out.last_hidden_state[:, -1])

        assert isinstance(self.encoder, HFEncoder)
        if is_shared(batch):
            hidden, prefix, own = last_states(self.base(), self.ready(batch))
            fill = self.encoder.tokenizer.pad_token_id
            ids = write(self.base(), hidden, prefix, own, max_new_tokens, self.end_tokens(), fill)
            scores = self._choice_logprobs(hidden, self.encoder.choice_tokens(choices)) if choices else hidden
            return self.encoder.decode(ids), scores
        hook = self.base().model.register_forward_hook(keep)
        try:
            texts = self.generate(batch, max_new_tokens, options)
        finally:
            hook.remove()
        beams = len(found[0]) // len(texts)
        return texts, self._choice_logprobs(found[0][::beams], self.encoder.choice_tokens(choices))


NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0,
    "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0, "num_beams": 1, "length_penalty": 1.0,
    "min_length": 0, "min_new_tokens": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_eos_token_id": None,
}  # fmt: skip
"""Generation settings that change nothing; checkpoints bring others, such as Qwen2.5-VL's repetition penalty."""
