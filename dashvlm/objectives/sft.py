"""Supervised fine-tuning: cross entropy of the answer's text, scores from the answer's logits."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from dashvlm.errors import ConfigError
from dashvlm.training.module import VLMModule


@final
class SFTModule(VLMModule):
    """The answer is text; choices are scored by the probability of being that text."""

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross entropy over answer and end token; the prompt is masked.

        With ``gate_penalty`` each raw attention gate above 0.5 adds its excess, as the BVPI project
        does for OpenFlamingo.
        """
        loss = self.backbone.loss(batch["inputs"])
        penalty = float(self.options.get("gate_penalty") or 0.0)
        if penalty:
            gates = [p for n, p in self.backbone.named_parameters() if n.endswith("attn_gate.weight")]
            if not gates:
                raise ConfigError(
                    "objective.gate_penalty needs a backbone with attention gates", do="use model=openflamingo"
                )
            loss = loss + penalty * torch.stack([(g.mean() - 0.5).clamp(min=0) for g in gates]).sum()
        return loss

    def compute_scores(self, batch: dict[str, Any]) -> Tensor:
        """Probabilities of the choices where the answer begins, one forward pass for all of them.

        Where the task asks for it, other orders of the options are averaged in, or each option's
        whole text is scored instead (mean log-probability a token, one pass an option).
        """
        if batch["options"]:
            return self._by_text(batch)
        scores = self._by_first_token(batch["inputs"], batch["choice_mask"])
        counts = torch.ones(len(scores), 1, device=scores.device)
        for view in batch["reordered"]:
            shown = self._by_first_token(view["inputs"], view["choice_mask"])
            scores.index_add_(0, view["rows"], torch.zeros_like(shown).scatter(1, view["places"], shown))
            counts.index_add_(0, view["rows"], counts.new_ones(len(shown), 1))
        return scores / counts

    def _by_first_token(self, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
        logprobs = self.backbone.score(inputs, self.task.choices)
        return logprobs.masked_fill(~mask, -torch.inf).softmax(-1)

    def _by_text(self, batch: dict[str, Any]) -> Tensor:
        logits = torch.full(batch["choice_mask"].shape, -torch.inf, device=batch["labels"].device)
        for option in batch["options"]:
            values, mask = self.backbone.answer_logprobs(option["inputs"])
            logits[option["rows"], option["number"]] = (values.float() * mask).sum(1) / mask.sum(1)
        return logits.softmax(-1)

    def generate(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Texts, parsed strictly by the task; off with ``objective.generate=false``.

        ``constrained_text`` is a second decoding that can only write the schema's JSON.
        """
        if not self.options["generate"]:
            return {}
        length, options = int(self.options["max_new_tokens"]), self.options.get("generation") or {}
        made = {"text": self.backbone.generate(batch["inputs"], length, options)}
        if self.options.get("constrained"):
            schema = getattr(self.task, "schema", None)
            made["constrained_text"] = self.backbone.generate(batch["inputs"], length, options, schema)
        return made
