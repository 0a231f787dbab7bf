"""When checkpoints are written so that a run resumes to the bit, and early stopping."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, TQDMProgressBar

from dashvlm.safety import signals


class Checkpoint(pl.Callback):
    """Writes ``last.ckpt`` every few steps and ``best.ckpt`` when validation improves.

    Lightning's own ModelCheckpoint would also save between a step and the validation that belongs
    to it; a run resumed from there skips that validation and may end with another best. Here the
    checkpoint of such a step is written after its validation.

    A signal ends training with a checkpoint after the optimiser step at hand. During a validation it ends it at
    once: the validation's own checkpoint would come after it, and resuming repeats the steps since the last one.

    Args:
        folder: where to write.
        every_n_steps: optimiser steps between two ``last.ckpt``.
        monitor: metric that decides what is best.
        mode: ``max`` or ``min``.
        val_every: batches between validations, 0 if there are none.
        accumulate: batches an optimiser step.
        keep: also keep the trained weights of each validation as ``step-NUMBER.ckpt``: ``all``, or the newest so many.
        epoch: batches between them where there is no validation.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int,
        monitor: str,
        mode: str,
        val_every: int,
        accumulate: int,
        keep: int | str | None = None,
        epoch: int = 0,
    ) -> None:
        self.keep, self.epoch = keep, epoch
        self.folder, self.every, self.monitor = folder, every_n_steps * accumulate, monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.val_every, self.accumulate = val_every, accumulate
        self.best: float | None = None
        self.best_step = 0
        self.undefined = 0  # validations whose metric is undefined, for example ROC AUC of one class
        self.session = f"{os.getpid()}-{time.time_ns()}"
        self.started = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back, which Lightning has taken for itself."""
        signals.install()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save, unless the validation of this very step comes next."""
        done = batch_idx + 1
        validates = self.val_every and done % self.val_every == 0
        # Completions that are used for several steps cannot be drawn again from the middle of them.
        whole = done % (self.accumulate * int(getattr(pl_module, "repeats", 1))) == 0
        stops = whole and _asked_to_stop(trainer)
        if validates:
            return
        if self.keep and not self.val_every and self.epoch and done % self.epoch == 0:
            self._keep(trainer)
        if stops or (done % self.every == 0 and done % self.accumulate == 0):
            self._save(trainer, "last")
        if stops:
            raise signals.Interrupted(signals.received() or signal.SIGTERM)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        """Stop in the middle of a long validation."""
        if _asked_to_stop(trainer):
            raise signals.Interrupted(signals.received() or signal.SIGTERM)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the best, then the last, which remembers the best's value."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and not math.isfinite(float(value)):
            self.undefined += 1
        elif value is not None:
            now = self.sign * float(value)
            if self.best is None or now > self.best:
                self.best, self.best_step = now, trainer.global_step
                self._save(trainer, "best")
        if self.keep:
            self._keep(trainer)
        self._save(trainer, "last")
        if _asked_to_stop(trainer):
            raise signals.Interrupted(signals.received() or signal.SIGTERM)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best": self.best, "best_step": self.best_step, "undefined": self.undefined}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.undefined = state_dict.get("undefined", 0)

    def _keep(self, trainer: pl.Trainer) -> None:
        """Write the weights of this step, and drop the oldest ones above ``keep``."""
        self._save(trainer, f"{STEP}{trainer.global_step:06d}")
        if trainer.is_global_zero and self.keep != "all":
            for path in sorted(self.folder.glob(f"{STEP}*.ckpt"))[: -int(self.keep or 1)]:
                path.unlink()

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.ckpt", weights_only=name != "last")
        if trainer.is_global_zero:
            path = self.folder / SESSIONS / f"{self.session}.txt"
            with contextlib.suppress(OSError):  # a stopwatch must not cost a checkpoint
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"{time.perf_counter() - self.started:.3f}\n", encoding="utf-8")


def _asked_to_stop(trainer: pl.Trainer) -> bool:
    """Whether any process of a run was asked to stop; all of them agree."""
    asked = signals.received() is not None
    return bool(trainer.strategy.reduce_boolean_decision(asked, all=False)) if trainer.world_size > 1 else asked


STEP = "step-"
"""What the names of checkpoints begin with that hold the weights of one validation."""
SESSIONS = "sessions"
"""Beside the checkpoints: a file for each session with the seconds it had trained for at its last checkpoint."""


def earlier_seconds(trainer: pl.Trainer) -> float:
    """Seconds that interrupted sessions of a run trained for, up to their last checkpoint."""
    point = next((c for c in trainer.callbacks if isinstance(c, Checkpoint)), None)  # type: ignore[attr-defined]
    if point is None:
        return 0.0
    spent = 0.0
    for path in (point.folder / SESSIONS).glob("*.txt"):
        if path.stem != point.session:
            with contextlib.suppress(OSError, ValueError):
                spent += float(path.read_text(encoding="utf-8"))
    return spent


class PatientStopping(EarlyStopping):
    """Early stopping that passes over validations whose metric is undefined."""

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or math.isfinite(float(value)):
            super()._run_early_stopping_check(trainer)


def build_callbacks(
    options: Mapping[str, Any],
    folder: Path,
    val_every: int,
    accumulate: int,
    progress: bool,
    epoch: int = 0,
) -> list[pl.Callback]:
    """Build the callbacks of a training run; the checkpoint comes last, to save the others' state."""
    made: list[pl.Callback] = []
    stop = options.get("early_stopping")
    if stop and val_every:
        made.append(
            PatientStopping(
                stop["monitor"], mode=stop["mode"], patience=int(stop["patience"]),
                min_delta=float(stop["min_delta"]), check_on_train_epoch_end=False,
            )
        )  # fmt: skip
    made.append(LearningRateMonitor("step"))
    if progress:
        made.append(TQDMProgressBar(refresh_rate=5))
    point = options["checkpoint"]
    made.append(
        Checkpoint(
            folder,
            int(point["every_n_steps"]),
            point["monitor"],
            point["mode"],
            val_every,
            accumulate,
            point.get("keep"),
            epoch,
        )
    )
    return made
