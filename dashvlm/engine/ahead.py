"""What a model makes of a frame is made once, before training: its pixels, or the features of a frozen vision half.

Which of the two is kept, or neither, is decided by what trains, by size and by how often frames are looked at.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytorch_lightning as pl
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dashvlm.backbones.encoder import HFEncoder
from dashvlm.backbones.frame_encoder import FEATURES, PIXELS
from dashvlm.backbones.hf import HFBackbone
from dashvlm.data.datamodule import ClipDataModule
from dashvlm.data.encoded import EncodedFrames, EncodedStore
from dashvlm.data.entries import Entries
from dashvlm.data.sampling import Times
from dashvlm.engine.prepare import Data, evaluation_samples
from dashvlm.errors import ConfigError, DataError
from dashvlm.training.module import VLMModule

log = logging.getLogger(__name__)
Config = Mapping[str, Any]
CHUNK = 32
"""Frames that are encoded at a time."""
WORTH = 1.25
"""Looks at each frame from which on keeping what was made of it pays."""


@dataclass(frozen=True)
class Kept:
    """What is kept of frames.

    Attributes:
        what: ``features``, ``pixels`` or ``nothing``.
        why: in words.
        frame_bytes: of each frame.
    """

    what: str
    why: str
    frame_bytes: int = 0


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
    kept, made_by = _decide(cfg, data, module, trainer)
    if kept.what == "nothing":
        log.info("frames are encoded each time: %s", kept.why)
        return data, kept
    options, folder = cfg["data"], Path(cfg["paths"]["cache_dir"])
    entries = Entries(folder / kept.what, kept.what, float(options["store_gb"]))
    encoded = EncodedStore(entries, data.store, made_by)
    tasks = list(_tasks(data, encoded))
    size_gb = kept.frame_bytes * sum(len(t) for t in data.times.values()) / 1e9
    if size_gb > float(options["store_gb"]):
        why = f"{kept.what} of this sweep take {size_gb:.0f} GB, the store holds data.store_gb={options['store_gb']:g}"
        log.info("frames are encoded each time: %s", why)
        return data, Kept("nothing", why)
    log.info("kept of each frame: %s, %.0f kB (%.2f GB in all): %s; data.%s=off keeps none",
             kept.what, kept.frame_bytes / 1e3, size_gb, kept.why,
             "features" if kept.what == "features" else "encoded")  # fmt: skip
    _fill(cfg, tasks, encoded, module, trainer, kept.what == "features")
    store = data.store
    if store.max_gb != float("inf"):  # one bound for both
        store = replace(store, max_gb=max(store.max_gb - size_gb, 0.1 * store.max_gb))
    return replace(data, store=store, encoded=replace(encoded, frames=store)), kept


def _decide(cfg: Config, data: Data, module: VLMModule, trainer: pl.Trainer) -> tuple[Kept, str]:
    options, backbone = cfg["data"], module.backbone
    features, pixels = str(options.get("features", "auto")), str(options.get("encoded", "auto"))
    no_pixels = _no_pixels(cfg, module)
    if features == pixels == "off":
        no_pixels = "data.encoded=off and data.features=off"
    first = None if no_pixels else _first_frame(data)
    if not no_pixels and first is None:
        no_pixels = "no frame can be read"
    if no_pixels or first is None:
        if "on" in (features, pixels):
            raise ConfigError("data.features=on, data.encoded=on: not possible here", got=no_pixels, do="use auto")
        return Kept("nothing", no_pixels), ""
    assert isinstance(backbone, HFBackbone)
    assert isinstance(backbone.encoder, HFEncoder)
    assert backbone.encoder.apart is not None
    made = backbone.encoder.apart.encode(first)
    processor = backbone.encoder.processor.image_processor
    by: dict[str, Any] = {
        "versions": [transformers.__version__, PIL.__version__],
        "processor": [type(processor).__name__, processor.to_dict(), backbone.encoder.image_kwargs],
    }
    pixel_bytes, looks = _bytes(made), _looks(cfg, data, module)
    why_not, feature_bytes, parts = "data.features=off", 0, list[nn.Module]()
    if features != "off":
        why_not, feature_bytes, parts = _try_features(cfg, backbone, made, trainer)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if features == "on" and why_not:
        raise ConfigError("data.features=on: not possible here", got=why_not, do="use auto, or off")
    if features == "auto" and not why_not and not on_cpu and feature_bytes > pixel_bytes:
        why_not = f"features would be {feature_bytes / pixel_bytes:.1f} times as large as pixels"
    if not why_not and (features == "on" or looks >= WORTH):
        by |= {
            "torch": str(torch.__version__), "device": trainer.strategy.root_device.type,
            "precision": str(cfg["trainer"]["precision"]), "attention": backbone.base().config._attn_implementation,
            "weights": _digest(parts),
        }  # fmt: skip
        why = f"nothing that makes them trains, and each frame is looked at {looks:.1f} times"
        return Kept("features", why, feature_bytes), json.dumps(by, sort_keys=True, default=str)
    if pixels == "on" or (pixels == "auto" and looks >= WORTH):
        why = f"each frame is looked at {looks:.1f} times; no features: {why_not}"
        return Kept("pixels", why, pixel_bytes), json.dumps(by, sort_keys=True, default=str)
    why = "data.encoded=off" if pixels == "off" else f"each frame is looked at {looks:.1f} times only"
    return Kept("nothing", f"{why}; no features: {why_not}" if why_not else why), ""


def _no_pixels(cfg: Config, module: VLMModule) -> str:
    """Why what is made of a frame differs from time to time, or is not known apart; empty if it does not."""
    options, encoder = cfg["data"], module.backbone.encoder
    if not isinstance(module.backbone, HFBackbone) or getattr(encoder, "apart", None) is None:
        return "this model does not take frames as pictures of their own"
    if options.get("augmentation"):
        return "data.augmentation changes frames each time"
    if options.get("pixels") == "off":
        return "data.pixels=off: all frames are grey"
    return ""


def _try_features(
    cfg: Config, backbone: HFBackbone, made: EncodedFrames, trainer: pl.Trainer
) -> tuple[str, int, list[nn.Module]]:
    """Why features cannot be kept (empty if they can), their bytes a frame, and the modules that make them."""
    if not backbone.encoder.frames_apart:
        return "the family mixes frames before the language model", 0, []
    if str(cfg["trainer"]["precision"]) in ("bf16-true", "16-true", "64-true"):
        return f"trainer.precision={cfg['trainer']['precision']} casts the weights later", 0, []
    backbone.to(trainer.strategy.root_device)
    called: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in backbone.modules()]
    training = backbone.training
    try:
        backbone.train()  # what is drawn at random would differ
        first, second = (features_of(backbone, made, trainer) for _ in range(2))
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    if any(p.requires_grad for m in called for p in m.parameters()):
        return "parts of the vision half or the connector train", 0, []
    if any(not np.array_equal(a, second.arrays[n]) for n, a in first.arrays.items()):
        return "the vision half draws at random while it trains (dropout)", 0, []
    return "", _bytes(first), called


def features_of(backbone: HFBackbone, made: EncodedFrames, trainer: pl.Trainer) -> EncodedFrames:
    """What the vision half and the connector make of encoded frames, as the trainer computes it."""
    encoder = backbone.encoder
    assert isinstance(encoder, HFEncoder)
    assert encoder.apart is not None
    inputs = {**encoder.apart.about([made]), **encoder.apart.tensors([made])}
    device = trainer.strategy.root_device
    moved = {k: v.to(device) for k, v in inputs.items() if torch.is_tensor(v)}
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        found = backbone.encode_frames([{**backbone.ready(moved), "num_frames": len(made)}])  # type: ignore[dict-item]
    arrays = {n: a for n, a in made.arrays.items() if n not in PIXELS}
    return EncodedFrames(arrays | {FEATURES + n: _as_array(v) for n, v in found.items()})


def _as_array(value: torch.Tensor) -> np.ndarray:
    value = value.detach().cpu().contiguous()
    return (value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy()


def _bytes(made: EncodedFrames) -> int:
    return sum(a.itemsize if not any(a.strides) else a[0].nbytes for a in made.arrays.values())


def _digest(parts: Sequence[nn.Module]) -> str:
    """SHA-256 of all parameters and buffers of some modules."""
    found, known = hashlib.sha256(), set[int]()
    for part in parts:
        for name, value in (*part.named_parameters(), *part.named_buffers()):
            if id(value) not in known:
                known.add(id(value))
                data = value.detach().cpu().contiguous()
                found.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
                found.update(data.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _first_frame(data: Data) -> np.ndarray | None:
    for clip in data.manifest.clips:
        if "failed" not in clip.extra and len(data.times.get(clip.clip_id, ())):
            try:
                return data.store.frames(Path(clip.path), data.times[clip.clip_id][:1])[0]
            except DataError:
                continue
    return None


def _looks(cfg: Config, data: Data, module: VLMModule) -> float:
    """How often the sweep looks at a frame, in the mean over all frames that it asks for."""
    options, trainer = cfg["data"], cfg["trainer"]
    train, val = len(module.usable(data.samples["train"])), len(data.samples["val"])
    batches = -(-train // int(options["batch_size"])) or 1
    steps = trainer["max_steps"] or batches * int(trainer["max_epochs"])
    trained = bool(module.trained_state()) and not trainer["skip_fit"] and bool(steps)
    seen = int(steps) * int(options["batch_size"]) if trained else 0
    checks = max(int(steps) // int(trainer["val_every_n_steps"] or batches), 1) if trained else 0
    samples = seen + val * checks + len(evaluation_samples(cfg, data))
    points = [int(p.get("num_frames", options["num_frames"])) for p in (cfg.get("sweep") or {}).get("grid") or [{}]]
    distinct = sum(len(t) for t in data.times.values())
    return samples * sum(points) / max(distinct, 1)


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
    except OSError as error:
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
            log.info("%s of frames: %d of %d, %.0f s left", encoded.entries.suffix, done, total, left)
    backbone.train(training)
    log.info("%s of %d frames made in %.1f s", encoded.entries.suffix, total, time.monotonic() - started)
