"""Fit a run: length, validation, resume, and the best weights at the end."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from dashvlm.backbones.adapters import load_trained
from dashvlm.data.datamodule import ClipDataModule
from dashvlm.data.samples import balanced_part
from dashvlm.engine.build import label_balance
from dashvlm.engine.prepare import Data
from dashvlm.errors import ConfigError, DataError
from dashvlm.safety import signals
from dashvlm.training.callbacks import Checkpoint, build_callbacks
from dashvlm.training.checkpoints import BEST, SealedCheckpoints, load_weights, resume_point, verify_seal
from dashvlm.training.module import VLMModule
from dashvlm.training.precision import precision_options

log = logging.getLogger(__name__)


def build_trainer(cfg: Mapping[str, Any], **kwargs: Any) -> pl.Trainer:
    """Build a Lightning trainer from the ``trainer`` group.

    Raises:
        ConfigError: if this machine has not what the group asks for.
    """
    options = cfg["trainer"]
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # what is left in 32 bit may use TF32
    precision = precision_options(options["precision"], str(options["strategy"]))
    plugins = [SealedCheckpoints(), *precision.pop("plugins", [])]
    try:
        return pl.Trainer(
            accelerator=options["accelerator"],
            devices=options["devices"],
            strategy=options["strategy"],
            plugins=plugins,
            **precision,
            log_every_n_steps=int(options["log_every_n_steps"]),
            enable_model_summary=False,
            enable_progress_bar=_progress(cfg),
            use_distributed_sampler=False,  # the samplers know the processes themselves
            num_sanity_val_steps=0,
            **kwargs,
        )
    except (MisconfigurationException, ValueError) as error:
        asked = ", ".join(f"trainer.{k}={options[k]}" for k in ("accelerator", "devices", "strategy", "precision"))
        raise ConfigError(
            f"{asked}: not on this machine", got=str(error).strip().splitlines()[0],
            do="use trainer=cpu, or trainer=auto with as many trainer.devices as there are (nvidia-smi lists GPUs)",
        ) from error  # fmt: skip


def fit(
    cfg: Mapping[str, Any], data: Data, module: VLMModule, loggers: list[Any], folder: Path
) -> tuple[pl.Trainer, float]:
    """Fit (or resume), then put the best weights into the module."""
    options, train = cfg["trainer"], data.samples["train"]
    if not train:
        raise DataError("no training clip is left", do="see quarantine.csv in the run's folder")
    taught = {split: module.usable(samples) for split, samples in data.samples.items()}
    if cfg["data"].get("val_limit"):
        taught["val"] = balanced_part(taught["val"], int(cfg["data"]["val_limit"]))
    train = taught["train"]
    if not train:
        raise DataError(
            f"no training clip can be taught with objective={cfg['objective']['name']}",
            do="preference training needs pairs: data.pairs=FILE, rows with chosen and rejected, or for task=caption "
            "task.pairs=wrong_positions",
        )
    accumulate = int(options["accumulate_grad_batches"])
    per_epoch = -(-len(train) // int(cfg["data"]["batch_size"])) * module.steps_per_batch
    steps = options["max_steps"]
    if steps is None:
        steps = -(-per_epoch * int(options["max_epochs"]) // accumulate)
    batches = steps * accumulate
    val_every = 0
    if taught["val"]:
        wanted = options["val_every_n_steps"]
        val_every = min(int(wanted) * accumulate if wanted else per_epoch, batches)
        val_every = -(-val_every // accumulate) * accumulate  # validate between steps, not within
    checkpoints, module.run_name = folder / "checkpoints", folder.name
    trainable = bool(module.trained_state()) and bool(steps) and not options["skip_fit"]
    trainer = build_trainer(
        cfg,
        logger=loggers,
        callbacks=build_callbacks(cfg["callbacks"], checkpoints, val_every, accumulate, _progress(cfg), per_epoch),
        max_epochs=1,
        val_check_interval=val_every or None,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if val_every else 0,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=options["gradient_clip_val"],
        enable_checkpointing=False,
    )
    if not trainable:
        log.info("nothing to train (peft.method=frozen, or no steps): the model is evaluated as it is")
        return trainer, 0.0
    loaders = ClipDataModule(
        taught, data.store, module.collate, cfg["data"], int(cfg["seed"]), batches, module.steps_per_batch, accumulate,
        data.encoded, [module.length(s) for s in train] if cfg["data"].get("length_window") else None,
    )  # fmt: skip
    resume, done = resume_point(checkpoints) or (None, 0)
    if resume is not None:
        loaders.start = done
        log.info("resuming at batch %d of %d", done, batches)
    log.info("training on %s; %d steps in %s", label_balance(module.task, train), steps, options["precision"])
    started = time.perf_counter()
    module.train()  # from_pretrained hands out networks in evaluation mode
    with signals.noted():
        trainer.fit(module, datamodule=loaders, ckpt_path=resume, weights_only=True)
    best = checkpoints / BEST
    point = next(c for c in trainer.callbacks if isinstance(c, Checkpoint))  # type: ignore[attr-defined]
    if point.best is not None:
        verify_seal(best)  # the weights that validation chose; without them the same command trains again
    if val_every and best.exists() and not _ends_better(cfg, trainer, module, loaders, batches % val_every):
        load_trained(module, load_weights(best), str(best))
    return trainer, time.perf_counter() - started


def _ends_better(
    cfg: Mapping[str, Any], trainer: pl.Trainer, module: VLMModule, loaders: ClipDataModule, rest: int
) -> bool:
    """Validate steps that came after the last validation; say whether they beat the best."""
    point = next(c for c in trainer.callbacks if isinstance(c, Checkpoint))  # type: ignore[attr-defined]
    if not rest or trainer.fit_loop.epoch_loop.batch_progress.current.completed < loaders.num_batches:
        return False  # validated at its last step, or stopped early by a validation
    trainer.validate(module, dataloaders=loaders.val_dataloader(), verbose=False)
    value = trainer.callback_metrics.get(cfg["callbacks"]["checkpoint"]["monitor"])
    if value is None or point.best is None or not point.sign * float(value) > point.best:
        return False
    point.best, point.best_step = point.sign * float(value), trainer.global_step
    return True


def best_validation(trainer: pl.Trainer, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The best validation value; what an optimising sweeper may look at (never the test split)."""
    point = next((c for c in trainer.callbacks if isinstance(c, Checkpoint)), None)  # type: ignore[attr-defined]
    best = None if point is None or point.best is None else point.sign * point.best
    return {
        "monitor": cfg["callbacks"]["checkpoint"]["monitor"],
        "best": best,
        "step": point.best_step if point else 0,
    }


def validation_alarms(trainer: pl.Trainer, cfg: Mapping[str, Any]) -> list[str]:
    """Say where validation could not choose a checkpoint, or was asked for and did not happen."""
    point = next((c for c in trainer.callbacks if isinstance(c, Checkpoint)), None)  # type: ignore[attr-defined]
    if point is None or not trainer.global_step:
        return []
    found = []
    if point.undefined:
        kept = "the last weights are kept" if point.best is None else "these validations chose nothing"
        found.append(f"{point.monitor} was undefined in {point.undefined} validations (one class only?): {kept}")
    if (cfg["callbacks"].get("early_stopping") or None) and not point.val_every:
        found.append("callbacks.early_stopping had nothing to look at: there is no validation split")
    warmup = float(cfg["optim"]["warmup"])
    if warmup >= 1 and warmup >= trainer.global_step:
        found.append(f"optim.warmup={warmup:g} is not shorter than the run's {trainer.global_step} steps")
    return found


def _progress(cfg: Mapping[str, Any]) -> bool:
    wanted = cfg["trainer"]["progress"]
    return sys.stderr.isatty() if wanted is None else bool(wanted)
