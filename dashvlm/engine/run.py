"""One run: prepare, fit, score, write.

The folder ends with ``result.json`` (or ``failed.json``), ``predictions.parquet``, ``adapter/``,
``trained.safetensors``, ``checkpoints/``, ``plots/``, ``metrics/metrics.csv`` and ``job.log``.
Imports no Hydra.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytorch_lightning as pl
import torch
import transformers
from safetensors.torch import save_file

from dashvlm.data.manifest import leakage_report, write_ledgers
from dashvlm.engine.ahead import encode_ahead
from dashvlm.engine.build import build_module
from dashvlm.engine.fit import best_validation, build_trainer, fit, validation_alarms
from dashvlm.engine.gallery import gallery
from dashvlm.engine.prepare import Data, prepare_data
from dashvlm.engine.results import plot_run, write_results
from dashvlm.engine.scoring import score, score_start
from dashvlm.engine.streams import score_stream
from dashvlm.safety import checksums
from dashvlm.safety.files import read_table, write_json
from dashvlm.shortcuts.audit import audit
from dashvlm.training.callbacks import earlier_seconds
from dashvlm.training.curves import plot_curves
from dashvlm.training.loggers import build_loggers, finish
from dashvlm.training.memory import explained, is_out_of_memory
from dashvlm.training.module import VLMModule

log = logging.getLogger(__name__)


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
    plain = build_trainer(cfg, logger=False, enable_checkpointing=False)  # hardware that is not there is an error now
    data = prepare_data(cfg)
    report = _ledgers(cfg, data, folder)
    decode_s = time.perf_counter() - started
    loggers = build_loggers(cfg, folder.name, folder)
    module = results = rows = None
    images: dict[str, Path] = {}
    try:
        try:
            module = build_module(cfg)
            data, kept = encode_ahead(cfg, data, module, plain)
            before = _start_measured(cfg, data, module, folder)
            trainer, fit_s = fit(cfg, data, module, loggers, folder)
            rows = score(cfg, data, module, trainer)
            stream = score_stream(cfg, data, module, trainer) if cfg["task"].get("stream") else None
            if before is not None:
                rows = rows.merge(before, how="left", on="sample_id")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            training = module is None or module.training
            longest = module.longest if module is not None else None
            raise explained(error, cfg, longest, _memory_there_is(), training) from error
        if trainer.is_global_zero:
            _export(module, folder)
            checksums.note(folder, checksums.WEIGHTS)
            results = write_results(cfg, data, rows, folder, module, stream)
            results["alarms"] += validation_alarms(trainer, cfg)
            part, whole = cfg["data"].get("val_limit"), len(module.usable(data.samples["val"]))
            if part and whole > part:
                results["alarms"].append(f"validation chose the weights by {part} of {whole} samples (data.val_limit)")
            if module.truncated:
                cut, limit = len(module.truncated), cfg["objective"]["max_tokens"]
                told = f"the answers of {cut} training clips were cut to objective.max_tokens={limit}"
                results["alarms"].append(told)
            audited = {**data.samples, "test": data.moments} if data.moments else data.samples
            readers = audit(audited, module.task.kind_of, data.store, int(cfg["seed"]))
            results["alarms"] += [f"a reader of {r.name} alone reaches ROC AUC {r.auc}" for r in readers if r.fails]
            results |= {
                "leakage": report,
                "audit": [{"reader": r.name, **vars(r.auc), "fails": r.fails} for r in readers],
                "validation": best_validation(trainer, cfg),
                "seconds": _all_sessions(
                    trainer, {"data": decode_s, "fit": fit_s, "all": time.perf_counter() - started}
                ),
                "steps": int(trainer.global_step),
                "kept": vars(kept),
                "shared_clips": module.shares("predict"),
                "peak_memory_gb": _peak_memory_gb(),
                "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
                "devices": int(trainer.world_size),
            }
            # Before anything is drawn or sent: what fails there must not cost the numbers.
            write_json(folder / "result.json", results)
            notes: list[str] = []
            with _noted("the plots", notes):
                images = plot_run(module.task.evaluation, rows, results, folder / "plots", data.store, stream)
            with _noted("the curves", notes):
                images |= plot_curves(folder / "metrics" / "metrics.csv", folder / "plots")
            if notes:
                write_json(folder / "result.json", results | {"notes": notes})
            checksums.note(folder, checksums.SMALL)
    finally:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            shown = cfg["logger"]["name"] == "wandb" and results is not None
            samples: list[dict[str, Any]] = []
            with _noted("samples for W&B", []):
                samples = gallery(folder, Path(cfg["paths"]["cache_dir"])) if shown else []
            with _noted(f"logger={cfg['logger']['name']}", []) if results is not None else contextlib.nullcontext():
                finish(loggers, results, rows, images, folder, samples)
    return results or {}


@contextlib.contextmanager
def _noted(what: str, notes: list[str]) -> Iterator[None]:
    """Turn an error of something that only shows results into a note."""
    try:
        yield
    except Exception as error:
        log.warning("%s failed, the results stand: %s: %s", what, type(error).__name__, error, exc_info=True)
        notes.append(f"{what} failed: {type(error).__name__}: {str(error)[:200]}")


def _start_measured(cfg: Mapping[str, Any], data: Data, module: VLMModule, folder: Path) -> pd.DataFrame | None:
    """What the objective measures before training, once for a run however often it is resumed."""
    if not module.evaluate_before_training:
        return None
    path = folder / "before.parquet"
    if cfg.get("start_from") and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        _write_weights(module, folder / "start.safetensors")
    if not path.exists():
        found = score_start(cfg, data, module)
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            found.to_parquet(path.with_suffix(".tmp"), index=False)
            path.with_suffix(".tmp").replace(path)
        return found
    return read_table(path)


def _export(module: VLMModule, folder: Path) -> None:
    """Write the trained parameters, and the adapter in PEFT's own format."""
    _write_weights(module, folder / "trained.safetensors")
    if isinstance(module.backbone.net, peft.PeftModel):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about vocabulary sizes that cannot be looked up offline
            module.backbone.net.save_pretrained(str(folder / "adapter"))


