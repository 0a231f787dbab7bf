"""Supervised fine-tuning: cross entropy of the answer's text, with or without reasoning before it."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from dashvlm.config.imports import configurable
from dashvlm.errors import ConfigError
from dashvlm.objectives.text import TextModule


@final
@configurable("objective")
class SFTModule(TextModule):
    """Next-token prediction of the answer and its end token; the prompt is masked."""

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross entropy, its terms for reasoned answers, and a penalty on open gates.

        With ``gate_penalty`` each raw attention gate above 0.5 adds its excess, as the BVPI project
        does for OpenFlamingo.
        """
        loss = (
            self._reasoned(batch) if "answer_at" in batch else self.backbone.loss(batch["inputs"]) * self.share(batch)
        )
        penalty = float(self.options.get("gate_penalty") or 0.0)
        if penalty:
            gates = [p for n, p in self.backbone.named_parameters() if n.endswith("attn_gate.weight")]
            if not gates:
                raise ConfigError(
                    "objective.gate_penalty needs a backbone with attention gates", do="use model=openflamingo"
                )
            loss = loss + penalty * torch.stack([(g.mean() - 0.5).clamp(min=0) for g in gates]).sum()
        return loss

    def _reasoned(self, batch: dict[str, Any]) -> Tensor:
        """Weighted cross entropy of reasoning and answer, and alpha * (1 - P(right answer)).

        The project of frankafan/dashcam-collisions added alpha times the *parsed* teacher-forced answer's
        error, a constant without a gradient. Its value is logged as ``train/parsed_penalty``; what trains
        is the probability of the right choice where the answer stands.
        """
        at, tokens, right = batch["answer_at"], batch["answer_tokens"], batch["labels"]
        found = self.backbone.answers(batch["inputs"], at, tokens)
        assert found.choices is not None
        answer = torch.arange(found.mask.shape[1], device=at.device) >= at[:, None]
        weight = torch.where(answer, float(self.options["answer_weight"]), float(self.options["reasoning_weight"]))
        weight = weight * found.mask
        loss = -(found.logprobs * weight).sum() / weight.sum()
        loss = loss * self.share(batch, float(self.options["reasoning_weight"]), float(self.options["answer_weight"]))
        chance = found.choices.exp().gather(1, right[:, None]).mean()
        alpha = float(self.options["accuracy_penalty"])
        self._report(batch, chance, found.likeliest, found.mask, alpha or 3.0)
        return loss + alpha * (1 - chance)

    def _report(self, batch: dict[str, Any], chance: Tensor, likeliest: Tensor, mask: Tensor, alpha: float) -> None:
        """Log P(right answer) and the project's own penalty: 2 alpha for no answer, alpha for a wrong one."""
        texts = self.backbone.encoder.decode(likeliest.masked_fill(~mask, 0)) if self._trainer is not None else []
        if not texts:
            return
        read = [
            self.task.parse(text, observation)[0] for text, observation in zip(texts, batch["observation"], strict=True)
        ]
        truth = batch["labels"].tolist()
        parsed = sum(2 * alpha if r is None else alpha * (r != y) for r, y in zip(read, truth, strict=True)) / len(read)
        size = len(truth)
        self.log("train/p_right", chance.detach(), batch_size=size)
        self.log("train/parsed_penalty", parsed, batch_size=size)
