"""Score a module on the test split: a row for each sample. ``results`` turns the rows into numbers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl

from dashvlm.data.clip import Sample
from dashvlm.data.datamodule import ClipDataModule, Stage
from dashvlm.data.sampling import staleness_s
from dashvlm.engine.fit import build_trainer
from dashvlm.engine.prepare import Data, evaluation_samples
from dashvlm.errors import DataError
from dashvlm.tasks.base import observe
from dashvlm.training.module import VLMModule, sample_row

log = logging.getLogger(__name__)
TIMED = 16
"""Samples whose latency is taken where features were kept."""


def score(cfg: Mapping[str, Any], data: Data, module: VLMModule, trainer: pl.Trainer | None = None) -> pd.DataFrame:
    """Score the test split at all horizons, and once more with the pixels switched off.

    Returns:
        A row a sample, in order, none missing; see :func:`dashvlm.tasks.evaluation.evaluate`.
    """
    trainer = trainer or build_trainer(cfg, logger=False, enable_checkpointing=False)
    samples = evaluation_samples(cfg, data)
    if not samples:
        raise DataError(
            f"data={cfg['data']['name']}: no clip to evaluate on",
            got=f"test {len(data.samples['test'])}, val {len(data.samples['val'])}",
            do="give data.splits.test a share, or add clips",
        )
    loaders = ClipDataModule({}, data.store, module.collate, cfg["data"], int(cfg["seed"]), encoded=data.encoded)
    loaders.trainer = trainer
    task, primary = module.task, float(cfg["data"]["horizon_s"])
    rows = predict_rows(module, loaders, samples)
    table = pd.DataFrame([{**sample_row(s), **task.columns(s), **r} for s, r in zip(samples, rows, strict=True)])
    first = [s for s in samples if s.horizon_s == primary]
    # What has no scores is judged by what it writes, so the blind pass must write too.
    blind: dict[str, Any] = {}
    if cfg["model"].get("pixels_off", True):
        seen = {s.sample_id: row for s, row in zip(samples, rows, strict=True)}
        rows_off = pixels_off_rows(module, loaders, first, [seen[s.sample_id] for s in first])
        blind = {s.sample_id: row for s, row in zip(first, rows_off, strict=True)}
    table["primary"] = table["horizon_s"] == primary
    asked_together = module.shares("predict") and len({(s.clip.path, s.times_s) for s in samples}) < len(samples)
    if asked_together or (data.encoded is not None and data.encoded.entries.suffix == "features"):
        table["latency_s"] = _latency(cfg, data, module, trainer, samples, first[:TIMED])
    table["stale_s"] = [_staleness(s, r) for s, r in zip(samples, rows, strict=True)]
    _add_pairs(table, module, loaders, samples)
    for column in ("scores", "text", "answer", "status", "latency_s", "frame_times_s"):
        if column not in table:
            table[column] = None
    targets = [task.target(s) for s in samples]
    whole = bool(task.choices)
    table["target"] = pd.array(targets, dtype="Int64") if whole else [_as_json(t) for t in targets]
    for column in [c for c in table if c.endswith("answer")]:
        read = table[column]
        table[column] = read.astype("Int64") if whole else [_as_json(a) for a in read]
    unseen = [blind.get(i, {}) for i in table["sample_id"]]
    if task.choices:
        table["pixels_off_scores"] = [row.get("scores") for row in unseen]
    else:
        table["pixels_off_answer"] = [_as_json(row.get("answer")) for row in unseen]
        table["pixels_off_text"] = [row.get("text") for row in unseen]
    if len(task.choices) == 2:
        for column in [c for c in table if c.endswith("scores")]:
            table[column.removesuffix("s")] = [_last(v) for v in table[column]]
    observation = [observe(s, s.times_s) for s in samples]
    for name, values in module.measure(table["text"].tolist(), observation, targets).items():
        table[name] = values
    for name, values in task.baseline(data.samples["train"], samples).items():
        table[name] = pd.array(values, dtype="Int64") if whole else values
    return table.drop(columns="index")


def _latency(
    cfg: Mapping[str, Any],
    data: Data,
    module: VLMModule,
    trainer: pl.Trainer,
    samples: Sequence[Sample],
    timed: Sequence[Sample],
) -> list[float | None]:
    """Seconds a sample where nothing is shared or kept: of a few samples, which are predicted once more for it."""
    loaders = ClipDataModule({}, data.store, module.collate, cfg["data"], int(cfg["seed"]))
    loaders.trainer = trainer
    module.apart = True
    try:
        rows = predict_rows(module, loaders, timed)
    finally:
        module.apart = False
    took = {s.sample_id: row.get("latency_s") for s, row in zip(timed, rows, strict=True)}
    return [took.get(s.sample_id) for s in samples]


def score_start(cfg: Mapping[str, Any], data: Data, module: VLMModule) -> pd.DataFrame:
    """What an objective measures of the test split before it trains: its columns, a row a sample.

    Returns:
        ``sample_id`` and the objective's columns as ``before_...``.
    """
    trainer, primary = build_trainer(cfg, logger=False, enable_checkpointing=False), float(cfg["data"]["horizon_s"])
    samples = [s for s in evaluation_samples(cfg, data) if s.horizon_s == primary]
    loaders = ClipDataModule({}, data.store, module.collate, cfg["data"], int(cfg["seed"]), encoded=data.encoded)
    loaders.trainer = trainer
    table = pd.DataFrame({"sample_id": [s.sample_id for s in samples]})
    _add_pairs(table, module, loaders, samples)
    if module.supervision != "pair":
        texts = [row.get("text") for row in predict_rows(module, loaders, samples)]
        observation, targets = [observe(s, s.times_s) for s in samples], [module.task.target(s) for s in samples]
        for name, values in module.measure(texts, observation, targets).items():
            table[name] = values
    return table.rename(columns={c: f"before_{c}" for c in table if c != "sample_id"})


def _add_pairs(table: pd.DataFrame, module: VLMModule, loaders: ClipDataModule, samples: list[Sample]) -> None:
    """Judge the pairs of the samples that have one, where the objective learns from pairs."""
    if module.supervision != "pair" or not module.usable(samples):
        return
    judged = {row["index"]: row for row in predict_rows(module, loaders, samples, "pairs") if "preferred" in row}
    for name in ("preferred", "likelier", "margin", "chosen_tokens", "rejected_tokens"):
        table[name] = [judged.get(i, {}).get(name) for i in range(len(table))]


def predict_rows(
    module: VLMModule, loaders: ClipDataModule, samples: Sequence[Sample], stage: Stage = "predict"
) -> list[dict[str, Any]]:
    """The one way to predictions: a row for each sample, in order, a failed one where it could not be read.

    Args:
        module: the model.
        loaders: with the trainer that runs it.
        samples: what is asked about.
        stage: ``predict``; ``pixels_off`` for grey frames; ``pairs`` judges the pairs of the samples that have one.
    """
    assert loaders.trainer is not None
    loaders.trainer.predict(module, loaders.eval_dataloader(samples, stage), return_predictions=False)
    return module.rows


def pixels_off_rows(
    module: VLMModule, loaders: ClipDataModule, samples: Sequence[Sample], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows with grey frames; of equal prompts for pictures of one size one is asked.

    Args:
        module: the model.
        loaders: with the trainer that runs it.
        samples: what is asked about.
        rows: their rows with pixels; what failed there is not asked.
    """
    timed = getattr(module.backbone.encoder, "frames", "images") == "video"  # prints the times that frames truly have
    drawn = bool((module.options.get("generation") or {}).get("do_sample"))  # each row draws a text of its own
    asked: dict[Any, Sample] = {}
    keys: list[Any] = []
    for sample, row in zip(samples, rows, strict=True):
        times = row.get("frame_times_s")
        size = None if loaders.store.size is not None or times is None else _size(loaders, sample)
        alone = sample.sample_id if sample.demos or drawn else ""
        keys.append(None if times is None else (row["prompt"], tuple(times) if timed else len(times), size, alone))
        if keys[-1] is not None:
            asked.setdefault(keys[-1], sample)
    made = predict_rows(module, loaders, list(asked.values()), "pixels_off") if asked else []
    found = dict(zip(asked, made, strict=True))
    return [{"status": "failed"} if key is None else found[key] for key in keys]


def _size(loaders: ClipDataModule, sample: Sample) -> tuple[int, int]:
    index = loaders.store.index(Path(sample.clip.path))
    return index.width, index.height


def _staleness(sample: Sample, row: Mapping[str, Any]) -> float:
    """See :func:`dashvlm.data.sampling.staleness_s`; 0 for a row that failed."""
    shown = row.get("frame_times_s")
    return 0.0 if shown is None else staleness_s(shown, sample.times_s, 1.0 / sample.clip.fps)


def _as_json(value: Any) -> str | None:
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if isinstance(value, Mapping) else None


def _last(scores: Any) -> float:
    return float("nan") if scores is None or not np.ndim(scores) else float(scores[-1])