def _write_weights(module: VLMModule, path: Path) -> None:
    """Write what trains, atomically."""
    state = {n: p.cpu().contiguous() for n, p in module.trained_state().items()}
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary)
    temporary.replace(path)


def _ledgers(cfg: Mapping[str, Any], data: Data, folder: Path) -> dict[str, Any]:
    report = leakage_report(data.manifest, int(cfg["data"]["split_seed"]))
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        write_ledgers(data.manifest, report, folder)
    log.info("%s: clips %s, groups %s, %d quarantined", data.manifest.name, report["clips"], report["groups"],
             len(data.manifest.quarantine))  # fmt: skip
    if report["row_split_would_share"] is not None:
        log.info(
            "a split by row would share groups with %.0f%% of the test clips", 100 * report["row_split_would_share"]
        )
    return report


def _all_sessions(trainer: pl.Trainer, spent: dict[str, float]) -> dict[str, float]:
    """Seconds of this session and of those that were interrupted, which each checkpoint noted."""
    earlier = earlier_seconds(trainer)
    return {"data": spent["data"], "fit": spent["fit"] + earlier, "all": spent["all"] + earlier}


def _memory_there_is() -> float | None:
    """Memory of the device in 10^9 bytes; None on a CPU, where it is shared with everything else."""
    return torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None


def _peak_memory_gb() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def quiet_libraries() -> None:
    """Silence messages of libraries about themselves; what concerns the user is ours to say."""
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # which devices there are, and advertisements
    for text in (
        ".*is_gradient_checkpointing.*", ".*treespec.*", ".*predict returned None.*", ".*in eval mode at the start.*",
        ".*does not have many workers.*", ".*dataloader is not resumable.*", ".*smaller than the logging interval.*",
        ".*Experiment logs directory.*", ".*You have overridden .transfer_batch_to_device.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", text)
