"""What all objectives share whose answer is text: scores from the answer's logits, generated texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dashvlm.data.datamodule import Stage
from dashvlm.training.module import VLMModule


class TextModule(VLMModule):
    """The answer is text; choices are scored by the probability of being that text."""

    def shares(self, stage: Stage) -> bool:
        """Where all that is asked of a prompt can go on from keys and values of its frames (``shared_clips``)."""
        backbone: Any = self.backbone
        if self.apart or not self.options.get("shared_clips") or getattr(backbone.encoder, "apart", None) is None:
            return False
        if not backbone.encoder.frames_apart:
            return False
        if stage == "train" and any(isinstance(m, torch.nn.Dropout) and m.p for m in backbone.modules()):
            return False  # each row draws its own
        if self.task.answer_prefix or (stage == "train" and backbone.base().is_gradient_checkpointing):
            return False
        plain = {"do_sample": False, "num_beams": 1}
        options = self.options.get("generation") or {}
        asked = {k for k, v in options.items() if v is not None and v != plain.get(k)}
        return stage in ("train", "val", "pairs") or not (asked or self.options.get("constrained"))

    def compute_scores(self, batch: dict[str, Any]) -> Tensor:
        """Probabilities of the choices where the answer begins, one forward pass for all of them.

        Where the task asks for it, other orders of the options are averaged in, or each option's
        whole text is scored instead (mean log-probability a token, one pass an option).
        """
        if batch["options"]:
            return self._by_text(batch)
        scores = self._by_first_token(batch["inputs"], batch["choice_mask"], known=batch.get("first_token"))
        counts = torch.ones(len(scores), 1, device=scores.device)
        for view in batch["reordered"]:
            shown = self._by_first_token(view["inputs"], view["choice_mask"])
            scores.index_add_(0, view["rows"], torch.zeros_like(shown).scatter(1, view["places"], shown))
            counts.index_add_(0, view["rows"], counts.new_ones(len(shown), 1))
        return scores / counts

    def _by_first_token(
        self,
        inputs: dict[str, Tensor],
        mask: Tensor,
        before: list[str] | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        if before is None and self.task.answer_prefix:
            before = [self.task.answer_prefix] * len(mask)
        logprobs = self.backbone.score(inputs, self.task.choices, before) if known is None else known
        return logprobs.masked_fill(~mask, -torch.inf).softmax(-1)

    def _by_text(self, batch: dict[str, Any]) -> Tensor:
        logits = torch.full(batch["choice_mask"].shape, -torch.inf, device=batch["labels"].device)
        for option in batch["options"]:
            values, mask = self.backbone.answer_logprobs(option["inputs"])
            logits[option["rows"], option["number"]] = (values.float() * mask).sum(1) / mask.sum(1)
        return logits.softmax(-1)

    def further_scores(self, batch: dict[str, Any], texts: dict[str, list[str]]) -> dict[str, Tensor]:
        """``reasoned_scores``: of the choices behind the reasoning that was written, for tasks that reason."""
        if not self.task.answer_prefix or "text" not in texts:
            return {}
        before = [self.task.prefix_after_reasoning(text) for text in texts["text"]]
        return {"reasoned_scores": self._by_first_token(batch["inputs"], batch["choice_mask"], before)}

    def generate(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Texts, parsed strictly by the task; off with ``objective.generate=false``.

        ``constrained_text`` is a second decoding that can only write the schema's JSON. Without pixels only what has
        no choices to score is written, once.
        """
        if not self.options["generate"] or (batch["pixels_off"] and self.task.choices):
            return {}
        options = self.options.get("generation") or {}
        if self.task.choices and not self.task.answer_prefix and not batch["options"]:
            # The answer begins where the prompt ends, so the scores come from the pass that writing begins with.
            texts, batch["first_token"] = self.backbone.generate_and_score(
                batch["inputs"], self.task.choices, self.max_new_tokens, options
            )
            made = {"text": texts}
        else:
            made = {"text": self.backbone.generate(batch["inputs"], self.max_new_tokens, options)}
        if self.options.get("constrained") and not batch["pixels_off"]:
            schema = getattr(self.task, "schema", None)
            made["constrained_text"] = self.backbone.generate(batch["inputs"], self.max_new_tokens, options, schema)
        return made

    @property
    def max_new_tokens(self) -> int:
        """Tokens that an answer may take: ``objective.max_new_tokens``, or what the task needs."""
        return int(self.options["max_new_tokens"] or self.task.default_max_new_tokens)
