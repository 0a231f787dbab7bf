"""Test clips scored over their whole length: a table of anchors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl

from dashvlm.data.anchors import labelled_moments, positive_window, stream_samples
from dashvlm.data.clip import Sample
from dashvlm.data.datamodule import ClipDataModule
from dashvlm.data.samples import last_time
from dashvlm.data.sampling import staleness_s
from dashvlm.engine.prepare import Data
from dashvlm.engine.scoring import pixels_off_rows, predict_rows
from dashvlm.shortcuts.moment import prior_over
from dashvlm.training.module import VLMModule


def score_stream(cfg: Mapping[str, Any], data: Data, module: VLMModule, trainer: pl.Trainer) -> pd.DataFrame:
    """Score the test split over the whole length of its clips, and what tells a moment without its pixels.

    Returns:
        A row an anchor, clip by clip, oldest first; see :func:`dashvlm.tasks.binary.stream.evaluate_stream`.
    """
    options = cfg["data"]
    clips = data.manifest.split(data.test_split)
    samples = stream_samples(clips, options)
    loaders = ClipDataModule({}, data.store, module.collate, options, int(cfg["seed"]))
    loaders.trainer = trainer
    rows = predict_rows(module, loaders, samples, "stream")
    window_s = float(options["stream"]["window_s"])
    table = pd.DataFrame([{**_about(s, window_s), **said(s, r)} for s, r in zip(samples, rows, strict=True)])
    table["target"] = pd.array([s.clip.label for s in samples], dtype="Int64")
    labels = {c.clip_id: c.label for c in clips}
    table["clip_label"] = pd.array([labels[s.clip.clip_id] for s in samples], dtype="Int64")
    table["stride_s"] = float(options["stream"]["stride_s"])
    table["refractory_s"] = float(options["stream"]["refractory_s"])
    if cfg["model"].get("pixels_off", True):
        grey = pixels_off_rows(module, loaders, samples, rows)
        table["pixels_off_score"] = [said(s, r)["score"] for s, r in zip(samples, grey, strict=True)]
    train = labelled_moments(data.manifest.split("train"), options)
    if len(train):
        end = np.array([max(last_time(s.clip), 1e-9) for s in samples])
        now = table["time_s"].to_numpy(float)
        table["time_prior"] = prior_over(train[:, 0], train[:, 2], now, 1.0)
        table["position_prior"] = prior_over(train[:, 1], train[:, 2], now / end, 0.05)
    return table


def _about(sample: Sample, window_s: float) -> dict[str, Any]:
    clip = sample.clip
    start, event = positive_window(clip, window_s) or (None, None)
    about: dict[str, Any] = {
        "sample_id": sample.sample_id, "clip_id": clip.clip_id, "group": clip.group, "split": clip.split,
        "path": clip.path, "duration_s": clip.duration_s, "time_s": sample.reference_s,
        "window_start_s": start, "event_time_s": event, "num_padded": sample.num_padded,
    }  # fmt: skip
    about |= {f"slice_{k}": str(v) for k, v in (clip.extra.get("slices") or {}).items()}
    return about | ({"near_misses_s": list(clip.extra["near_misses_s"])} if "near_misses_s" in clip.extra else {})


def said(sample: Sample, row: Mapping[str, Any]) -> dict[str, Any]:
    """Score, status and age of the frames of an anchor, from its row."""
    shown, scores = row.get("frame_times_s"), row.get("scores")
    return {
        "score": float("nan") if scores is None else float(scores[-1]),
        "status": row.get("status"),
        "stale_s": 0.0 if shown is None else staleness_s(shown, sample.times_s, 1.0 / sample.clip.fps),
    }
