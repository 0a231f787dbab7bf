"""Score a module on the test split and turn the rows into numbers. Every number comes from the rows' file."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl

from dashvlm.build import Data, evaluation_samples, part_census
from dashvlm.data.clip import Sample
from dashvlm.data.datamodule import ClipDataModule
from dashvlm.data.samples import feasibility
from dashvlm.errors import DataError
from dashvlm.fit import build_trainer
from dashvlm.metrics.evaluate import evaluate
from dashvlm.training.module import VLMModule, sample_row

PACKAGES = ("torch", "transformers", "peft", "pytorch-lightning", "av")


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
