"""One run: prepare, fit, score, write. ``python -m dashvlm.run FOLDER`` runs a folder's config.

The folder ends with ``result.json`` (or ``failed.json``), ``predictions.parquet``, ``adapter/``,
``trained.safetensors``, ``checkpoints/``, ``plots/``, ``metrics/metrics.csv`` and ``job.log``.
Imports no Hydra.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from dashvlm.backbones.adapters import load_trained
from dashvlm.build import (
    Data,
    build_module,
    evaluation_samples,
    label_balance,
    part_census,
    prepare_data,
    read_config,
)
from dashvlm.data.clip import Sample
from dashvlm.data.datamodule import ClipDataModule
from dashvlm.data.manifest import leakage_report, write_ledgers
from dashvlm.data.samples import feasibility
from dashvlm.errors import ConfigError, DashVLMError, DataError, OutOfMemory, TrainingError
from dashvlm.metrics.evaluate import evaluate
from dashvlm.report.plots import plot_run
from dashvlm.training.callbacks import Checkpoint, build_callbacks, load_weights, resume_point
from dashvlm.training.loggers import build_loggers, finish
from dashvlm.training.memory import explained, is_out_of_memory
from dashvlm.training.module import VLMModule, sample_row

log = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "peft", "pytorch-lightning", "av")


def run(cfg: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Train and evaluate one configuration.

    Args:
        cfg: resolved configuration of plain values.
        folder: where everything is written; a broken run in it is resumed.

    Returns:
        The content of ``result.json``.

    Raises:
        DashVLMError: for what the user can mend.
    """
    started = time.perf_counter()
    pl.seed_everything(int(cfg["seed"]), verbose=False)
    data = prepare_data(cfg)
    report = _ledgers(cfg, data, folder)
    decode_s = time.perf_counter() - started
    loggers = build_loggers(cfg, folder.name, folder)
    module = results = rows = None
    images: dict[str, Path] = {}
    try:
        try:
            module = build_module(cfg)
            trainer, fit_s = _fit(cfg, data, module, loggers, folder)
            rows = score(cfg, data, module, trainer)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            training = module is None or module.training
            longest = module.longest if module is not None else None
            raise explained(error, cfg, longest, _memory_there_is(), training) from error
        if trainer.is_global_zero:
            _export(module, folder)
            results = write_results(cfg, data, rows, folder, module)
            results |= {
                "leakage": report,
                "validation": _best(trainer, cfg),
                "seconds": {"data": decode_s, "fit": fit_s, "all": time.perf_counter() - started},
                "steps": int(trainer.global_step),
                "peak_memory_gb": _peak_memory_gb(),
            }
            images = plot_run(rows, results, folder / "plots", data.store)
            write_json(folder / "result.json", results)
    finally:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            finish(loggers, results, rows, images)
    return results or {}


def build_trainer(cfg: Mapping[str, Any], **kwargs: Any) -> pl.Trainer:
    """Build a Lightning trainer from the ``trainer`` group."""
    options = cfg["trainer"]
    return pl.Trainer(
        accelerator=options["accelerator"],
        devices=options["devices"],
        strategy=options["strategy"],
        precision=options["precision"],
        log_every_n_steps=int(options["log_every_n_steps"]),
        enable_model_summary=False,
        enable_progress_bar=_progress(cfg),
        use_distributed_sampler=False,  # the samplers know the processes themselves
        num_sanity_val_steps=0,
        **kwargs,
    )


def score(cfg: Mapping[str, Any], data: Data, module: VLMModule, trainer: pl.Trainer | None = None) -> pd.DataFrame:
    """Score the test split at all horizons, and once more with the pixels switched off.

    Returns:
        A row a sample, in order, none missing; see :func:`dashvlm.metrics.evaluate.evaluate`.
    """
    trainer = trainer or build_trainer(cfg, logger=False, enable_checkpointing=False)
    samples = evaluation_samples(cfg, data)
    if not samples:
        raise DataError(
            f"data={cfg['data']['name']}: no clip to evaluate on",
            got=f"test {len(data.samples['test'])}, val {len(data.samples['val'])}",
            do="give data.splits.test a share, or add clips",
        )
    loaders = ClipDataModule(
        {}, data.store, module.collate(training=True), module.collate(training=False), cfg["data"], int(cfg["seed"])
    )
    loaders.trainer = trainer
    primary = float(cfg["data"]["horizon_s"])
    rows = _predict(trainer, module, loaders, samples)
    table = pd.DataFrame([{**sample_row(s), **r} for s, r in zip(samples, rows, strict=True)])
    first = [s for s in samples if s.horizon_s == primary]
    with _without_generation(module):
        blind = _predict(trainer, module, loaders, first, blank=True)
    table["primary"] = table["horizon_s"] == primary
    table["target"] = pd.array([module.task.target(s) for s in samples], dtype="Int64")
    off = {s.sample_id: r.get("score") for s, r in zip(first, blind, strict=True)}
    table["pixels_off_score"] = table["sample_id"].map(off).astype(float)
    for column in ("text", "answer", "status", "latency_s", "frame_times_s"):
        if column not in table:
            table[column] = None
    table["answer"] = table["answer"].astype("Int64")
    return table.drop(columns="index")


