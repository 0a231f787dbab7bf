"""Direct preference optimisation on pairs of a better and a worse answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dashvlm.backbones.base import Answers, Backbone
from dashvlm.config.imports import configurable
from dashvlm.data.clip import Sample
from dashvlm.data.datamodule import Stage
from dashvlm.objectives.reference import Reference
from dashvlm.objectives.text import TextModule
from dashvlm.tasks.base import Task
from dashvlm.training.collate import Collate, Supervision


def dpo_loss(gain: Tensor, lengths: Tensor, beta: float, variant: str) -> tuple[Tensor, Tensor]:
    """The loss of B pairs and their margins (chosen minus rejected), both [B].

    Args:
        gain: log-probability of each answer under the policy minus under the reference, [2 B], chosen ones first.
        lengths: tokens of each answer, [2 B].
        beta: strength of the tie to the reference.
        variant: ``sigmoid`` (Rafailov et al., NeurIPS 2023), or ``length_normalised``: per token, so that
            a longer answer wins nothing by its length (TRL's ``sigmoid_norm``).
    """
    if variant == "length_normalised":
        gain = gain / lengths
    chosen, rejected = gain.chunk(2)
    margin = chosen - rejected
    return -logsigmoid(beta * margin), margin


@final
@configurable("objective")
class DPOModule(TextModule):
    """Makes the better answer of a pair likelier than the worse one, relative to a reference."""

    supervision = "pair"
    evaluate_before_training = True

    def __init__(
        self, backbone: Backbone, task: Task, options: Mapping[str, Any], optim: Mapping[str, Any], seed: int
    ) -> None:
        super().__init__(backbone, task, options, optim, seed)
        self.reference = Reference(backbone, str(options["reference"]))

    def on_start(self) -> None:
        """Keep the reference."""
        self.reference.remember()

    def usable(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples that have a pair."""
        return [s for s in samples if self.task.pair(s) is not None]

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """The mean loss of a batch of pairs; logs margin, accuracy and lengths."""
        losses, margin, found = self._judge(batch["inputs"])
        size = len(margin)
        lengths = found.mask.sum(1).float().chunk(2)
        for name, value in {
            "preference_accuracy": _won(margin).mean(), "margin": margin.mean(),
            "chosen_tokens": lengths[0].mean(), "rejected_tokens": lengths[1].mean(),
        }.items():  # fmt: skip
            self.log(f"train/{name}", value.detach(), batch_size=size)
        return losses.mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Judge the pairs of a batch."""
        if not len(batch["index"]):
            return
        losses, margin, _ = self._judge(batch["inputs"])
        pairs = zip(losses.double().cpu().tolist(), _won(margin).double().cpu().tolist(), strict=True)
        self._seen += [(i, pair, 0) for i, pair in zip(batch["index"].tolist(), pairs, strict=True)]

    def log_validation(self, values: list[Any], targets: list[Any]) -> dict[str, float]:
        """Mean loss and share of pairs whose better answer wins."""
        losses, won = zip(*values, strict=True)
        return {"preference_accuracy": sum(won) / len(won), "loss": sum(losses) / len(losses)}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Rows of a test batch; of a batch of pairs, how they were judged."""
        if not batch.get("pairs"):
            return super().predict_step(batch, batch_idx)
        if len(batch["index"]):
            _, margin, found = self._judge(batch["inputs"])
            sums, lengths = (found.logprobs * found.mask).sum(1), found.mask.sum(1)
            chosen, rejected = sums.chunk(2)
            tokens = [part.tolist() for part in lengths.chunk(2)]
            for row, index in enumerate(batch["index"].tolist()):
                self.rows.append(
                    {
                        "index": index, "margin": float(margin[row]), "preferred": float(_won(margin)[row]),
                        "likelier": float(_won(chosen - rejected)[row]),
                        "chosen_tokens": tokens[0][row], "rejected_tokens": tokens[1][row],
                    }
                )  # fmt: skip
        return None

    def collate(self, stage: Stage) -> Collate:
        """Pairs in training and validation; prompts, with no answer in reach, for the rows."""
        prefix = str(self.options.get("prefix") or "")
        supervision: Supervision = "pair" if stage in ("train", "val", "pairs") else "prompt"
        return Collate(self.task, self.backbone.encoder, stage, supervision, prefix, share=self.shares(stage))

    def _judge(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Answers]:
        """Losses and margins [B] of pairs [2 B], and what the policy makes of the answers."""
        found = self.backbone.answers(inputs)
        gain = (found.logprobs * found.mask).sum(1)
        if self.reference.kind != "none":
            with self.reference.use_reference_weights():
                known = self.backbone.answers(inputs)
            gain = gain - (known.logprobs * known.mask).sum(1)
        losses, margin = dpo_loss(gain, found.mask.sum(1), float(self.options["beta"]), str(self.options["variant"]))
        return losses, margin, found


def _won(margin: Tensor) -> Tensor:
    """1 where the better answer wins, 0.5 for a tie."""
    return torch.where(margin == 0, 0.5, (margin > 0).float())
