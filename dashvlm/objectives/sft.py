"""Supervised fine-tuning: cross entropy of the answer's text, score from the answer's logits."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from dashvlm.training.module import VLMModule


@final
class SFTModule(VLMModule):
    """The answer is text. The score is P(last choice) among the choices' first tokens."""

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Cross entropy over answer and end token; the prompt is masked."""
        return self.backbone.loss(batch["inputs"])

    def compute_scores(self, batch: dict[str, Any]) -> Tensor:
        """P(Yes) / (P(Yes) + P(No)) at the position where the answer begins."""
        return self.backbone.score(batch["inputs"], self.task.choices)[:, -1].exp().clamp(0, 1)

    def generate(self, batch: dict[str, Any]) -> list[str] | None:
        """Greedy text, parsed strictly by the task; off with ``objective.generate=false``."""
        if not self.options["generate"]:
            return None
        return self.backbone.generate(batch["inputs"], int(self.options["max_new_tokens"]))