def write_results(
    cfg: Mapping[str, Any], data: Data, rows: pd.DataFrame, folder: Path, module: VLMModule
) -> dict[str, Any]:
    """Write ``predictions.parquet`` and compute every number from it."""
    rows.to_parquet(folder / "predictions.parquet", index=False)
    numbers = evaluate(pd.read_parquet(folder / "predictions.parquet"), int(cfg["seed"]))
    if data.test_split != "test":
        numbers["alarms"].append("there is no test split: these are validation numbers")
    options = cfg["data"]
    points = [(int(options["num_frames"]), float(options["frame_interval_s"]))]
    return numbers | {
        "run_id": folder.name,
        "status": "done",
        "split": data.test_split,
        "overrides": (cfg.get("sweep") or {}).get("overrides", []),
        "sweep_id": (cfg.get("sweep") or {}).get("id"),
        "feasibility": feasibility(data.manifest.split(data.test_split), options, points)
        if options["sampling"] == "anchored"
        else [],
        "parameters": part_census(module),
        "quarantined": len(data.manifest.quarantine),
        "commit": _commit(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _fit(
    cfg: Mapping[str, Any], data: Data, module: VLMModule, loggers: list[Any], folder: Path
) -> tuple[pl.Trainer, float]:
    """Fit (or resume), then put the best weights into the module."""
    options, train = cfg["trainer"], data.samples["train"]
    if not train:
        raise DataError("no training clip is left", do="see quarantine.csv in the run's folder")
    accumulate = int(options["accumulate_grad_batches"])
    per_epoch = -(-len(train) // int(cfg["data"]["batch_size"]))
    steps = int(options["max_steps"] or 0)
    if steps <= 0:
        steps = max(-(-per_epoch * int(options["max_epochs"]) // accumulate), 1)
    batches = steps * accumulate
    val_every = 0
    if data.samples["val"]:
        wanted = options["val_every_n_steps"]
        val_every = min(int(wanted) * accumulate if wanted else per_epoch, batches)
        val_every = -(-val_every // accumulate) * accumulate  # validate between steps, not within
    checkpoints = folder / "checkpoints"
    trainable = bool(module.trained_state()) and not options["skip_fit"]
    trainer = build_trainer(
        cfg,
        logger=loggers,
        callbacks=build_callbacks(cfg["callbacks"], checkpoints, val_every, accumulate, _progress(cfg)),
        max_epochs=1,
        val_check_interval=val_every or None,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if val_every else 0,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=options["gradient_clip_val"],
        enable_checkpointing=False,
    )
    if not trainable:
        log.info("nothing to train (peft.method=frozen): zero-shot evaluation")
        return trainer, 0.0
    loaders = ClipDataModule(
        data.samples, data.store, module.collate(training=True), module.collate(training=False),
        cfg["data"], int(cfg["seed"]), batches,
    )  # fmt: skip
    last = checkpoints / "last.ckpt"
    done = resume_point(last)
    if done is not None:
        loaders.start = done
        log.info("resuming at batch %d of %d", done, batches)
    log.info("training on %s; %d steps", label_balance(train), steps)
    started = time.perf_counter()
    module.train()  # from_pretrained hands out networks in evaluation mode
    resume = str(last) if done is not None else None
    trainer.fit(module, datamodule=loaders, ckpt_path=resume, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    best = checkpoints / "best.ckpt"
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
    if value is None or point.best is None or point.sign * float(value) <= point.best:
        return False
    point.best, point.best_step = point.sign * float(value), trainer.global_step
    return True


def _best(trainer: pl.Trainer, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The best validation value; what an optimising sweeper may look at (never the test split)."""
    point = next((c for c in trainer.callbacks if isinstance(c, Checkpoint)), None)  # type: ignore[attr-defined]
    best = None if point is None or point.best is None else point.sign * point.best
    return {
        "monitor": cfg["callbacks"]["checkpoint"]["monitor"],
        "best": best,
        "step": point.best_step if point else 0,
    }


def _predict(
    trainer: pl.Trainer,
    module: VLMModule,
    loaders: ClipDataModule,
    samples: list[Sample],
    blank: bool = False,
) -> list[dict[str, Any]]:
    trainer.predict(module, loaders.eval_dataloader(samples, blank), return_predictions=False)
    return module.rows


@contextlib.contextmanager
def _without_generation(module: VLMModule) -> Iterator[None]:
    before = module.options.get("generate")
    module.options["generate"] = False
    yield
    module.options["generate"] = before


def _export(module: VLMModule, folder: Path) -> None:
    """Write the trained parameters, and the adapter in PEFT's own format."""
    state = {n: p.cpu().contiguous() for n, p in module.trained_state().items()}
    temporary = folder / "trained.tmp"
    save_file(state, temporary)
    temporary.replace(folder / "trained.safetensors")
    if isinstance(module.backbone.net, peft.PeftModel):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about vocabulary sizes that cannot be looked up offline
            module.backbone.net.save_pretrained(str(folder / "adapter"))


def _ledgers(cfg: Mapping[str, Any], data: Data, folder: Path) -> dict[str, Any]:
    report = leakage_report(data.manifest, int(cfg["data"]["split_seed"]))
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        write_ledgers(data.manifest, report, folder)
    log.info(
        "%s: clips %s, groups %s, %d quarantined; a row split would share groups with %.0f%% of the test clips",
        data.manifest.name, report["clips"], report["groups"], len(data.manifest.quarantine),
        100 * report["row_split_would_share"],
    )  # fmt: skip
    return report


def _progress(cfg: Mapping[str, Any]) -> bool:
    wanted = cfg["trainer"]["progress"]
    return sys.stderr.isatty() if wanted is None else bool(wanted)


def _memory_there_is() -> float | None:
    """Memory of the device in 10^9 bytes; None on a CPU, where it is shared with everything else."""
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None


def _peak_memory_gb() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def _commit() -> str | None:
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip() or None


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(k): _plain(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(v) for v in node]
    if isinstance(node, np.generic):
        node = node.item()
    return None if isinstance(node, float) and not np.isfinite(node) else node


def quiet_libraries() -> None:
    """Silence messages of libraries about themselves; what concerns the user is ours to say."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for text in (
        ".*is_gradient_checkpointing.*", ".*treespec.*", ".*predict returned None.*", ".*in eval mode at the start.*",
        ".*does not have many workers.*", ".*dataloader is not resumable.*", ".*smaller than the logging interval.*",
        ".*Experiment logs directory.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", text)


def main(folder: Path) -> int:
    """Run a folder's configuration; log to its ``job.log``; return the exit code."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    handler = logging.FileHandler(folder / ("job.log" if rank == 0 else f"job.rank{rank}.log"))
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[handler, logging.StreamHandler(sys.stdout)] if rank == 0 else [handler],
        force=True,
    )
    logging.captureWarnings(True)
    for noisy in ("httpx", "pytorch_lightning.utilities.rank_zero", "fsspec", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    quiet_libraries()
    import faulthandler

    faulthandler.enable(handler._open())
    (folder / "failed.json").unlink(missing_ok=True)
    try:
        run(read_config(folder), folder)
    except KeyboardInterrupt:
        log.warning("interrupted; the same command resumes")
        return 130
    except Exception as error:
        # What the user can mend needs no traceback on the screen; the log has it anyway.
        mendable = isinstance(error, DashVLMError | OSError)
        for other in logging.getLogger().handlers:
            if other is not handler and mendable:
                other.setLevel(logging.CRITICAL)
        log.exception("run failed")
        if mendable and rank == 0:
            print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        if rank == 0:
            resumable = not isinstance(error, TrainingError | ConfigError | OutOfMemory | ValueError)
            with contextlib.suppress(OSError):
                write_json(
                    folder / "failed.json",
                    {
                        "status": "oom" if isinstance(error, OutOfMemory) else "failed",
                        "error": type(error).__name__,
                        "message": str(error),
                        "resumable": resumable,
                    },
                )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
