"""What a model makes of a frame is made once, before training (``kept`` decides what of it is kept)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from dashvlm.backbones.encoder import HFEncoder
from dashvlm.backbones.hf_backbone import HFBackbone
from dashvlm.data.datamodule import ClipDataModule
from dashvlm.data.encoded import EncodedFrames, EncodedStore
from dashvlm.data.entries import Entries
from dashvlm.data.sampling import Times
from dashvlm.engine.kept import Kept, decide, features_of
from dashvlm.engine.prepare import Data
from dashvlm.errors import ConfigError, DataError
from dashvlm.training.module import VLMModule

log = logging.getLogger(__name__)
Config = Mapping[str, Any]
CHUNK = 32
"""Frames that are encoded at a time."""


def encode_ahead(cfg: Config, data: Data, module: VLMModule, trainer: pl.Trainer) -> tuple[Data, Kept]:
    """Make what the run will look at of all frames that the sweep asks for, where that pays.

    Args:
        cfg: the configuration.
        data: made ready; its frames are decoded.
        module: with the weights that training starts from.
        trainer: knows device and precision.

    Returns:
        The data, with what is kept, and what was decided.

    Raises:
        ConfigError: if ``data.features=on`` or ``data.encoded=on`` asks for what cannot be.
    """
    kept, made_by = decide(cfg, data, module, trainer)
    if kept.what == "nothing":
        log.info("frames are encoded each time they are used: %s", kept.why)
        return data, kept
    options, folder = cfg["data"], Path(cfg["paths"]["cache_dir"])
    entries = Entries(folder / kept.what, kept.what, float(options["store_gb"]))
    encoded = EncodedStore(entries, data.store, made_by)
    tasks = list(_tasks(data, encoded))
    size_gb = kept.frame_bytes * sum(len(t) for t in data.times.values()) / 1e9
    if size_gb > float(options["store_gb"]):
        why = f"{kept.what} of this sweep take {size_gb:.0f} GB, the store holds data.store_gb={options['store_gb']:g}"
        if options.get("features" if kept.what == "features" else "encoded") == "on":
            raise ConfigError("data.features=on, data.encoded=on: not possible here", got=why, do="raise data.store_gb")
        log.info("frames are encoded each time they are used: %s", why)
        return data, Kept("nothing", why)
    log.info("%s are computed once and kept, %.0f kB a frame, %.2f GB in all: %s; data.%s=off switches this off",
             kept.what, kept.frame_bytes / 1e3, size_gb, kept.why,
             "features" if kept.what == "features" else "encoded")  # fmt: skip
    _fill(cfg, tasks, encoded, module, trainer, kept.what == "features")
    store = data.store
    if store.max_gb != float("inf"):  # one bound for both
        store = replace(store, max_gb=max(store.max_gb - size_gb, 0.1 * store.max_gb))
    return replace(data, store=store, encoded=replace(encoded, frames=store)), kept


def _tasks(data: Data, encoded: EncodedStore) -> Iterator[tuple[Path, Times]]:
    """Videos, and frames of theirs that nobody has encoded yet, a handful at a time."""
    for clip in data.manifest.clips:
        wanted = data.times.get(clip.clip_id)
        if wanted is None or not len(wanted) or "failed" in clip.extra:
            continue
        try:
            lacking = encoded.lacking(Path(clip.path), wanted)
        except DataError:
            continue
        for start in range(0, len(lacking), CHUNK):
            yield Path(clip.path), lacking[start : start + CHUNK]


class _Lacking(Dataset[Any]):
    """Frames that are still to be encoded; pixels are written by the worker that made them."""

    def __init__(
        self, tasks: Sequence[tuple[Path, Times]], encoded: EncodedStore, encoder: HFEncoder, features: bool
    ) -> None:
        self.tasks, self.encoded, self.encoder, self.features = tasks, encoded, encoder, features

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> tuple[Path, Times, EncodedFrames] | None:
        video, times = self.tasks[number]
        try:
            times = np.intersect1d(times, self.encoded.lacking(video, times))  # another process may have been here
            if not len(times):
                return None
            frames = self.encoded.frames.frames(video, times)[0]
        except DataError:
            return None
        assert self.encoder.apart is not None
        made = self.encoder.apart.encode(frames)
        if self.features:
            return video, times, made
        _put(self.encoded, video, times, made)
        return None


def _put(encoded: EncodedStore, video: Path, times: Times, made: EncodedFrames) -> None:
    try:
        encoded.put(video, times, made)
    except (OSError, DataError) as error:
        log.warning("%s: %s; frames of %s are encoded anew each time", encoded.entries.suffix, error, video)


def _first(items: Sequence[Any]) -> Any:
    return items[0]


def _fill(
    cfg: Config,
    tasks: Sequence[tuple[Path, Times]],
    encoded: EncodedStore,
    module: VLMModule,
    trainer: pl.Trainer,
    features: bool,
) -> None:
    """Encode what is lacking; the processes of one job begin at different places."""
    if not tasks:
        return
    backbone = module.backbone
    assert isinstance(backbone, HFBackbone)
    assert isinstance(backbone.encoder, HFEncoder)
    begin = len(tasks) * int(os.environ.get("LOCAL_RANK", 0)) // max(trainer.world_size, 1)
    turned = [*tasks[begin:], *tasks[:begin]]
    few = len(tasks) < 8
    loaders = ClipDataModule({}, encoded.frames, lambda stage: _first, cfg["data"] | {"num_workers": 0} if few
                             else cfg["data"], 0)  # fmt: skip
    dataset = _Lacking(turned, encoded, backbone.encoder, features)
    loader = DataLoader(dataset, batch_size=1, collate_fn=_first, **loaders.workers())
    total, done, started, told = sum(len(t) for _, t in turned), 0, time.monotonic(), time.monotonic()
    log.info("computing %s of %d frames", encoded.entries.suffix, total)
    training = backbone.training
    backbone.eval()
    for number, found in enumerate(loader):
        if found is not None:
            video, times, made = found
            _put(encoded, video, times, features_of(backbone, made, trainer))
        done += len(turned[number][1])
        if time.monotonic() - told > 10:
            told = time.monotonic()
            left = (told - started) * (total - done) / done
            log.info("%s: %d of %d frames, %.0f s left", encoded.entries.suffix, done, total, left)
    backbone.train(training)
    log.info("%s of %d frames computed in %.1f s", encoded.entries.suffix, total, time.monotonic() - started)
