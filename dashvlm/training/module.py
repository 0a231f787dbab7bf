"""The Lightning module that all objectives extend.

It owns the training step's bookkeeping: randomness as a function of the step, the check that the
loss is finite, optimisers by role, checkpoints of trained parameters only, scores for validation
and rows for ``predictions.parquet``. What is minimised and how a score is made is the objective's.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from dashvlm.backbones.adapters import load_trained, role_of
from dashvlm.backbones.base import Backbone
from dashvlm.data.clip import Messages, Sample
from dashvlm.data.datamodule import Stage
from dashvlm.errors import TrainingError
from dashvlm.tasks.base import Task, observe
from dashvlm.training.collate import Collate, Supervision
from dashvlm.training.optim import build_optimizer, parameter_groups, schedule
from dashvlm.training.stretches import CollateStretch, batches

Row = dict[str, Any]


class VLMModule(pl.LightningModule, ABC):
    """A backbone, a task and an optimiser.

    Args:
        backbone: with adapters attached.
        task: what is asked.
        options: the ``objective`` group.
        optim: the ``optim`` group.
        seed: of dropout and sampling; each step seeds itself from it.
    """

    supervision: Supervision = "answer"
    """What training batches carry: the answer as text, a pair of answers, or the prompt alone."""
    evaluate_before_training = False
    """Whether a run also measures what it started from."""
    steps_per_batch = 1
    """How many steps are made on one batch."""

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        options: Mapping[str, Any],
        optim: Mapping[str, Any],
        seed: int,
    ) -> None:
        super().__init__()
        self.backbone, self.task = backbone, task
        self.options, self.optim, self.seed = dict(options), dict(optim), seed
        self.strict_loading = False  # checkpoints hold trained parameters; load_trained is strict
        self._seen: list[tuple[int, Any, int]] = []
        self.rows: list[Row] = []
        self.run_name = ""  # of the folder that checkpoints belong to
        self.truncated: set[str] = set()  # clips whose taught answers were cut to objective.max_tokens
        self.apart = False  # each question by itself, whatever shares; while latency is taken
        self.longest: int | None = None  # tokens of the longest sample of the batch in work

    # -- what an objective defines ------------------------------------------------------------

    @abstractmethod
    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """The scalar to minimise, from a training batch."""

    @abstractmethod
    def compute_scores(self, batch: dict[str, Any]) -> Tensor:
        """Probabilities [B, C] of the task's choices, 0 for those a sample lacks, from an evaluation batch."""

    def generate(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Texts for an evaluation batch by name of their column; empty if the objective writes none."""
        return {}

    def further_scores(self, batch: dict[str, Any], texts: dict[str, list[str]]) -> dict[str, Tensor]:
        """Probabilities [B, C] beside :meth:`compute_scores`, by name of their column."""
        return {}

    def measure(self, texts: list[Any], observation: list[Any], targets: list[Any]) -> dict[str, list[float | None]]:
        """Columns that the objective adds to the table of the test split."""
        return {}

    def usable(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples that can be taught."""
        return list(samples)

    def length(self, sample: Sample) -> int:
        """How long a training sample is, roughly, in characters; a frame counts as much as two lines of text."""
        chat = self.task.messages(observe(sample, sample.times_s))
        taught = self.task.training_answer(sample, 0) if self.supervision == "answer" else ""
        return len(as_text(chat)) + len(taught) + 200 * len(sample.times_s)

    def on_start(self) -> None:
        """Called with the weights that training starts from, in a resumed and in an evaluated run too."""

    # -- batches -------------------------------------------------------------------------------

    def collate(self, stage: Stage) -> Collate | CollateStretch:
        """The collate function of a stage's loader.

        Answers are encoded where they are taught, and for the validation loss of tasks that write text.
        """
        if stage == "stream":
            return CollateStretch(self.task, self.backbone.encoder)
        wanted = stage == "train" or (stage == "val" and not self.task.choices)
        prefix = str(self.options.get("prefix") or "")
        taught = self.supervision if wanted else "prompt"
        share = self.shares(stage)
        limit, truncate = self.options.get("max_tokens"), self.options.get("too_long") == "truncate"
        return Collate(self.task, self.backbone.encoder, stage, taught, prefix, limit, truncate, share)

    def shares(self, stage: Stage) -> bool:
        """Whether questions about one clip share its frames in a stage."""
        return False

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors; observations stay as they are (Lightning would take them apart)."""
        if "parts" in batch:
            moved = [self.transfer_batch_to_device(p, device, dataloader_idx) for p in batch["parts"]]
            rest = {k: v for k, v in batch.items() if k != "parts"}
            return {"parts": moved, **super().transfer_batch_to_device(rest, device, dataloader_idx)}
        kept = {k: batch[k] for k in ("observation", "targets") if k in batch}
        rest = {k: v for k, v in batch.items() if k not in kept}
        whole: Any = {**super().transfer_batch_to_device(rest, device, dataloader_idx), **kept}
        for view in (whole, *whole.get("reordered", ()), *whole.get("options", ())):
            if "inputs" in view:
                view["inputs"] = self.backbone.ready(view["inputs"])
        return whole

    # -- training ------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make randomness a function of (seed, step, process), so that a resume needs no state."""
        torch.manual_seed((self.seed * 1_000_003 + batch_idx) * 4099 + self.global_rank)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Texts that are drawn, not searched for, are the same each time."""
        torch.manual_seed((self.seed * 1_000_003 + batch_idx) * 4099 + 1 + self.global_rank)

    def share(self, batch: dict[str, Any], reasoning: float = 1.0, answer: float = 1.0) -> Tensor | float:
        """The factor that makes a batch's mean over tokens its part of the mean over the whole optimiser step.

        Lightning divides by the number of accumulated batches, and ddp by the number of processes.

        Args:
            batch: with ``tokens``, and ``step_tokens`` where several batches make a step.
            reasoning: weight of tokens before the answer.
            answer: weight of the answer's tokens.
        """
        if self._trainer is None or "tokens" not in batch:
            return 1.0
        weights = torch.tensor([reasoning, answer], dtype=torch.float64, device=batch["tokens"].device)
        mine = batch["tokens"] @ weights
        step = batch.get("step_tokens", batch["tokens"]) @ weights
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(step)
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return (parts * mine / step).float()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step; stops with the clips' names if the loss is not finite."""
        self.longest = int(batch["inputs"]["input_ids"].shape[1])
        loss = self.compute_loss(batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.global_step}",
                got=f"clips {', '.join(batch['clip_ids'])}",
                do="lower optim.lr, use trainer.precision=32-true, or look at these clips with "
                "`python -m dashvlm.inspect`",
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["clip_ids"]))
        if self.options.get("max_tokens"):
            cut = batch.get("truncated", [])
            self.log("train/truncated", float(len(cut)), batch_size=len(batch["clip_ids"]))
            self.truncated |= set(cut)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW (or an 8-bit one) with learning rates by role, stepped by the schedule."""
        groups = parameter_groups(self.named_parameters(), lambda n: role_of(self.backbone, n), self.optim)
        if not groups:
            return None
        optimizer = build_optimizer(groups, self.optim)
        factor = schedule(
            self.optim["schedule"],
            int(self.trainer.estimated_stepping_batches),
            float(self.optim["warmup"]),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # -- validation and rows -------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the last validation."""
        self._seen = []

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score a batch, or measure the answers' loss where the task has no choices."""
        if not len(batch["index"]):
            return
        if self.task.choices:
            scores, targets = self.compute_scores(batch).double().cpu().tolist(), batch["labels"].tolist()
        else:
            values, mask = self.backbone.answer_logprobs(batch["inputs"])
            scores = (-(values * mask).sum(1) / mask.sum(1)).double().cpu().tolist()
            targets = [0] * len(scores)
        self._seen += list(zip(batch["index"].tolist(), scores, targets, strict=True))

    def on_validation_epoch_end(self) -> None:
        """Log metrics over the whole split, each sample once whatever the number of processes."""
        observation = {i: (s, y) for i, s, y in _gather(self._seen) if y >= 0}
        if not observation:
            return
        scores, targets = zip(*observation.values(), strict=True)
        for number, (name, value) in enumerate(self.log_validation(list(scores), list(targets)).items()):
            self.log(f"val/{name}", value, prog_bar=number == 0, rank_zero_only=False)

    def log_validation(self, values: list[Any], targets: list[Any]) -> dict[str, float]:
        """Metrics of the whole validation split, from what its batches left in ``_seen``."""
        return self.task.evaluation.monitor(np.array(targets), np.array(values, np.float64))

    def on_predict_epoch_start(self) -> None:
        """Start a new table."""
        self.rows = []

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Make a row a sample; a sample that cannot be read becomes a failed row."""
        if "parts" in batch:  # anchors that share frames
            for part in batches(self.backbone, batch):
                self.predict_step(part, batch_idx)
            return
        self.rows += [{"index": i, "status": "failed"} for i in batch["failed"]]
        if not len(batch["index"]):
            return
        start = time.perf_counter()
        prefix = "" if self.task.choices else str(self.options.get("prefix") or "")
        written_now = {} if "picks" in batch else self.generate(batch)  # over a whole clip only risks are wanted
        texts = {name: [f"{prefix} {t}".strip() for t in written] for name, written in written_now.items()}
        found: dict[str, Tensor] = {}
        if self.task.choices:
            found = {"scores": self.compute_scores(batch), **self.further_scores(batch, texts)}
        scores = {name: values.double().cpu().tolist() for name, values in found.items()}
        took = (time.perf_counter() - start) / len(batch["observation"])
        for row, (index, observation) in enumerate(zip(batch["index"].tolist(), batch["observation"], strict=True)):
            made: Row = {"index": index, "frame_times_s": batch["frame_times_s"][row], "latency_s": took}
            made["prompt"] = as_text(self.task.messages(observation))
            made |= {name: values[row][: self.task.num_choices(observation)] for name, values in scores.items()}
            if prefix and texts:
                made["prefix"] = prefix
            for name, written in texts.items():
                answer, status = self.task.parse(written[row], observation)
                kind = name.removesuffix("text")
                made |= {name: written[row], f"{kind}answer": answer, f"{kind}status": status}
            self.rows.append(made)

    def on_predict_epoch_end(self) -> None:
        """Bring the rows of all processes together, each sample once, in order."""
        self.rows = sorted({row["index"]: row for row in _gather(self.rows)}.values(), key=lambda r: r["index"])

    # -- checkpoints ---------------------------------------------------------------------------

    def trained_state(self) -> dict[str, Tensor]:
        """Everything that was trained, by name."""
        return {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what was trained."""
        checkpoint["run"], checkpoint["truncated"] = self.run_name, sorted(self.truncated)
        trained = set(self.trained_state())
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load it strictly, before Lightning's own lenient loading."""
        self.truncated |= set(checkpoint.get("truncated") or ())
        load_trained(self, checkpoint["state_dict"], "checkpoint")


def as_text(chat: Messages) -> str:
    """A chat as one text; pictures are marked."""
    return "".join(part.get("text", "[frame]") for turn in chat for part in turn["content"])


def sample_row(sample: Sample) -> Row:
    """The part of a prediction row that is known before any model runs."""
    return {
        "sample_id": sample.sample_id,
        "clip_id": sample.clip.clip_id,
        "group": sample.clip.group,
        "split": sample.clip.split,
        "path": sample.clip.path,
        "horizon_s": sample.horizon_s,
        "reference_s": sample.reference_s,
        "requested_times_s": list(sample.times_s),
        "num_padded": sample.num_padded,
        "problem": str(sample.clip.extra["failed"]) if "failed" in sample.clip.extra else None,
    } | {f"slice_{k}": str(v) for k, v in (sample.clip.extra.get("slices") or {}).items()}


def _gather(rows: list[Any]) -> list[Any]:
    """Concatenate lists over all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
