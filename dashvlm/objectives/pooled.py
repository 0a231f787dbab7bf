"""A classifier on a pooled representation of the prompt; no text is written.

Architecture of the SmolVLM2 crash-risk classifier (yunzhong1105/crash-risk-detection-vlm), with
the prompt ending at the same token in training and in use: there, the training prompt contained
the label itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from dashvlm.backbones.adapters import role_of
from dashvlm.backbones.base import Backbone
from dashvlm.config.imports import configurable
from dashvlm.errors import ConfigError
from dashvlm.tasks.base import Task
from dashvlm.training.module import VLMModule


class AttentionPool(nn.Module):
    """Weighted mean of hidden states with one learned query. [B, L, H], [B, L] -> [B, H]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool the real positions."""
        logits = self.query(hidden.to(self.query.weight.dtype)).squeeze(-1)
        weight = logits.masked_fill(mask == 0, -torch.inf).softmax(-1)
        return (hidden * weight.unsqueeze(-1).to(hidden.dtype)).sum(1)


@final
@configurable("objective")
class PooledModule(VLMModule):
    """Binary cross entropy or focal loss on one logit."""

    supervision = "prompt"

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        options: Mapping[str, Any],
        optim: Mapping[str, Any],
        seed: int,
    ) -> None:
        super().__init__(backbone, task, options, optim, seed)
        width, kind = backbone.hidden_size, options["head"]
        for name, parameter in backbone.named_parameters():
            if role_of(backbone, name) == "lm_head":
                parameter.requires_grad_(False)  # no gradient reaches it; distributed training insists on one
        if len(task.choices) != 2:
            raise ConfigError("objective=pooled needs a task with two choices", got=task.name)
        # The head is fp32 whatever the backbone is: it is small and its gradients are not.
        self.head: nn.Module
        if kind == "linear":
            self.head = nn.Linear(width, 1)
        elif kind == "mlp":
            inner = int(options["head_width"])
            self.head = nn.Sequential(
                nn.Linear(width, inner),
                nn.ReLU(),
                nn.Dropout(float(options["head_dropout"])),
                nn.Linear(inner, 1),
            )
        else:
            raise ConfigError("unknown objective.head", got=str(kind), do="use linear or mlp")
        pooling = options["pooling"]
        if pooling not in ("last", "mean", "attention"):
            raise ConfigError("unknown objective.pooling", got=str(pooling), do="last, mean or attention")
        self.pool: Any = AttentionPool(width) if pooling == "attention" else pooling

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """One logit a sample, [B]."""
        pooled = self.backbone.pooled(batch["inputs"], self.pool)
        # Outside autocast, so that the head stays in fp32; trainer.precision=bf16-true casts it all the same.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled.to(next(self.head.parameters()).dtype)).squeeze(-1).float()

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Class-weighted binary cross entropy, or focal loss (Lin et al., ICCV 2017)."""
        logits, target = self.logits(batch), batch["labels"].float()
        weight = torch.where(target > 0, float(self.options["positive_weight"]), 1.0)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if self.options["loss"] == "focal":
            wrong = (target - logits.sigmoid()).abs()
            losses = losses * wrong ** float(self.options["focal_gamma"])
        elif self.options["loss"] != "bce":
            raise ConfigError("unknown objective.loss", got=str(self.options["loss"]), do="bce or focal")
        return (weight * losses).mean()

    def compute_scores(self, batch: dict[str, Any]) -> Tensor:
        """The sigmoid of the logit, and what it leaves to the other choice."""
        positive = self.logits(batch).sigmoid()
        return torch.stack([1 - positive, positive], dim=1)
