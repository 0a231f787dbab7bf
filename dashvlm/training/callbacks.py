"""Checkpoints that resume to the bit, and early stopping."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar

from dashvlm.errors import CheckpointError

log = logging.getLogger(__name__)


class Checkpoint(pl.Callback):
    """Writes ``last.ckpt`` every few steps and ``best.ckpt`` when validation improves.

    Lightning's own ModelCheckpoint would also save between a step and the validation that belongs
    to it; a run resumed from there skips that validation and may end with another best. Here the
    checkpoint of such a step is written after its validation. Files are replaced atomically.

    Args:
        folder: where to write.
        every_n_steps: optimiser steps between two ``last.ckpt``.
        monitor: metric that decides what is best.
        mode: ``max`` or ``min``.
        val_every: batches between validations, 0 if there are none.
        accumulate: batches an optimiser step.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int,
        monitor: str,
        mode: str,
        val_every: int,
        accumulate: int,
    ) -> None:
        self.folder, self.every, self.monitor = folder, every_n_steps * accumulate, monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.val_every, self.accumulate = val_every, accumulate
        self.best: float | None = None
        self.best_step = 0
        self.undefined = 0  # validations whose metric is undefined, for example ROC AUC of one class
        self.session = f"{os.getpid()}-{time.time_ns()}"
        self.started = time.perf_counter()

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
        if done % self.every == 0 and done % self.accumulate == 0 and not validates:
            self._save(trainer, "last")

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
        self._save(trainer, "last")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"best": self.best, "best_step": self.best_step, "undefined": self.undefined}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.undefined = state_dict.get("undefined", 0)

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.ckpt", weights_only=name == "best")
        if trainer.is_global_zero:
            path = self.folder / SESSIONS / f"{self.session}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{time.perf_counter() - self.started:.3f}\n", encoding="utf-8")


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


def resume_point(path: Path) -> int | None:
    """Return the number of batches that a checkpoint has behind it; None without a usable one, or without its best."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        done, best = int(progress["processed"]), state["callbacks"].get("Checkpoint", {}).get("best")
    except Exception as error:
        log.warning("%s cannot be read (%s); training starts over", path, type(error).__name__)
        path.rename(path.with_suffix(".unreadable"))
        return None
    if best is not None and not path.with_name("best.ckpt").exists():
        # The steps before cannot be validated again, so no other weights may stand for the best.
        log.warning("%s is gone; training starts over", path.with_name("best.ckpt"))
        path.unlink()
        return None
    return done


def load_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """Read the trained parameters of a checkpoint without running anything in it.

    Raises:
        CheckpointError: if it cannot be read safely.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read",
            got=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do="a checkpoint with code in it is refused; train again or name another file",
        ) from error
    return dict(state)


def build_callbacks(
    options: Mapping[str, Any],
    folder: Path,
    val_every: int,
    accumulate: int,
    progress: bool,
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
        )
    )
    return made
