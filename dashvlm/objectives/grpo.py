"""Group relative policy optimisation: completions of one prompt are judged against each other.

Shao et al., "DeepSeekMath", arXiv 2402.03300; ``loss=dr_grpo`` after Liu et al., arXiv 2503.20783.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dashvlm.backbones.base import Backbone
from dashvlm.config.imports import configurable
from dashvlm.objectives.reference import Reference
from dashvlm.objectives.rewards import grade, in_form, read, weights_of
from dashvlm.objectives.text import TextModule
from dashvlm.tasks.base import Task


@dataclass
class Rollout:
    """Completions of a batch of prompts; B prompts, G completions each, N tokens at most.

    Attributes:
        ids: tokens [B * G, N].
        mask: 1 for real tokens.
        advantages: [B * G].
        reference: log-probabilities under the reference, or None.
        old: log-probabilities under the policy that drew them; None until they are known.
    """

    ids: Tensor
    mask: Tensor
    advantages: Tensor
    reference: Tensor | None
    old: Tensor | None = None


def group_advantages(rewards: Tensor, scaled: bool = True) -> Tensor:
    """Rewards [B, G] minus their group's mean, over its standard deviation (plus 1e-4) if ``scaled``."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scaled else centred


def grpo_loss(logprobs: Tensor, rollout: Rollout, options: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped policy loss with a KL penalty.

    Args:
        logprobs: of the completions under the policy, [B * G, N].
        rollout: the completions.
        options: ``clip_low, clip_high, beta, loss`` (``grpo``: mean over a completion's tokens, then over
            completions; ``bnpo``: over all tokens; ``dr_grpo``: over all places there could be), ``max_new_tokens``.

    Returns:
        The loss, and what is worth a curve: ``kl``, ``clipped``.
    """
    mask = rollout.mask.to(logprobs.dtype)
    old = logprobs.detach() if rollout.old is None else rollout.old
    ratio = (logprobs - old).exp()
    low, high = 1 - float(options["clip_low"]), 1 + float(options["clip_high"])
    gain = rollout.advantages[:, None]
    losses = -torch.min(ratio * gain, ratio.clamp(low, high) * gain)
    kl = torch.zeros_like(losses)
    if rollout.reference is not None:
        apart = rollout.reference - logprobs
        kl = apart.exp() - apart - 1  # k3 of Schulman's "Approximating KL divergence": unbiased, never negative
        losses = losses + float(options["beta"]) * kl
    if options["loss"] == "grpo":
        loss = ((losses * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    elif options["loss"] == "bnpo":
        loss = (losses * mask).sum() / mask.sum().clamp(min=1)
    else:
        loss = (losses * mask).sum() / (len(mask) * int(options["max_new_tokens"]))
    total = mask.sum().clamp(min=1)
    clipped = ((ratio < low) & (gain < 0)) | ((ratio > high) & (gain > 0))
    return loss, {"kl": (kl.detach() * mask).sum() / total, "clipped": (clipped * mask).sum() / total}


@final
@configurable("objective")
class GRPOModule(TextModule):
    """Draws completions, rewards them, and makes those likelier that beat their group."""

    supervision = "prompt"
    evaluate_before_training = True

    def __init__(
        self, backbone: Backbone, task: Task, options: Mapping[str, Any], optim: Mapping[str, Any], seed: int
    ) -> None:
        super().__init__(backbone, task, options, optim, seed)
        kind = str(options["reference"]) if float(options["beta"]) else "none"
        self.reference = Reference(backbone, kind)
        self.weights = weights_of(task, options["rewards"] or {})
        self.steps_per_batch = int(options["iterations"])
        self._rollout: Rollout | None = None
        self._drawn: list[Tensor] = []  # tokens of the batches of the step in work (bnpo)

    def on_start(self) -> None:
        """Keep the reference."""
        self.reference.remember()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step; completions are drawn anew after ``iterations`` steps."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx % self.steps_per_batch == 0:
            self._rollout = None

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Draw and reward completions (or take those of the last step again), and make a step on them."""
        options = {**self.options, "max_new_tokens": self.max_new_tokens}
        rollout = self._rollout or self.roll_out(batch)
        temperature, shared = float(options["temperature"]), bool(options["shared_prefix"])
        logprobs = self.backbone.completion_logprobs(batch["inputs"], rollout.ids, rollout.mask, temperature, shared)
        if rollout.old is None and self.steps_per_batch > 1:
            rollout.old = logprobs.detach()
        self._rollout = rollout
        loss, curves = grpo_loss(logprobs, rollout, options)
        self._curves(curves, len(batch["index"]))
        if options["loss"] == "bnpo" and self._trainer is not None:
            # How many tokens a step draws is known when all its batches were drawn: see on_before_optimizer_step.
            tokens = rollout.mask.sum().double()
            self._drawn.append(tokens)
            return loss * (tokens / self._places(rollout)).to(loss.dtype)
        return loss

    def _places(self, rollout: Rollout) -> int:
        """Tokens that the completions of a batch could have, the same for every batch."""
        return len(rollout.mask) * self.max_new_tokens

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Normalise ``bnpo`` by the tokens of the whole step, over all its batches and processes."""
        if not self._drawn:
            return
        assert self._rollout is not None
        parts, places = len(self._drawn) * self.trainer.world_size, self._places(self._rollout)
        total = torch.stack(self._drawn).sum()
        self._drawn = []
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_((parts * places / total).to(parameter.grad.dtype))

    def roll_out(self, batch: dict[str, Any]) -> Rollout:
        """Draw ``num_generations`` completions a prompt, reward them, and look them up in the reference."""
        options, group = self.options, int(self.options["num_generations"])
        temperature, top_p = float(options["temperature"]), float(options["top_p"])
        training = self.backbone.training
        self.backbone.eval()
        ids, mask = self.backbone.sample(batch["inputs"], group, self.max_new_tokens, temperature, top_p)
        self.backbone.train(training)
        texts = self.backbone.encoder.decode(ids)
        parts = []
        for number, text in enumerate(texts):
            row = number // group
            parts.append(grade(read(self.task, text, batch["observation"][row], batch["targets"][row]), self.weights))
        rewards = torch.tensor([sum(p.values()) for p in parts], device=ids.device).view(-1, group)
        reference = None
        if self.reference.kind != "none":
            with self.reference.use_reference_weights():
                shared = bool(options["shared_prefix"])
                reference = self.backbone.completion_logprobs(batch["inputs"], ids, mask, temperature, shared)
        ended = mask.sum(1) < ids.shape[1]
        stops = torch.tensor(self.backbone.end_tokens(), device=ids.device)
        ended |= torch.isin(ids.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1), stops)
        curves = {name: torch.tensor([p[name] for p in parts]).mean() for name in parts[0]}
        self._curves(
            {
                "reward": rewards.mean(), "reward_std": rewards.std(1).mean(),
                "zero_variance_groups": (rewards.std(1) == 0).float().mean(),
                "completion_tokens": mask.sum(1).float().mean(), "cut_off": 1 - ended.float().mean(),
                **{f"reward_{name}": value for name, value in curves.items()},
            },
            len(rewards),
        )  # fmt: skip
        advantages = group_advantages(rewards, bool(options["scale_rewards"])).flatten()
        return Rollout(ids, mask, advantages, reference)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Reward completions of the validation split, written as the test split's are (``generation``)."""
        if not len(batch["index"]):
            return
        texts = self.backbone.generate(batch["inputs"], self.max_new_tokens, self.options.get("generation") or {})
        for index, text, observation, target in zip(
            batch["index"].tolist(), texts, batch["observation"], batch["targets"], strict=True
        ):
            made = read(self.task, text, observation, target)
            reward = sum(grade(made, self.weights).values())
            self._seen.append((index, (reward, float(in_form(self.task, made))), 0 if target is not None else -1))

    def log_validation(self, values: list[Any], targets: list[Any]) -> dict[str, float]:
        """Mean reward and share of completions in the form that is asked for."""
        rewards, formed = zip(*values, strict=True)
        return {"reward": sum(rewards) / len(rewards), "format_rate": sum(formed) / len(formed)}

    def measure(self, texts: list[Any], observation: list[Any], targets: list[Any]) -> dict[str, list[float | None]]:
        """Columns with the rewards of the texts that were written for the test split."""
        out: dict[str, list[float | None]] = {}
        for row, (text, view, target) in enumerate(zip(texts, observation, targets, strict=True)):
            known = target is not None and isinstance(text, str)
            parts: dict[str, float | None] = dict.fromkeys(["reward", "format", *(f"reward_{n}" for n in self.weights)])
            if known:
                made = read(self.task, text, view, target)
                graded = grade(made, self.weights)
                parts |= {f"reward_{n}": v for n, v in graded.items()}
                parts |= {"reward": sum(graded.values()), "format": float(in_form(self.task, made))}
            for name, value in parts.items():
                out.setdefault(name, [None] * row).append(value)
        return {name: column for name, column in out.items() if any(v is not None for v in column)}

    def _curves(self, values: Mapping[str, Tensor], size: int) -> None:
        if self._trainer is not None:
            for name, value in values.items():
                self.log(f"train/{name}", value.float(), batch_size=size)
